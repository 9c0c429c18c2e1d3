"""What a stack of cells is: its sizes, and the names and shapes of its weights and states.

This module needs neither PyTorch nor numpy, so that export can write a graph from a configuration and plain
arrays. It is the one place that says how weights are called:

    embedding.weight        [vocabulary, embedding]         tokens
    input.weight            [embedding, features]           values
    input.bias              [embedding]                     values
    layers.{l}.weight_ih    [gates × units, width]          width: embedding for layer 0, else units
    layers.{l}.weight_hh    [gates × units, units]
    layers.{l}.bias_ih      [gates × units]
    layers.{l}.bias_hh      [gates × units]
    head.weight             [outputs, units]
    head.bias               [outputs]

The rows of a layer's four weights are blocks of `units`, one block a gate, in PyTorch's order (`GATE_ORDER`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Literal, get_args

CellKind = Literal["rnn", "lstm", "gru"]
InputKind = Literal["tokens", "values"]

GATE_ORDER: dict[str, tuple[str, ...]] = {
    "rnn": ("candidate",),
    "lstm": ("input", "forget", "candidate", "output"),  # PyTorch's i, f, g, o
    "gru": ("reset", "update", "candidate"),  # PyTorch's r, z, n
}
"""The blocks of a layer's weights, top to bottom, as PyTorch has them."""

SHOWN_GATES: dict[str, tuple[str, ...]] = {
    "rnn": (),  # its candidate is its hidden state: nothing to show beside it
    "lstm": ("forget", "input", "output", "candidate"),
    "gru": ("reset", "update", "candidate"),
}
"""The gates that a step shows, by name, in the order of the equations."""

STATES: dict[str, tuple[str, ...]] = {
    "rnn": ("hidden",),
    "lstm": ("hidden", "cell"),
    "gru": ("hidden",),
}
"""The state tensors of a cell by name: h is `hidden`, C is `cell`."""


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """Embedding or linear input, `layers` cells of `hidden_size` units, head.

    Attributes:
        cell: Which equations.
        layers: How many cells, one above the other.
        hidden_size: Units of each.
        input: `tokens`: ids through an embedding, the next id predicted; `values`: frames through a linear
            map, the next frame predicted.
        embedding_size: Width of what the first layer sees.
        vocabulary_size: How many tokens there are; None for values.
        features: How many numbers a frame has; None for tokens.
        dropout: Share of each layer's outputs hidden from the next layer in training, in [0, 1).

    Raises:
        ValueError: A size is impossible, or does not fit the kind of input.
    """

    cell: CellKind
    layers: int
    hidden_size: int
    input: InputKind = "tokens"
    embedding_size: int
    vocabulary_size: int | None = None
    features: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.cell not in get_args(CellKind):
            raise ValueError(f"cell: expected one of {', '.join(get_args(CellKind))}, found {self.cell!r}")
        if self.input not in get_args(InputKind):
            raise ValueError(f"input: expected tokens or values, found {self.input!r}")
        wanted, unwanted = (
            ("vocabulary_size", "features") if self.input == "tokens" else ("features", "vocabulary_size")
        )
        for name in ("layers", "hidden_size", "embedding_size", wanted):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected a whole number from 1, found {value!r}")
        if getattr(self, unwanted) is not None:
            raise ValueError(f"{unwanted}: expected none for an input of {self.input}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a number from 0 to below 1, found {self.dropout!r}")

    @property
    def outputs_size(self) -> int:
        """How many numbers the head gives: one a token, or one a feature."""
        size = self.vocabulary_size if self.input == "tokens" else self.features
        assert size is not None  # __post_init__ saw to it
        return size

    @property
    def states(self) -> tuple[str, ...]:
        """The state tensors by name, hidden first."""
        return STATES[self.cell]

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates that a step shows, by name."""
        return SHOWN_GATES[self.cell]

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight's name and shape, from input to head."""
        units = self.hidden_size
        rows = len(GATE_ORDER[self.cell]) * units
        shapes: dict[str, tuple[int, ...]] = {}
        if self.input == "tokens":
            shapes["embedding.weight"] = (self.outputs_size, self.embedding_size)
        else:
            shapes["input.weight"] = (self.embedding_size, self.outputs_size)
            shapes["input.bias"] = (self.embedding_size,)
        for layer in range(self.layers):
            shapes[f"layers.{layer}.weight_ih"] = (rows, units if layer else self.embedding_size)
            shapes[f"layers.{layer}.weight_hh"] = (rows, units)
            shapes[f"layers.{layer}.bias_ih"] = (rows,)
            shapes[f"layers.{layer}.bias_hh"] = (rows,)
        shapes["head.weight"] = (self.outputs_size, units)
        shapes["head.bias"] = (self.outputs_size,)
        return shapes

    @property
    def parameters(self) -> int:
        """How many numbers the weights hold."""
        return sum(math.prod(shape) for shape in self.weight_shapes().values())

    def to_json(self) -> str:
        """Write it as `config.json` holds it."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> StackConfig:
        """Read what `to_json` wrote.

        Raises:
            ValueError: It is not JSON, a name is missing or unknown, or a size is impossible.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object, found {type(values).__name__}")  # noqa: TRY004  as promised
        try:
            return cls(**values)
        except TypeError as error:  # a missing or an unknown name
            raise ValueError(str(error)) from None
