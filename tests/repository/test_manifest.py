"""A manifest that contradicts itself, or that is from another time, is refused with every problem named."""

from __future__ import annotations

import pytest

from cellstream.errors import ManifestInvalid
from cellstream.repository import load_version


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), "format: Input should be 1, found 2"),
        (lambda m: m.pop("states"), "states: Field required"),
        (lambda m: m.update(states=[]), "states: Tuple should have at least 1 item"),
        (lambda m: m.update(flavour="new"), "flavour: Extra inputs are not permitted, found 'new'"),
        (lambda m: m.update(version=0), "version: Input should be greater than 0, found 0"),
        (lambda m: m.update(name="../evil"), "name: String should match pattern"),
        (lambda m: m.update(step_graph="../model.onnx"), "step_graph: String should match pattern"),
        (lambda m: m["files"].update({"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}}), "files./etc/passwd"),
        (
            lambda m: m["files"]["weights.bin"].update(sha256="no"),
            "files.weights.bin.sha256: String should match",
        ),
        (lambda m: m["states"][0].update(dtype="float16"), "states.0.dtype: Input should be 'float32'"),
        (lambda m: m["states"][0].update(batch_axis=3), "batch_axis 3 is beyond the 3 axes of the tensor"),
        (lambda m: m["input"].update(vocabulary_size=None), "vocabulary_size belongs to tokens"),
        (lambda m: m["input"].update(features=3), "features belongs to values"),
        (lambda m: m["input"].update(kind="values"), "vocabulary_size belongs to tokens"),
        (lambda m: m.update(head_graph="tail.onnx"), "tail.onnx is not among the files"),
        (lambda m: m.update(tokenizer="words.json"), "words.json is not among the files"),
        (
            lambda m: m["files"].update({"manifest.json": {"sha256": "0" * 64, "bytes": 1}}),
            "manifest.json is among the files",
        ),
        (lambda m: m["states"][1].update(input="hidden"), "two graph inputs are called hidden"),
        (lambda m: m.update(gates_switch="tokens"), "two graph inputs are called tokens"),
        (lambda m: m["gates"][0].update(name="input"), "two graph outputs are called input"),
        (lambda m: m["states"][1].update(name="hidden"), "two states are called hidden"),
        (lambda m: m["outputs"][0].update(shape=[255]), "log-probabilities of 256 tokens"),
        (lambda m: m["metrics"].update(loss=None), "metrics.loss: Input should be a valid number"),
    ],
)
def test_contradiction_is_named(directory, change_manifest, change, message) -> None:
    """Whoever writes manifests for models of their own learns what is wrong from the message alone."""
    change_manifest(change)
    with pytest.raises(ManifestInvalid) as caught:
        load_version(directory)
    assert message in caught.value.message
    assert str(directory / "manifest.json") in caught.value.message


def test_every_problem_is_named_at_once(directory, change_manifest) -> None:
    """One try, all errors."""
    change_manifest(lambda values: values.update(format=2, version=-1))
    with pytest.raises(ManifestInvalid, match=r"format: .*; version: "):
        load_version(directory)
