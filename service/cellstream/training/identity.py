"""What makes a run the run that it is: going on with anything else would not be the same curve."""

from __future__ import annotations

import hashlib
from typing import Any

from cellstream.cells.checkpoint import Checkpoint
from cellstream.training.data import Splits
from cellstream.training.recipe import Recipe
from cellstream.training.start import weights_sha256

_FREE = {"data.text", "training.save_minutes"}
"""Keys that change nothing that is learned. Of a text its digest counts, not the path to it."""


def identity(recipe: Recipe, splits: Splits, start: Checkpoint | None = None) -> dict[str, Any]:
    """Give all that a run depends on, by name: keys of the recipe, digests of the texts, its start."""
    named = {key: value for key, value in _flat(recipe.model_dump(mode="json")).items() if key not in _FREE}
    for piece in (splits.training, splits.validation, *splits.heldout):
        named[f"the SHA-256 of the text {piece.name!r}"] = _sha256(piece.text)
    # The tokens follow from text and tokeniser.
    named["the SHA-256 of the tokeniser"] = _sha256(splits.tokenizer.to_json())
    if start is not None:
        named["the SHA-256 of the weights that it started from"] = weights_sha256(start)
    return named


def differences(
    before: dict[str, Any], recipe: Recipe, splits: Splits, start: Checkpoint | None = None
) -> list[str]:
    """Say what changed: `training.window was 64, is 32`.

    Args:
        before: An identity; that of an older version lacks keys that came since, as if at their defaults.
        recipe: What there is now.
        splits: The texts now.
        start: What it starts from now.
    """
    now = identity(recipe, splits, start)
    chosen = _flat(recipe.model_dump(mode="json", exclude_defaults=True))
    new = _flat(recipe.model_dump(mode="json")).keys() - before.keys() - chosen.keys()
    return [
        f"{key} was {_shown(before, key)}, is {_shown(now, key)}"
        for key in sorted((before.keys() | now.keys()) - new)
        if before.get(key) != now.get(key)
    ]


def _shown(named: dict[str, Any], key: str) -> str:
    value = named.get(key)
    return "not there" if value is None else repr(value)


def _flat(table: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = value
    return flat


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
