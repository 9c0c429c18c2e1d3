"""A version is made into other forms without its training."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cellstream.errors import CheckpointInvalid
from cellstream.export import export, write_version
from cellstream.export.folding import fold
from cellstream.export.unfolding import unfold
from cellstream.repository import load_version


def test_what_is_unfolded_folds_to_the_same(config, random_weights, tmp_path) -> None:
    """To the last bits: sums of biases are rounded once more."""
    weights = random_weights(config)
    version = load_version(write_version(tmp_path, config, weights, name="any"))
    checkpoint = unfold(version)
    again, before = fold(checkpoint.config, checkpoint.weights), fold(config, weights)
    assert again.keys() == before.keys()
    for name, tensor in before.items():
        np.testing.assert_allclose(again[name], tensor, rtol=1e-6, atol=1e-6, err_msg=name)
    if config.input == "tokens":
        np.testing.assert_array_equal(checkpoint.weights["embedding.weight"], weights["embedding.weight"])


@pytest.fixture
def older(lstm, random_weights, tmp_path):
    """A version as one was before there was a portable form."""
    directory = write_version(tmp_path / "models", lstm, random_weights(lstm), name="old")
    (directory / "sequence.onnx").unlink()
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["files"]["sequence.onnx"], manifest["sequence_graph"], manifest["weights_dtype"]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def test_older_version_gets_a_portable_form(older, tmp_path) -> None:
    """An embedding of the same size is found that makes the same table; the proof holds for it."""
    path = export(older, tmp_path / "models")
    assert path.parts[-2:] == ("old", "2")
    manifest = load_version(path).manifest
    assert manifest.sequence_graph == "sequence.onnx"
    assert manifest.architecture == load_version(older).manifest.architecture
    assert manifest.proof["sequence_largest_difference_pytorch"] <= 1e-5


def test_version_of_another_maker_is_told(older, tmp_path) -> None:
    """Whoever serves a model that `cellstream export` did not write cannot have other forms of it made."""
    manifest = json.loads((older / "manifest.json").read_text())
    manifest["architecture"]["cell"] = "other"
    (older / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointInvalid, match="expected a version that `cellstream export` wrote"):
        export(older, tmp_path / "models")


def test_version_in_8_bits_is_no_source(lstm, random_weights, tmp_path) -> None:
    """What is rounded away does not come back; the message says what to export instead."""
    directory = write_version(tmp_path, lstm, random_weights(lstm), name="small", weights_dtype="int8")
    with pytest.raises(CheckpointInvalid, match="expected weights in float32, found int8"):
        export(directory, tmp_path)
