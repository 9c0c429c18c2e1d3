"""The real graphs are compared with the manifest: what ONNX Runtime sees, not what a file claims."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto, helper

from cellstream.errors import RepositoryError, SignatureMismatch
from cellstream.repository import load_version


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["states"][1].update(shape=[2, 32]),
            "input cell: expected float32 [any, 2, 32], found float32 [any, 2, 16]",
        ),
        (
            lambda m: m["states"][1].update(batch_axis=1),
            "input cell: expected float32 [2, any, 16], found float32 [any, 2, 16]",
        ),
        (
            lambda m: m["states"].pop(),
            "input cell: expected none, found float32 [any, 2, 16]",
        ),
        (
            lambda m: m["states"][0].update(output="next"),
            "output next: expected float32 [any, 2, 16], found none",
        ),
        (
            lambda m: m["input"].update(name="ids"),
            "input ids: expected int64 [any, any], found none",
        ),
        (
            lambda m: (
                m["input"].update(kind="values", features=4, vocabulary_size=None)
                or m["outputs"][0].update(kind="values")
            ),
            "input tokens: expected float32 [any, any, 4], found int64 [any, any]",
        ),
        (
            lambda m: m["outputs"][0].update(kind="values", shape=[16, 16]),
            "output log_probabilities: expected float32 [any, any, 16, 16], found float32 [any, any, 256]",
        ),
        (
            lambda m: m["gates"][0].update(shape=[2, 8]),
            "output forget: expected float32 [any, any, 2, 8], found float32 [any, any, 2, 16]",
        ),
        (
            lambda m: m.update(gates_switch=None),
            "input with_gates: expected none, found bool []",
        ),
    ],
)
def test_manifest_that_says_other_than_the_graph_is_refused(
    directory, change_manifest, change: Callable[..., object], message: str
) -> None:
    """Each part of a signature is compared, and named with what was expected and what was found."""
    change_manifest(change)
    with pytest.raises(SignatureMismatch) as caught:
        load_version(directory)
    assert message in caught.value.message
    assert str(directory / "model.onnx") in caught.value.message


def edited(path, change: Callable[[onnx.GraphProto], object]) -> bytes:
    """The bytes of a graph after a change."""
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    return model.SerializeToString()


def test_baked_in_number_of_steps_is_refused(directory, replace_file) -> None:
    """The trap of PyTorch's exporter: a graph that takes one number of steps only, and says nothing."""

    def bake(graph: onnx.GraphProto) -> None:
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8

    replace_file("model.onnx", edited(directory / "model.onnx", bake))
    with pytest.raises(
        SignatureMismatch, match=r"input tokens: expected int64 \[any, any\], found int64 \[8, any\]"
    ):
        load_version(directory)


def test_head_of_other_states_is_refused(directory, replace_file) -> None:
    """A head for a state that this model does not have, with all digests in order: its signature tells."""

    def rename(graph: onnx.GraphProto) -> None:
        graph.input[0].name = graph.node[0].input[0] = "memory"

    replace_file("head.onnx", edited(directory / "head.onnx", rename))
    with pytest.raises(
        SignatureMismatch,
        match=r"head\.onnx .*: input memory: expected none, found float32 \[any, 2, 16\]\.",
    ):
        load_version(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda graph: graph.input.remove(graph.input[1]),
            r"input lengths: expected int32 \[any\], found none",
        ),
        (
            lambda graph: graph.input[1].type.tensor_type.shape.dim[0].Clear(),
            None,  # free, but without a name: as good
        ),
        (
            lambda graph: setattr(graph.output[0].type.tensor_type.shape.dim[0], "dim_value", 8),
            r"output log_probabilities: expected float32 \[any, any, 256\], found float32 \[8, any, 256\]",
        ),
    ],
)
def test_sequence_graph_is_compared_too(directory, replace_file, change, message) -> None:
    """It serves in fast numerics: rows of any length, and as many as come."""

    def keep_reading_lengths(graph: onnx.GraphProto) -> None:
        change(graph)
        if "lengths" not in [given.name for given in graph.input]:  # a constant in its place
            graph.initializer.append(helper.make_tensor("lengths", TensorProto.INT32, [1], [1]))

    replace_file("sequence.onnx", edited(directory / "sequence.onnx", keep_reading_lengths))
    if message is None:
        load_version(directory)
        return
    with pytest.raises(SignatureMismatch, match=rf"sequence\.onnx .*: {message}"):
        load_version(directory)


def test_head_without_inputs_is_refused(directory, replace_file) -> None:
    """A prediction that does not depend on the state is none."""
    constant = helper.make_node(
        "RandomNormal", [], ["log_probabilities"], shape=[1, 256], dtype=TensorProto.FLOAT
    )
    output = helper.make_tensor_value_info("log_probabilities", TensorProto.FLOAT, ["batch", 256])
    model = helper.make_model(
        helper.make_graph([constant], "head", [], [output]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    replace_file("head.onnx", model.SerializeToString())
    with pytest.raises(SignatureMismatch, match=r"head\.onnx .*inputs: expected at least one, found none"):
        load_version(directory)


@pytest.mark.parametrize("name", ["model.onnx", "head.onnx", "sequence.onnx"])
def test_file_that_is_no_graph_is_refused(directory, replace_file, name) -> None:
    """ONNX Runtime's own words, and the file's name, which they often lack."""
    replace_file(name, b"not a graph")
    with pytest.raises(RepositoryError, match=f"{name}: expected a graph that ONNX Runtime reads, found: "):
        load_version(directory)


def test_weights_of_another_size_are_refused(directory, replace_file) -> None:
    """Digests in order, but the graph points beyond the end of the file."""
    replace_file("weights.bin", (directory / "weights.bin").read_bytes()[:1000])
    with pytest.raises(RepositoryError, match=r"expected a graph that ONNX Runtime reads"):
        load_version(directory)
