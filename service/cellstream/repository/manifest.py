"""What a model version says of itself: `manifest.json`, the contract between export and serving.

A model is what its manifest says: what it takes, what it answers, and any number of named state tensors
that a session carries from step to step. `hidden` and `cell` are two such names; nothing here or in the
engine says LSTM.

The step graph (`model.onnx`) has
    inputs   the input [time, batch] int64 or [time, batch, features] float32, then one tensor for each state
             and, where `gates_switch` names it, a boolean scalar: whether the gates are wanted
    outputs  each output [time, batch, ...], each state after the last step,
             each gate [time, batch, layers, units], or [0, 0, layers, units] where they are not wanted
The sequence graph (`sequence.onnx`), which a version need not have, has the step graph's inputs and outputs
but for gates and their switch, and one input more, `lengths` int32 [batch]: how many of the steps each row
has. Its states are those after each row's own last step; predictions beyond it mean nothing.
The head graph (`head.onnx`) takes the states that it needs, and gives each output [batch, ...].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError, model_validator

from cellstream.errors import ManifestInvalid

MANIFEST_FILE = "manifest.json"

LENGTHS = "lengths"
"""The sequence graph's input that says how many steps each row has."""

WeightsDtype = Literal["float32", "int8"]
"""How the weights of products are stored; `int8` needs ONNX Runtime, whose MatMulNBits multiplies with it."""

MODEL_NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""A model's name is the name of a folder, on any system."""

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""A file of the version's own folder: no path leads out of it."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Input(_Frozen):
    """What a step takes.

    Attributes:
        name: The graph's input.
        kind: `tokens`: int64 ids [time, batch]; `values`: float32 frames [time, batch, features].
        vocabulary_size: How many tokens there are; None for values.
        features: How many numbers a frame has; None for tokens.
    """

    name: str
    kind: Literal["tokens", "values"]
    vocabulary_size: PositiveInt | None = None
    features: PositiveInt | None = None

    @model_validator(mode="after")
    def _has_the_size_of_its_kind(self) -> Self:
        if (self.vocabulary_size is None) == (self.kind == "tokens"):
            raise ValueError("vocabulary_size belongs to tokens, and only there")
        if (self.features is None) == (self.kind == "values"):
            raise ValueError("features belongs to values, and only there")
        return self


class Output(_Frozen):
    """What a step answers; the graph's tensor is float32 [time, batch, *shape].

    Attributes:
        name: The graph's output, and its name on the wire.
        kind: `log_probabilities` over the next token (natural logarithm), or the next `values`.
        shape: Its shape for one step of one session.
    """

    name: str
    kind: Literal["log_probabilities", "values"]
    shape: tuple[PositiveInt, ...]


class State(_Frozen):
    """A tensor that a session carries from step to step.

    Attributes:
        name: Its name on the wire: `hidden`, `cell`.
        input: The graph's input that takes it.
        output: The graph's output that gives it after the last step.
        dtype: As numpy writes it.
        shape: Its shape for one session, without the batch axis.
        batch_axis: Where the graph's tensor has the batch axis.
        initial: What every element is before the first token.
    """

    name: str
    input: str
    output: str
    dtype: Literal["float32"] = "float32"
    shape: tuple[PositiveInt, ...]
    batch_axis: int = Field(default=0, ge=0)
    initial: FiniteFloat = 0.0

    @model_validator(mode="after")
    def _has_its_batch_axis(self) -> Self:
        if self.batch_axis > len(self.shape):
            raise ValueError(
                f"batch_axis {self.batch_axis} is beyond the {len(self.shape) + 1} axes of the tensor"
            )
        return self


class Gate(_Frozen):
    """A gate that the graph shows, float32 [time, batch, layers, units].

    Attributes:
        name: The graph's output, and its name on the wire: forget, input, output, candidate, reset, update.
        shape: (layers, units).
    """

    name: str
    shape: tuple[PositiveInt, PositiveInt]


class File(_Frozen):
    """A file of the version, as it was when the manifest was written."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Architecture(_Frozen):
    """Sizes, for people; serving does not read them."""

    cell: str
    layers: PositiveInt
    hidden_size: PositiveInt
    embedding_size: PositiveInt | None = None
    parameters: PositiveInt


class Manifest(_Frozen):
    """`manifest.json`.

    Attributes:
        format: Which manifest this is; 1.
        name: The model's name.
        version: A positive integer; the highest wins.
        created: When it was exported, ISO 8601, UTC.
        architecture: Sizes, for people.
        input: What a step takes.
        outputs: What a step answers; the first is the prediction.
        states: What a session carries.
        gates: What the graph shows of its inside.
        gates_switch: The graph's boolean scalar input that says whether to show it; None: it always does.
        step_graph: The file of the graph that serves.
        head_graph: The file of the graph from states to outputs.
        sequence_graph: The file of the graph over rows of different lengths; None: there is none.
        weights_dtype: How the weights of products are stored, for people: the graphs know.
        tokenizer: The tokeniser's file; None for values.
        files: Every file of the version but the manifest, by name.
        training_data_sha256: Digest of the data it was trained on; None if it was not trained.
        metrics: What it was measured at: `heldout_bits_per_character`, and the like.
        proof: What the export compared, and the largest differences found.
        versions: Of the packages that made it.
    """

    format: Literal[1] = 1
    name: str = Field(pattern=MODEL_NAME_PATTERN)
    version: PositiveInt
    created: str
    architecture: Architecture
    input: Input
    outputs: tuple[Output, ...] = Field(min_length=1)
    states: tuple[State, ...] = Field(min_length=1)
    gates: tuple[Gate, ...] = ()
    gates_switch: str | None = None
    step_graph: FileName = "model.onnx"
    head_graph: FileName = "head.onnx"
    sequence_graph: FileName | None = None
    weights_dtype: WeightsDtype = "float32"
    tokenizer: FileName | None = None
    files: dict[FileName, File]
    training_data_sha256: str | None = None
    metrics: dict[str, FiniteFloat] = {}
    proof: dict[str, bool | int | FiniteFloat | str] = {}
    versions: dict[str, str] = {}

    @model_validator(mode="after")
    def _names_fit_together(self) -> Self:
        for file in (self.step_graph, self.head_graph, self.sequence_graph, self.tokenizer):
            if file is not None and file not in self.files:
                raise ValueError(f"{file} is not among the files")
        if MANIFEST_FILE in self.files:
            raise ValueError(f"{MANIFEST_FILE} is among the files, and cannot hold its own digest")
        switch = [self.gates_switch] if self.gates_switch else []
        _refuse_doubles("graph inputs", [self.input.name, *(state.input for state in self.states), *switch])
        outputs = [output.name for output in self.outputs]
        gates = [gate.name for gate in self.gates]
        _refuse_doubles("graph outputs", [*outputs, *(state.output for state in self.states), *gates])
        _refuse_doubles("states", [state.name for state in self.states])
        for output in self.outputs:
            if output.kind == "log_probabilities" and output.shape != (self.input.vocabulary_size,):
                raise ValueError(
                    f"output {output.name}: log-probabilities of {self.input.vocabulary_size} tokens have "
                    f"another shape than {list(output.shape)}"
                )
        return self

    @classmethod
    def make(cls, **values: object) -> Self:
        """Make a manifest of its attributes.

        Raises:
            ManifestInvalid: They are not those of a manifest; the message has every problem.
        """
        with _problems_told("the manifest"):
            return cls.model_validate(values)

    @classmethod
    def from_json(cls, contents: bytes, where: str) -> Self:
        """Read what `to_json` wrote.

        Args:
            contents: Of the file.
            where: The file, for messages.

        Raises:
            ManifestInvalid: It is not a manifest that this version reads; the message has every problem.
        """
        with _problems_told(where):
            return cls.model_validate_json(contents)

    def to_json(self) -> str:
        """Write it as `manifest.json` holds it."""
        return self.model_dump_json(indent=2) + "\n"


@contextmanager
def _problems_told(where: str) -> Iterator[None]:
    """Turn pydantic's error into ours, one line for all problems."""
    try:
        yield
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'all of it'}: {problem['msg']}, "
            f"found {problem['input']!r:.80}"
            for problem in error.errors(include_url=False)
        )
        raise ManifestInvalid(f"{where} is no manifest that this version reads: {problems}.") from None


def _refuse_doubles(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"two {what} are called {name}")
        seen.add(name)
