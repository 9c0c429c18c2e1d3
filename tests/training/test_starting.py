"""A run that begins with a model that has learned already, in place of drawn weights."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cellstream.cells.checkpoint import Checkpoint, load_checkpoint
from cellstream.cells.stack import FusedStack, load_weights
from cellstream.errors import RecipeInvalid, TrainingFailed
from cellstream.export import export, read_checkpoint
from cellstream.training import load_recipe, train
from cellstream.training.data import load_splits
from cellstream.training.measure import bits_per_character

SHORT = {"training.tokens": 1280, "training.evaluations": 1}
STILL = {**SHORT, "training.learning_rate": 1e-30, "training.weight_decay": 0}
"""Nothing moves, so that what is kept is what was begun with."""


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[[Path], Path]) -> Path:
    """The checkpoint of a model that has learned a little."""
    folder = tmp_path_factory.mktemp("learned")
    changes = {**SHORT, "data.tokenizer": "characters"}
    return train(write_recipe(folder), runs_directory=folder, console=quiet(), overrides=changes)


def quiet() -> Console:
    """Nobody reads it."""
    return Console(file=io.StringIO())


def started(recipe_path: Path | None, start: Checkpoint, runs: Path, **more: Any) -> Checkpoint:
    """What a run leaves."""
    overrides = {"data.tokenizer": "characters", **more.pop("overrides", STILL)}
    return load_checkpoint(
        train(recipe_path, start=start, runs_directory=runs, console=quiet(), overrides=overrides, **more)
    )


def test_a_run_begins_with_the_weights_it_is_given(learned: Path, recipe_path: Path, tmp_path: Path) -> None:
    """A checkpoint's own bits; a version's up to biases that the export has added up."""
    start = load_checkpoint(learned)
    kept = started(recipe_path, start, tmp_path)
    for name, weight in start.weights.items():
        np.testing.assert_array_equal(kept.weights[name], weight)
    card = (tmp_path / "tale" / "checkpoint" / "CARD.md").read_text()
    assert "Begun with the weights of `tale`, which had learned from 1,280 tokens (SHA-256 `" in " ".join(
        card.split()
    )

    version = read_checkpoint(export(learned, tmp_path / "models"))
    kept = started(recipe_path, version, tmp_path, restart=True)
    model = FusedStack(start.config)
    piece = load_splits(load_recipe(recipe_path, {"data.tokenizer": "characters"}).data, tmp_path).heldout[0]
    load_weights(model, start.weights)
    expected = bits_per_character(model, piece)
    assert kept.record.metrics["heldout_bits_per_character"] == pytest.approx(expected, rel=1e-6)


def test_another_text_is_read_with_the_models_own_tokeniser(learned: Path, tmp_path: Path) -> None:
    """No recipe needed: sizes and tokens are the model's, whatever letters the new text has."""
    start = load_checkpoint(learned)
    (tmp_path / "other.txt").write_text("Once upon a king there was a time. " * 300)
    kept = started(
        None, start, tmp_path, text=tmp_path / "other.txt", overrides={**STILL, "training.batch_rows": 4}
    )
    assert kept.record.name == "other"
    assert (kept.config.hidden_size, kept.config.layers) == (16, 2)
    assert kept.tokenizer is not None
    assert start.tokenizer is not None
    assert kept.tokenizer.to_json() == start.tokenizer.to_json()

    (tmp_path / "strange.txt").write_text("Ωνχε υπον α τιμε. " * 300)
    with pytest.raises(TrainingFailed, match="the bytes tokeniser has them all"):
        started(None, start, tmp_path, text=tmp_path / "strange.txt")


def test_a_run_goes_on_only_from_the_start_that_it_had(
    learned: Path, recipe_path: Path, tmp_path: Path
) -> None:
    """Another start is another curve; so is none."""
    start = load_checkpoint(learned)

    class Stop(Exception):
        """In the middle."""

    ticks = itertools.count()

    def clock() -> float:
        if (tick := next(ticks)) == 40:
            raise Stop
        return float(tick)

    more = {"training.save_minutes": 0, "data.tokenizer": "characters", "training.tokens": 12_800}
    with pytest.raises(Stop):
        started(recipe_path, start, tmp_path, overrides=more, clock=clock)
    with pytest.raises(TrainingFailed, match=r"it started from was '[0-9a-f]{64}', is not there"):
        train(recipe_path, runs_directory=tmp_path, console=quiet(), overrides=more, resume=True)
    resumed = started(recipe_path, start, tmp_path, overrides=more, resume=True)
    whole = started(recipe_path, start, tmp_path / "whole", overrides=more)
    for name, weight in whole.weights.items():
        np.testing.assert_array_equal(resumed.weights[name], weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.hidden_size": 8},
            r"model\.hidden_size: tale, which training shall start from, has 16; found 8",
        ),
        ({"model.cell": "gru"}, r"model\.cell: tale, .* has lstm; found gru"),
        ({"data.tokenizer": "bytes"}, r"data\.tokenizer: tale, .* has characters; found bytes"),
    ],
)
def test_a_recipe_of_another_model_is_refused(
    learned: Path, recipe_path: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Before anything is read; the message names the key."""
    with pytest.raises(RecipeInvalid, match=message):
        started(recipe_path, load_checkpoint(learned), tmp_path, overrides={**STILL, **changes})
