"""Weights in 8 bits: what the bytes mean, that no row sees another, and that it is said."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from cellstream.cells import StackConfig
from cellstream.errors import ExportUnproven
from cellstream.export import write_version
from cellstream.export.building import build
from cellstream.export.folding import fold
from cellstream.export.proof import prove
from cellstream.export.quantizing import quantize
from cellstream.export.running import Exported
from cellstream.repository import load_version


@pytest.fixture(scope="module")
def wide() -> StackConfig:
    """A layer of more units than a block has numbers, and no multiple of it."""
    return StackConfig(cell="lstm", layers=2, hidden_size=72, embedding_size=8, vocabulary_size=256)


def test_bytes_and_scales_stand_for_the_weights(config, random_weights) -> None:
    """By the operator's specification: (byte − 128) × scale, within half a scale of the weight."""
    folded = fold(config, random_weights(config))
    stored = quantize(folded)
    for name, weight in folded.items():
        if not name.endswith("weight"):
            assert stored[name] is weight
            continue
        bytes_, scales = stored[f"{name}.bytes"], stored[f"{name}.scales"]
        assert bytes_.dtype == np.uint8
        assert bytes_.shape == (weight.shape[1], 1, 64)
        for column in range(weight.shape[1]):
            for row in range(weight.shape[0]):
                meant = (int(bytes_[column, row // 64, row % 64]) - 128) * scales[column, row // 64]
                assert abs(meant - weight[row, column]) <= scales[column, row // 64] * 0.5001


def test_a_block_of_zeros_stays_zero() -> None:
    """No division by zero, and no noise where a weight was pruned away."""
    stored = quantize({"head.weight": np.zeros((3, 2), np.float32)})
    assert (stored["head.weight.bytes"] == 128).all()
    assert (stored["head.weight.scales"] == 0).all()


def test_operator_multiplies_as_specified(wide, random_weights, tmp_path) -> None:
    """The served head is h·W + b with the rounded W, up to the rounding of h to 8 bits in each block."""
    build(wide, random_weights(wide), "int8").write(tmp_path)
    stored = quantize(fold(wide, random_weights(wide)))
    bytes_ = stored["head.weight.bytes"].astype(np.float64)
    rounded = ((bytes_ - 128) * stored["head.weight.scales"][:, :, np.newaxis]).reshape(256, 128)[:, :72].T
    hidden = np.random.default_rng(3).uniform(-1, 1, (5, 2, 72)).astype(np.float32)
    logits = hidden[:, 1] @ rounded + stored["head.bias"]
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = Exported(wide, tmp_path).head(hidden)
    # h lies below 1: a step of its rounding is 1/127, its mean error a quarter of that, over 72 products.
    bound = 4 * np.sqrt(72) * np.abs(rounded).max() / 127 / 2
    np.testing.assert_allclose(found, expected, atol=bound)
    assert np.abs(found - expected).max() > 1e-5  # or h was not rounded, and the claims about cost are wrong


def test_rows_do_not_see_each_other(wide, random_weights, tmp_path) -> None:
    """Bit for bit at B = 1 to 512, and with a neighbour that is a thousand times as large.

    Dynamic 8-bit schemes take one scale for the whole batch: one session's data would reach another's answer.
    """
    build(wide, random_weights(wide), "int8").write(tmp_path)
    exported, random = Exported(wide, tmp_path), np.random.default_rng(4)
    tokens = random.integers(0, 256, (3, 512))
    states = {name: random.uniform(-1, 1, (512, 2, 72)).astype(np.float32) for name in wide.states}
    whole = exported.run(tokens, states)
    states["hidden"][511] *= 1000
    for rows in (
        1,
        2,
        3,
        4,
        5,
        7,
        8,
        9,
        15,
        16,
        17,
        31,
        32,
        33,
        63,
        64,
        65,
        127,
        128,
        129,
        255,
        256,
        511,
        512,
    ):
        chosen = np.arange(rows)
        if rows < 512:
            chosen = np.append(random.choice(511, rows - 1, replace=False), 511)[::-1]
        found = exported.run(tokens[:, chosen], {name: state[chosen] for name, state in states.items()})
        expected, ours = whole.rows(chosen), np.flatnonzero(chosen != 511)
        for name, array in found.arrays.items():
            theirs = expected.arrays[name]
            axis = 1 if name in found.steps else 0
            assert array.take(ours, axis).tobytes() == theirs.take(ours, axis).tobytes(), (name, rows)


def test_every_cell_is_proven(config, random_weights, tmp_path) -> None:
    """Cuts and batches bit for bit as in float32; the difference from PyTorch is told, and is not nothing."""
    weights = random_weights(config)
    build(config, weights, "int8").write(tmp_path)
    proof = prove(config, weights, tmp_path, weights_dtype="int8")
    assert proof["cuts_bit_exact"] is True
    assert proof["batches_bit_exact"] is True
    assert 1e-4 < proof["largest_difference_prediction"] < 0.1
    with pytest.raises(ExportUnproven, match="expected a difference of at most 1e-05"):
        prove(config, weights, tmp_path)


def test_gates_that_changed_places_fail_the_proof(wide, random_weights, tmp_path) -> None:
    """The wider tolerance is still far below what a real mistake makes."""
    weights = random_weights(wide)
    swapped = {name: weight.copy() for name, weight in weights.items()}
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        i, f, g, o = np.split(weights[f"layers.1.{name}"], 4)
        swapped[f"layers.1.{name}"] = np.concatenate([f, i, g, o])
    build(wide, swapped, "int8").write(tmp_path)
    with pytest.raises(ExportUnproven, match="against the equations: expected a difference of at most 5e-01"):
        prove(wide, weights, tmp_path, weights_dtype="int8")


def test_version_says_so_and_has_no_portable_form(wide, random_weights, tmp_path) -> None:
    """A server loads it as any other, and it is far smaller, though 72 units fill two blocks of 64."""
    weights = random_weights(wide)
    whole, small = (
        write_version(tmp_path, wide, weights, name="tiny", version=number, weights_dtype=dtype)
        for number, dtype in ((1, "float32"), (2, "int8"))
    )
    manifest = load_version(small).manifest
    assert (manifest.weights_dtype, manifest.sequence_graph) == ("int8", None)
    assert load_version(whole).manifest.weights_dtype == "float32"
    assert not (small / "sequence.onnx").exists()
    table = 256 * 4 * 72 * 4  # stays in float32
    sizes = [(path / "weights.bin").stat().st_size - table for path in (whole, small)]
    assert sizes[1] < sizes[0] / 2
    for file in ("model.onnx", "head.onnx"):
        onnx.checker.check_model(small / file, full_check=True)
