"""The proof passes for every cell, and fails for every way in which a graph could be wrong."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from rich.console import Console

from cellstream.cells import StackConfig
from cellstream.errors import ExportUnproven
from cellstream.export.building import build
from cellstream.export.comparing import TOLERANCE
from cellstream.export.proof import prove
from cellstream.export.running import Exported, Trace


def test_every_cell_is_proven(config, random_weights, built) -> None:
    """The proof of an honest export passes, and says how close it was."""
    said = io.StringIO()
    proof = prove(config, random_weights(config), built(config), console=Console(file=said))
    differences = [value for name, value in proof.items() if name.startswith("largest_difference_")]
    assert len(differences) == (3 if config.gates else 2)
    assert all(0 <= difference <= TOLERANCE for difference in differences)
    assert proof["cuts_bit_exact"] is True
    assert proof["batches_bit_exact"] is True
    assert proof["cuts"] == 9
    assert "against PyTorch" in said.getvalue()


def test_a_network_that_amplifies_is_proven_too(random_weights, tmp_path) -> None:
    """A chaotic network doubles a difference in the last bit at each step; that is no fault of the graph."""
    config = StackConfig(cell="rnn", layers=2, hidden_size=24, embedding_size=4, vocabulary_size=9)
    weights = {name: 4 * weight for name, weight in random_weights(config).items()}
    build(config, weights).write(tmp_path)
    assert prove(config, weights, tmp_path)["cuts_bit_exact"] is True


def test_any_weight_that_differs_fails_the_proof(config, random_weights, built) -> None:
    """Each single tensor counts: a wrong bias of one gate must not pass for rounding."""
    weights, directory = random_weights(config), built(config)
    for name, weight in weights.items():
        changed = weight.copy()
        changed.flat[0] += 0.05
        with pytest.raises(ExportUnproven, match="against the equations"):
            prove(config, {**weights, name: changed}, directory)


def test_nan_fails_the_proof(lstm, random_weights, built) -> None:
    """NaN compares false with everything, and must not slip through as "not larger than the tolerance"."""
    weights, directory = random_weights(lstm), built(lstm)
    infinite = {**weights, "head.bias": np.full_like(weights["head.bias"], np.inf)}
    with pytest.raises(ExportUnproven, match="found nan"):
        prove(lstm, infinite, directory)


def edit(file: Path, change) -> None:
    """Changes a graph on disk, as someone might who improves it by hand."""
    model = onnx.load(file, load_external_data=False)
    change(model.graph)
    file.write_bytes(model.SerializeToString())


def double_the_head(graph: onnx.GraphProto) -> None:
    """Makes the head's prediction twice what it was."""
    name = graph.output[0].name
    graph.node[-1].output[0] = "before"
    graph.node.append(helper.make_node("Add", ["before", "before"], [name]))


def test_head_that_differs_fails_the_proof(lstm, random_weights, built) -> None:
    """A prediction read from a state later has to be the step's own."""
    weights, directory = random_weights(lstm), built(lstm)
    edit(directory / "head.onnx", double_the_head)
    with pytest.raises(ExportUnproven, match=r"log_probabilities by head.onnx: expected the same bits"):
        prove(lstm, weights, directory)


def add_to_cell(graph: onnx.GraphProto, output: str, size_of: str) -> None:
    """Adds 2⁻²⁵ × the length of a value's first axis to a cell state: far below the tolerance."""
    maker = next(node for node in graph.node if node.output[0] == output)
    maker.output[0] = "before"
    bit = helper.make_tensor("last_bit", TensorProto.FLOAT, [], [2.0**-25])
    graph.node.extend(
        [
            helper.make_node("Constant", [], ["last_bit"], value=bit),
            helper.make_node("Shape", [size_of], ["size"], start=0, end=1),
            helper.make_node("Cast", ["size"], ["size_float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["size_float", "last_bit"], ["little"]),
            helper.make_node("Add", ["before", "little"], [output]),
        ]
    )


def depend_on_steps(graph: onnx.GraphProto) -> None:
    """Lets the states after a call depend on how many steps it had."""
    add_to_cell(graph, "cell_next", size_of="tokens")


def depend_on_rows(graph: onnx.GraphProto) -> None:
    """Lets each step depend on how many rows the batch has, as a quantisation over the batch would."""
    scan = next(node for node in graph.node if node.op_type == "Scan")
    body = next(attribute.g for attribute in scan.attribute if attribute.name == "body")
    add_to_cell(body, "cell_after", size_of="x")


def test_cuts_that_differ_in_the_last_bit_fail_the_proof(lstm, random_weights, built) -> None:
    """A session's answers must not depend on how its tokens were cut into messages, not even by one bit."""
    weights, directory = random_weights(lstm), built(lstm)
    edit(directory / "model.onnx", depend_on_steps)
    with pytest.raises(ExportUnproven, match=r"steps cut at .*: expected the same bits"):
        prove(lstm, weights, directory, allow_row_by_row=True)


def test_batches_that_differ_fail_the_proof_unless_allowed(lstm, random_weights, built) -> None:
    """Where one session's answer depends on another's, an export stops; told to go on, it records it."""
    weights, directory = random_weights(lstm), built(lstm)
    edit(directory / "model.onnx", depend_on_rows)
    with pytest.raises(ExportUnproven, match=r"rows depend on each other on this machine: .* 1 of 96 rows"):
        prove(lstm, weights, directory)
    proof = prove(lstm, weights, directory, allow_row_by_row=True)
    assert proof["cuts_bit_exact"] is True
    assert proof["batches_bit_exact"] is False


@pytest.fixture(scope="module", params=["rnn", "lstm", "gru"])
def exported(request, random_weights, tmp_path_factory) -> tuple[StackConfig, Exported]:
    """A model and its graphs, loaded once."""
    config = StackConfig(cell=request.param, layers=2, hidden_size=9, embedding_size=4, vocabulary_size=11)
    directory = tmp_path_factory.mktemp(request.param)
    build(config, random_weights(config)).write(directory)
    return config, Exported(config, directory)


@given(data=st.data())
@settings(max_examples=40, deadline=None, database=None)
def test_a_row_alone_in_single_steps_gets_what_it_got_in_company(exported, data) -> None:
    """Any row of any batch of any length, cut anywhere, equals that row run alone step by step, bit for bit.

    The proof tries some cuts and batches; this is the promise that it stands for.
    """
    config, graphs = exported
    steps, rows = data.draw(st.integers(1, 40), "steps"), data.draw(st.integers(1, 40), "rows")
    cut, row = data.draw(st.integers(0, steps), "cut"), data.draw(st.integers(0, rows - 1), "row")
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    tokens = random.integers(0, 11, (steps, rows))
    states = {name: random.normal(size=(rows, 2, 9)).astype(np.float32) for name in config.states}

    parts: list[Trace] = []
    for part in (tokens[:cut], tokens[cut:]):
        if len(part):
            parts.append(graphs.run(part, parts[-1].states if parts else states))
    company = Trace.join(parts).rows(np.array([row]))

    singles: list[Trace] = []
    before = {name: state[row : row + 1] for name, state in states.items()}
    for step in range(steps):
        singles.append(graphs.run(tokens[step : step + 1, row : row + 1], before))
        before = singles[-1].states
    alone = Trace.join(singles)

    for name, array in alone.arrays.items():
        assert company.arrays[name].tobytes() == array.tobytes(), name
