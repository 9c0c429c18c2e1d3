"""The recipe of whoever has a text and none: a small LSTM, ten minutes at most, less where it overfits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

NAME_LENGTH_MAX = 64
"""Of a model's name."""


def default_recipe(text: Path) -> dict[str, Any]:
    """Give the recipe as a file would hold it, but for its data.

    Args:
        text: Its file or folder gives the model its name.
    """
    return {
        "name": model_name(text.resolve().stem),
        "model": {
            "cell": "lstm",
            "layers": 2,
            "hidden_size": 256,
            "embedding_size": 64,
            "dropout": 0.2,
        },
        "training": {
            "minutes": 10,
            "batch_rows": 32,
            "window": 64,
            "output_dropout": 0.2,
            "averaging": 0.998,
            "evaluations": 40,
            "patience": 6,
        },
    }


def model_name(words: str) -> str:
    """Make a name for a model of any words: `My Tale (2)` becomes `my-tale-2`."""
    name = re.sub(r"[^a-z0-9._-]+", "-", words.lower()).strip("-._")
    return name[:NAME_LENGTH_MAX].rstrip("-._") or "own-text"
