"""What cannot work is told before anything is learned, with what to change."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from cellstream.cells import StackConfig
from cellstream.errors import RecipeInvalid, TrainingFailed
from cellstream.training import load_recipe, train
from cellstream.training.learner import Learner
from cellstream.training.preflight import check_disk, check_memory, memory_bytes

SHIPPED = StackConfig(cell="lstm", layers=2, hidden_size=384, embedding_size=64, vocabulary_size=256)
VAST = StackConfig(cell="lstm", layers=2, hidden_size=1_000_000, embedding_size=64, vocabulary_size=256)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"training.window": 5000}, r"training\.batch_rows, training\.window: .* need 40,001"),
        ({"training.batch_rows": 5000}, r"training\.batch_rows, training\.window: .* need 80,001"),
        ({"model.hidden_size": 1_000_000}, r"model: [\d,]+ weights .* GB of memory; this machine has"),
        ({"training.device": "cuda"}, r"training\.device: expected a GPU, PyTorch finds none"),
    ],
)
def test_what_cannot_be_learned_is_refused_first(
    recipe_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, object], message: str
) -> None:
    """No network is made, no trial run, no save written."""
    monkeypatch.setattr(Learner, "__init__", None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # whatever machine tests this
    runs = recipe_path.parent / "runs"
    with pytest.raises(RecipeInvalid, match=message):
        train(recipe_path, runs_directory=runs, console=Console(file=io.StringIO()), overrides=overrides)
    assert not [path for path in runs.rglob("*") if path.is_file() and path.name != ".lock"]


def test_memory_is_judged_by_the_least_that_is_needed(recipe_path: Path) -> None:
    """The shipped network learns in 700 MB, measured; a bound above that would refuse what works."""
    recipe = load_recipe(recipe_path, {"training.batch_rows": 64, "training.window": 64})
    check_memory(SHIPPED, recipe, 700_000_000)
    with pytest.raises(RecipeInvalid, match="Make hidden_size, batch_rows or window smaller"):
        check_memory(SHIPPED, recipe, 50_000_000)
    assert memory_bytes("cpu") > 100_000_000


def test_a_disk_without_room_for_the_saves_is_told(tmp_path: Path) -> None:
    """No disk of today has room for eight trillion weights."""
    check_disk(SHIPPED, tmp_path)
    with pytest.raises(TrainingFailed, match=r"has [\d,.]+ [MG]B free; .* need [\d,.]+ GB"):
        check_disk(VAST, tmp_path)
