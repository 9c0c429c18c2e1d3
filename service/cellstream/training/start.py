"""What a run begins with in place of drawn weights: a model that has learned already."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from cellstream.cells.checkpoint import Checkpoint
from cellstream.cells.config import StackConfig
from cellstream.errors import RecipeInvalid
from cellstream.text import BpeTokenizer, ByteTokenizer, CharacterTokenizer, Tokenizer
from cellstream.training.recipe import Recipe


def recipe_parts(start: Checkpoint) -> dict[str, dict[str, Any]]:
    """Give the parts of a recipe that a model's own sizes and tokeniser decide.

    Raises:
        RecipeInvalid: It is a model of values, which no text trains.
    """
    kind = _kind(start.tokenizer)
    vocabulary = {"vocabulary_size": start.config.vocabulary_size} if kind == "bpe" else {}
    return {"model": _sizes(start.config), "data": {"tokenizer": kind, **vocabulary}}


def check_start(start: Checkpoint, recipe: Recipe) -> None:
    """See that a recipe is of the model that it shall begin with.

    Raises:
        RecipeInvalid: Another kind of tokeniser, other sizes, or a model of values.
    """
    kind, sizes = _kind(start.tokenizer), _sizes(start.config)
    if recipe.data.tokenizer != kind:
        raise RecipeInvalid(
            f"data.tokenizer: {start.record.name}, which training shall start from, has {kind}; found "
            f"{recipe.data.tokenizer}."
        )
    for key, size in sizes.items():
        if getattr(recipe.model, key) != size:
            raise RecipeInvalid(
                f"model.{key}: {start.record.name}, which training shall start from, has {size}; found "
                f"{getattr(recipe.model, key)}."
            )


def weights_sha256(start: Checkpoint) -> str:
    """Digest of the weights, in the order of their names."""
    digest = hashlib.sha256()
    for _, weight in sorted(start.weights.items()):
        digest.update(weight.tobytes())
    return digest.hexdigest()


def _sizes(config: StackConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("cell", "layers", "hidden_size", "embedding_size")}


def _kind(tokenizer: Tokenizer | None) -> Literal["bytes", "characters", "bpe"]:
    match tokenizer:
        case ByteTokenizer():
            return "bytes"
        case CharacterTokenizer():
            return "characters"
        case BpeTokenizer():
            return "bpe"
    raise RecipeInvalid("Training starts from a model of tokens; this one is of values.")
