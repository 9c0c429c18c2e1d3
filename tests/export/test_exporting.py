"""From a checkpoint to a version: what training recorded goes along, and nothing unproven is written."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from cellstream.cells.checkpoint import Checkpoint, Record, save_checkpoint
from cellstream.errors import CheckpointInvalid, ExportUnproven, SetupError
from cellstream.export import building, export
from cellstream.repository import Repository, load_version
from cellstream.text import CharacterTokenizer, load_tokenizer


@pytest.fixture
def checkpoint(lstm, random_weights, tmp_path):
    """A checkpoint of a model over seven characters, as training leaves it."""
    directory = tmp_path / "runs" / "letters"
    record = Record(
        name="letters", training_data_sha256="cd" * 32, metrics={"heldout_bits_per_character": 2.25}
    )
    save_checkpoint(
        directory,
        Checkpoint(
            config=lstm, weights=random_weights(lstm), tokenizer=CharacterTokenizer("abcdefg"), record=record
        ),
        beside={"CARD.md": b"# Letters\n", "report.png": b"png", "notes.txt": b"ours"},
    )
    return directory


def test_export_carries_over_what_training_recorded(checkpoint, tmp_path) -> None:
    """Card, report, tokeniser, metrics and the digest of the data stay with the model."""
    said = io.StringIO()
    path = export(checkpoint, tmp_path / "models", console=Console(file=said))
    assert path == tmp_path / "models" / "letters" / "1"
    version = load_version(path)
    assert version.manifest.metrics == {"heldout_bits_per_character": 2.25}
    assert version.manifest.training_data_sha256 == "cd" * 32
    assert version.manifest.proof["batches_bit_exact"] is True
    assert version.load_card().startswith("# Letters\n\n## As served\n")
    assert version.tokenizer is not None
    assert load_tokenizer(version.tokenizer).encode("gab") == [6, 0, 1]
    assert (path / "report.png").read_bytes() == b"png"
    assert not (path / "notes.txt").exists()
    assert "Proof:" in said.getvalue()


def test_each_export_is_the_next_version(checkpoint, tmp_path) -> None:
    """Whoever trains again and exports again gets a new version, which a server takes by default."""
    models = tmp_path / "models"
    for expected in (1, 2):
        assert export(checkpoint, models).name == str(expected)
    assert export(checkpoint, models, version=7).name == "7"
    assert export(checkpoint, models).name == "8"
    assert export(checkpoint, models, name="other").parts[-2:] == ("other", "1")
    assert Repository(models).versions("letters") == (1, 2, 7, 8)
    with pytest.raises(SetupError, match="letters/7 is there already"):
        export(checkpoint, models, version=7)


def test_unproven_graph_is_not_written(checkpoint, tmp_path, monkeypatch) -> None:
    """A graph whose weights differ from the model's in one number never gets a version's name."""
    honest = building.fold

    def perturbed(config, weights):
        tensors = honest(config, weights)
        tensors["layers.1.weight"][3, 5] += np.float32(0.01)
        return tensors

    monkeypatch.setattr(building, "fold", perturbed)
    with pytest.raises(ExportUnproven, match=r"against the equations: expected .* 1e-05, found"):
        export(checkpoint, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_tokeniser_of_another_model_is_refused(checkpoint, tmp_path) -> None:
    """Its tokens beyond the model's vocabulary would be refused at serving, one user at a time."""
    (checkpoint / "tokenizer.json").write_text(CharacterTokenizer("abcdefgh").to_json())
    with pytest.raises(
        CheckpointInvalid, match=r"tokenizer\.json: expected a tokeniser of 7 tokens, found one of 8"
    ):
        export(checkpoint, tmp_path / "models")


def test_checkpoint_that_is_not_there_is_told(tmp_path) -> None:
    """The message names the folder, and how such a folder comes to be."""
    with pytest.raises(CheckpointInvalid, match="runs/none is not there; `cellstream train"):
        export(tmp_path / "runs" / "none", tmp_path / "models")
