"""From a recipe to a model that can be served, by the commands that the README names."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Start = Callable[..., subprocess.Popen[str]]

RECIPE = """
name = "tale"

[data]
text = "tale.txt"

[model]
cell = "lstm"
layers = 1
hidden_size = 8
embedding_size = 4

[training]
tokens = 2000
batch_rows = 4
window = 16
precision = "float32"
evaluations = 1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """A recipe of seconds, beside its text."""
    (tmp_path / "tale.txt").write_text("Once upon a time there was a king. " * 400)
    (tmp_path / "tale.toml").write_text(RECIPE)
    return "tale.toml"


def test_a_recipe_becomes_a_model(run: Run, recipe: str, tmp_path: Path) -> None:
    """Each command prints what the next one takes: train, export, inspect."""
    trained = run("train", recipe, "--set", "training.tokens=3000", "--set", "name=other-tale", "--json")
    assert trained.code == 0, trained.err
    checkpoint = trained.json()[0]["checkpoint"]
    assert Path(checkpoint).parts[:2] == ("runs", "other-tale")

    exported = run("export", checkpoint)
    assert exported.code == 0, exported.err
    assert exported.err.endswith("Next: cellstream serve --models models --default-model other-tale\n")

    shown = run("inspect", "other-tale")
    assert shown.code == 0, shown.err
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert lines[0] == "other-tale/1 in models/other-tale/1"
    assert {"What it was measured at", "What its export proved"} <= set(lines)

    further = run("train", recipe, "--start", "models/other-tale/1", "--set", "name=further")
    assert further.code == 0, further.err
    card = (tmp_path / "runs" / "further" / "checkpoint" / "CARD.md").read_text()
    assert "Begun with the weights of `other-tale`" in card

    small = run("export", "models/other-tale/1", "--weights", "int8", "--recipe", recipe, "--json")
    assert small.code == 0, small.err
    assert small.json() == [{"version": "models/other-tale/2"}]
    proof = run("inspect", "other-tale", "--json").json()[0]["manifest"]["proof"]
    trained_at = run("inspect", "other-tale/1", "--json").json()[0]["manifest"]["metrics"]
    served = [proof[f"served_{form}_bits_per_character"] for form in ("float32", "int8")]
    assert served == pytest.approx([trained_at["heldout_bits_per_character"]] * 2, rel=0.01)
    assert served[0] == pytest.approx(trained_at["heldout_bits_per_character"], rel=1e-5)


def test_a_text_is_enough(run: Run, recipe: str, tmp_path: Path) -> None:
    """No recipe has to be written; what was left out is told, and a text that is none ends it at once."""
    (tmp_path / "tales").mkdir()
    (tmp_path / "tale.txt").rename(tmp_path / "tales" / "one.txt")
    (tmp_path / "tales" / "picture.png").write_bytes(b"\x89PNG\x00")
    small = ("model.hidden_size=8", "training.tokens=3000", "training.threads=1", "training.evaluations=1")
    changes = [word for change in small for word in ("--set", change)]
    trained = run("train", "--text", "tales", *changes)
    assert trained.code == 0, trained.err
    assert "Left out, because they are no UTF-8: picture.png (byte 4 is NUL: " in trained.out
    assert trained.err.endswith("Next: cellstream export runs/tales/checkpoint\n")

    refused = run("train", recipe, "--text", "tales/picture.png")
    assert refused.code == 1
    assert "byte 4 is NUL" in " ".join(refused.err.split())
    assert not (tmp_path / "runs" / "tale").exists()


def test_nothing_to_train_on_is_wrong_use(run: Run) -> None:
    """Code 2, and both ways to go on; the same for what is not there."""
    for arguments, said in (
        ((), "give a recipe, or a text by --text"),
        (("nowhere.toml",), "file 'nowhere.toml' does not exist"),
        (("--text", "nowhere"), "Path 'nowhere' does not exist"),
    ):
        refused = run("train", *arguments)
        assert refused.code == 2
        assert said.lower() in " ".join(refused.err.replace("│", "").split()).lower()


def test_a_run_that_is_told_to_end_goes_on(run: Run, start: Start, recipe: str) -> None:
    """SIGTERM, as from a scheduler that needs the machine: saved, code 143; then on to the end."""
    long = ("train", recipe, "--set", "training.tokens=40000", "--set", "training.evaluations=8")
    trained = start(*long)
    assert trained.stdout is not None
    assert any(line.startswith("validation") for line in trained.stdout)
    trained.send_signal(signal.SIGTERM)
    told, _ = trained.communicate(timeout=60)
    assert trained.returncode == 143
    assert "Stopped. The best checkpoint so far is at" in told

    refused = run(*long)
    assert refused.code == 1
    assert "holds an unfinished run" in refused.err
    resumed = run(*long, "--resume")
    assert resumed.code == 0, resumed.err
    assert resumed.out.startswith("Reading the text ...\nGoing on from token ")
    assert "Held out: " in resumed.out


def test_going_on_and_throwing_away_exclude_each_other(run: Run, recipe: str) -> None:
    """Code 2: nobody can mean both."""
    assert run("train", recipe, "--resume", "--restart").code == 2


def test_a_wrong_recipe_says_what_was_expected(run: Run, recipe: str) -> None:
    """Before anything is trained, and with code 1: the usage was right, the file was not."""
    refused = run("train", recipe, "--set", "model.layers=0")
    assert (refused.code, refused.out) == (1, "")
    assert "model.layers" in refused.err
    assert refused.err.endswith("(RECIPE_INVALID)\n")


def test_a_change_without_a_value_is_wrong_use(run: Run, recipe: str) -> None:
    """Code 2, and what it should look like."""
    refused = run("train", recipe, "--set", "training.tokens")
    assert refused.code == 2
    assert "KEY=VALUE" in refused.err


def test_what_is_no_checkpoint_is_not_exported(run: Run) -> None:
    """The message names the folder, and nothing is written."""
    refused = run("export", "runs/nothing/checkpoint")
    assert refused.code == 1
    assert "runs/nothing/checkpoint" in refused.err
    assert refused.err.endswith("(CHECKPOINT_INVALID)\n")
