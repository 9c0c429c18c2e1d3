"""What to train, on what, for how long: a TOML file, checked whole before anything runs."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from cellstream.cells.config import CellKind, StackConfig
from cellstream.cells.dropout import Dropout
from cellstream.errors import RecipeInvalid
from cellstream.text.bpe_tokenizer import VOCABULARY_SIZE_MIN
from cellstream.training.defaults import default_recipe

Precision = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda"]

VOCABULARY_SIZE_MAX = 65_536
"""A head of so many tokens is larger than any small network below it."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Part):
    """What is read.

    Attributes:
        corpus: `shakespeare`: the plays and poems that `corpus.py` fetches.
        text: A UTF-8 file of one's own instead, or a folder of them, beside the recipe or with a path from
            there. A twentieth of it is held out and a twentieth is for validation (`own_text.py`).
        tokenizer: `bytes` of UTF-8, the `characters` that the training text has, or `bpe`: runs of bytes that
            it has often.
        vocabulary_size: How many tokens `bpe` makes.
        validation: The works of the corpus that choose the best checkpoint.
        heldout: The works of the corpus that nothing sees before the last measurement.
    """

    corpus: Literal["shakespeare"] | None = None
    text: Path | None = None
    tokenizer: Literal["bytes", "characters", "bpe"] = "bytes"
    vocabulary_size: int | None = Field(default=None, ge=VOCABULARY_SIZE_MIN, le=VOCABULARY_SIZE_MAX)
    validation: tuple[str, ...] = ()
    heldout: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.corpus is None) == (self.text is None):
            raise ValueError("expected either corpus or text")
        if self.corpus and not (self.validation and self.heldout):
            raise ValueError("expected works of the corpus for validation and for heldout")
        if self.text and (self.validation or self.heldout):
            raise ValueError("expected no validation and no heldout beside a text of one's own")
        if (self.tokenizer == "bpe") != (self.vocabulary_size is not None):
            raise ValueError("expected a vocabulary_size beside the tokenizer bpe, and beside no other")
        if shared := set(self.validation) & set(self.heldout):
            raise ValueError(f"expected validation and heldout without a work in common, not {shared}")
        return self


class Model(_Part):
    """The network's sizes, as in `StackConfig`; the vocabulary is the tokeniser's."""

    cell: CellKind
    layers: PositiveInt
    hidden_size: PositiveInt
    embedding_size: PositiveInt
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def config(self, vocabulary_size: int) -> StackConfig:
        """Give the whole configuration."""
        return StackConfig(**self.model_dump(), vocabulary_size=vocabulary_size)


class Training(_Part):
    """How it learns.

    Attributes:
        tokens: How many tokens to learn from, repetitions counted.
        minutes: How long to learn. Given both, what is spent first ends it; either way the learning rate
            follows the share that is spent, so that its decay always ends whole.
        batch_rows: Places of the text that are read at the same time.
        window: Tokens of each place between two updates; the states are carried on.
        optimizer: `adamw` for all weights, or `muon` for the recurrence's matrices and AdamW for the rest.
        learning_rate: At the end of the warm-up.
        warmup_ratio: Share of the budget over which the learning rate rises.
        final_ratio: The last learning rate, as a share of the highest.
        weight_decay: Of either optimiser.
        embedding_dropout: Share of the embedding's rows hidden in each window: tokens it does not see there.
        recurrent_dropout: Share of each layer's hidden-to-hidden weights hidden in each window.
        output_dropout: Share of the last layer's outputs hidden from the head.
        locked_dropout: Whether model.dropout and output_dropout hide the same units at all steps of a window.
        label_smoothing: Share of the target that goes to all tokens alike, in the loss that is minimised; the
            loss that is told stays that of the text.
        averaging: Decay of a moving average of the weights after each update; the average is what is
            measured, kept and exported. 0: none; 0.999 remembers about a thousand updates.
        forget_bias: Added to the forget gates' bias of an LSTM before it learns.
        gradient_norm_max: Longer gradients are scaled down to this.
        precision: `float32`, `bfloat16` (autocast), or `auto`: whichever this machine trains faster with.
        threads: Of PyTorch; None: one or all, whichever this machine trains faster with.
        device: `cpu`, `cuda` (a GPU), or `auto`: a GPU if there is one.
        evaluations: How often validation is measured, and the best checkpoint kept.
        patience: Evaluations without a better one after which training stops early; None: never.
        save_minutes: Between two saves of the run, beside those at evaluations; a kill loses at most so much.
            0: a save after each update.
    """

    tokens: PositiveInt | None = None
    minutes: PositiveFloat | None = None
    batch_rows: PositiveInt = 64
    window: PositiveInt = 64
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: PositiveFloat = 4e-3
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    final_ratio: float = Field(default=0.02, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    embedding_dropout: float = Field(default=0.0, ge=0, lt=1)
    recurrent_dropout: float = Field(default=0.0, ge=0, lt=1)
    output_dropout: float = Field(default=0.0, ge=0, lt=1)
    locked_dropout: bool = False
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    averaging: float = Field(default=0.0, ge=0, lt=1)
    forget_bias: float = 1.0
    gradient_norm_max: PositiveFloat = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: PositiveInt | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    evaluations: PositiveInt = 10
    patience: PositiveInt | None = None
    save_minutes: float = Field(default=1.0, ge=0)

    @property
    def dropout(self) -> Dropout:
        """What is hidden beside the share between the layers."""
        return Dropout(
            embedding=self.embedding_dropout,
            recurrent=self.recurrent_dropout,
            output=self.output_dropout,
            locked=self.locked_dropout,
        )

    @model_validator(mode="after")
    def _a_budget(self) -> Self:
        if self.tokens is None and self.minutes is None:
            raise ValueError("expected tokens, or minutes, or both")
        return self


class Recipe(_Part):
    """All of it.

    Attributes:
        name: The model's name, and that of its directory of runs.
        seed: Of the weights, of dropout and of the order of reading.
        data: What is read.
        model: The network.
        training: How it learns.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    seed: int = Field(default=1, ge=0, lt=2**63)
    data: Data
    model: Model
    training: Training


def load_recipe(
    path: Path | None,
    overrides: Mapping[str, object] | None = None,
    *,
    text: Path | None = None,
    parts: Mapping[str, Mapping[str, object]] | None = None,
) -> Recipe:
    """Read a recipe.

    Args:
        path: The TOML file; None: the one of `defaults.py`, for `text`.
        overrides: Values that replace the file's, by dotted key: `{"training.minutes": 2}`.
        text: A file or folder in place of the data that the recipe names; its tokeniser stays.
        parts: Values that replace those of the recipe of `defaults.py`, by table.

    Raises:
        RecipeInvalid: It is not there, is not TOML, or a key is missing, unknown or impossible; the message
            names each key, what was expected and what was found.
    """
    values: dict[str, Any]
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecipeInvalid(f"{path}: {error}") from None
    elif text is not None:
        values = default_recipe(text)
        for name, part in (parts or {}).items():
            values[name] = {**values.get(name, {}), **part}
    else:
        raise RecipeInvalid("expected a recipe, or a text of one's own, or both; found neither")
    if text is not None:
        replaced = values.get("data")
        kept = replaced if isinstance(replaced, dict) else {}
        tokenizer = {key: kept[key] for key in ("tokenizer", "vocabulary_size") if key in kept}
        values["data"] = {**tokenizer, "text": text.absolute()}
    for key, value in (overrides or {}).items():
        *parents, last = key.split(".")
        part = values
        for parent in parents:
            part = part.setdefault(parent, {})
            if not isinstance(part, dict):
                raise RecipeInvalid(f"{key}: expected a table at {parent}, found {part!r}")
        part[last] = value
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"  {_problem(one)}" for one in error.errors())
        raise RecipeInvalid(f"{path or 'The default, so changed,'} is no recipe:\n{problems}") from None
    if recipe.data.text is not None and path is not None:
        data = recipe.data.model_copy(update={"text": path.parent / recipe.data.text})
        recipe = recipe.model_copy(update={"data": data})
    return recipe


def _problem(error: Mapping[str, object]) -> str:
    """One of pydantic's errors as: key, what was expected, what was found."""
    place = error["loc"]
    assert isinstance(place, tuple)
    key = ".".join(map(str, place)) or "recipe"
    match error["type"]:
        case "missing":
            return f"{key}: expected a value, found none"
        case "extra_forbidden":
            return f"{key}: expected no such key, found {error['input']!r}; {_keys_beside(place)}"
        case "value_error":  # ours: the message says it all
            return f"{key}: {str(error['msg']).removeprefix('Value error, ')}"
    message = str(error["msg"]).removeprefix("Input should be ")
    return f"{key}: expected {message}, found {error['input']!r}"


def _keys_beside(place: tuple[object, ...]) -> str:
    """Which keys there are in the table of one that is unknown."""
    table: Any = Recipe
    for key in place[:-1]:
        table = table.model_fields[key].annotation
    close = get_close_matches(str(place[-1]), table.model_fields, n=1)
    return f"did you mean {close[0]}?" if close else f"the keys here are {', '.join(table.model_fields)}"
