"""A version is written whole or not at all, and is what a server accepts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from cellstream.errors import ManifestInvalid, SetupError
from cellstream.export import write_version
from cellstream.repository import Manifest, load_version


def everything_in(directory: Path) -> list[str]:
    """Every path below, hidden ones too."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_version_says_what_it_is(lstm, random_weights, tmp_path) -> None:
    """The manifest alone tells a server what the graphs take and give, and people what the model is."""
    path = write_version(
        tmp_path,
        lstm,
        random_weights(lstm),
        name="tiny",
        version=3,
        tokenizer_json="{}",
        beside={"CARD.md": b"# Tiny\n", "report.png": b"png"},
        metrics={"heldout_bits_per_character": 1.5},
        training_data_sha256="ab" * 32,
        prove=lambda directory: {"model_bytes": (directory / "model.onnx").stat().st_size},
    )
    assert path == tmp_path / "tiny" / "3"
    manifest = load_version(path).manifest
    assert (manifest.name, manifest.version) == ("tiny", 3)
    assert (manifest.input.name, manifest.input.kind, manifest.input.vocabulary_size) == (
        "tokens",
        "tokens",
        7,
    )
    assert [(output.name, output.shape) for output in manifest.outputs] == [("log_probabilities", (7,))]
    assert [(state.input, state.output, state.shape) for state in manifest.states] == [
        ("hidden", "hidden_next", (3, 10)),
        ("cell", "cell_next", (3, 10)),
    ]
    assert [gate.name for gate in manifest.gates] == ["forget", "input", "output", "candidate"]
    assert manifest.gates_switch == "with_gates"
    assert manifest.architecture.parameters == sum(weight.size for weight in random_weights(lstm).values())
    assert manifest.metrics == {"heldout_bits_per_character": 1.5}
    assert manifest.training_data_sha256 == "ab" * 32
    assert manifest.proof == {"model_bytes": (path / "model.onnx").stat().st_size}
    assert {"numpy", "onnx", "onnxruntime"} <= manifest.versions.keys()
    assert manifest.tokenizer == "tokenizer.json"
    assert set(manifest.files) == {
        "CARD.md",
        "head.onnx",
        "model.onnx",
        "report.png",
        "sequence.onnx",
        "tokenizer.json",
        "weights.bin",
    }
    for name, file in manifest.files.items():
        assert file.sha256 == hashlib.sha256((path / name).read_bytes()).hexdigest()


def test_every_model_is_one_that_a_server_accepts(config, random_weights, tmp_path) -> None:
    """The manifest that export writes and the signature that ONNX Runtime sees agree, for every cell."""
    path = write_version(tmp_path, config, random_weights(config), name="any")
    version = load_version(path)
    assert version.manifest.tokenizer is None
    assert (version.manifest.gates_switch is None) == (config.cell == "rnn")


def test_writing_twice_gives_the_same_bytes(config, random_weights, tmp_path) -> None:
    """A version can be rebuilt and compared: only the manifest knows when it was made."""
    weights = random_weights(config)
    first, second = (
        write_version(tmp_path, config, weights, name="same", version=version) for version in (1, 2)
    )
    for file in ("model.onnx", "head.onnx", "sequence.onnx", "weights.bin"):
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_version_that_is_there_is_never_changed(lstm, random_weights, tmp_path) -> None:
    """Sessions and snapshots of a running server rely on a version's digests."""
    path = write_version(tmp_path, lstm, random_weights(lstm), name="tiny")
    before = {file: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(SetupError, match="tiny/1 is there already"):
        write_version(tmp_path, lstm, random_weights(lstm, seed=1), name="tiny")
    assert {file: file.read_bytes() for file in path.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny"]


def test_version_that_appears_meanwhile_is_not_changed(lstm, random_weights, tmp_path) -> None:
    """Two exports at once: the slower one is told, and leaves nothing behind."""
    weights = random_weights(lstm)

    def be_slow(directory: Path) -> dict[str, float]:
        write_version(tmp_path, lstm, weights, name="tiny", metrics={"first": 1})
        return {}

    with pytest.raises(SetupError, match="is there already"):
        write_version(tmp_path, lstm, weights, name="tiny", prove=be_slow)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny"]
    assert load_version(tmp_path / "tiny" / "1").manifest.metrics == {"first": 1}


@pytest.mark.parametrize(
    "interruption", [SetupError("unproven"), KeyboardInterrupt()], ids=["error", "ctrl-c"]
)
def test_nothing_is_left_of_an_export_that_fails(lstm, random_weights, tmp_path, interruption) -> None:
    """A failed proof, or a user who gives up, leaves the models as they were."""

    def fail(directory: Path) -> dict[str, float]:
        raise interruption

    with pytest.raises(type(interruption)):
        write_version(tmp_path, lstm, random_weights(lstm), name="tiny", prove=fail)
    assert everything_in(tmp_path) == []


def test_a_version_is_on_the_disk_before_it_has_its_name(lstm, random_weights, tmp_path, monkeypatch) -> None:
    """A disk that cannot keep it says so in time: no server finds a version that is not whole."""

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_version(tmp_path, lstm, random_weights(lstm), name="tiny")
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "version"), [("Tiny", 1), ("../tiny", 1), ("", 1), ("t" * 65, 1), ("tiny", 0), ("tiny\n", 1)]
)
def test_names_that_a_server_would_not_find_are_refused(
    lstm, random_weights, tmp_path, name, version
) -> None:
    """Nothing is written where no server looks, least of all outside of the models."""
    with pytest.raises(SetupError, match="expected a name"):
        write_version(tmp_path / "models", lstm, random_weights(lstm), name=name, version=version)
    assert everything_in(tmp_path) == []


def test_metrics_that_are_no_numbers_are_refused(lstm, random_weights, tmp_path) -> None:
    """JSON has no NaN: a manifest that held one could not be read back."""
    with pytest.raises(ManifestInvalid, match=r"metrics.loss: .*finite"):
        write_version(tmp_path, lstm, random_weights(lstm), name="tiny", metrics={"loss": float(np.nan)})
    assert everything_in(tmp_path) == []


def test_manifest_reads_back_as_it_was_written(lstm, random_weights, tmp_path) -> None:
    """Writing and reading are inverses."""
    path = write_version(
        tmp_path, lstm, random_weights(lstm), name="tiny", prove=lambda _: {"a": True, "b": 2.5}
    )
    manifest = load_version(path).manifest
    assert Manifest.from_json(manifest.to_json().encode(), where="here") == manifest
    assert manifest.proof == {"a": True, "b": 2.5}
