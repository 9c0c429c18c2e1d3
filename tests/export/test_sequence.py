"""sequence.onnx does what torch.nn does, row by row of its own length, in any runtime that knows ONNX."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from cellstream.cells import StackConfig
from cellstream.errors import ExportUnproven
from cellstream.export.building import build
from cellstream.export.sequence_proof import prove_sequence

STEPS = 9
LENGTHS = np.array([9, 0, 1, 4, 8], np.int32)


def case(config: StackConfig) -> dict[str, np.ndarray]:
    """Inputs, lengths and starting states by the graph's names."""
    random = np.random.default_rng(2)
    rows = len(LENGTHS)
    if config.input == "tokens":
        inputs = random.integers(0, config.outputs_size, (STEPS, rows))
    else:
        inputs = random.normal(size=(STEPS, rows, config.outputs_size)).astype(np.float32)
    shape = (rows, config.layers, config.hidden_size)
    states = {name: random.uniform(-1, 1, shape).astype(np.float32) for name in config.states}
    return {config.input: inputs, "lengths": LENGTHS, **states}


def by_torch(config, weights, inputs, states) -> dict[str, np.ndarray]:
    """One row by torch.nn: inputs [time, ...], states [layers, units]; the outputs by the graph's names."""
    recurrence = getattr(torch.nn, config.cell.upper())(
        config.embedding_size, config.hidden_size, config.layers
    )
    recurrence.load_state_dict(
        {
            f"{name}_l{layer}": torch.from_numpy(weights[f"layers.{layer}.{name}"])
            for layer in range(config.layers)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
    )
    given = torch.from_numpy(inputs)
    if config.input == "tokens":
        x = torch.from_numpy(weights["embedding.weight"])[given]
    else:
        linear = (torch.from_numpy(weights[f"input.{name}"]) for name in ("weight", "bias"))
        x = torch.nn.functional.linear(given, *linear)
    before = [torch.from_numpy(states[name]) for name in config.states]
    with torch.no_grad():
        h, after = recurrence(x, tuple(before) if len(before) > 1 else before[0])
        y = h @ torch.from_numpy(weights["head.weight"]).T + torch.from_numpy(weights["head.bias"])
    name, y = ("log_probabilities", y.log_softmax(-1)) if config.input == "tokens" else ("prediction", y)
    ends = after if len(before) > 1 else [after]
    return {name: y.numpy()} | {
        f"{state}_next": end.numpy() for state, end in zip(config.states, ends, strict=True)
    }


def assert_rows_are_torchs(config, weights, given, found, lengths) -> None:
    """Each row as far as it goes; a row of no steps keeps its states bit for bit."""
    for row, length in enumerate(lengths):
        states = {name: given[name][row] for name in config.states}
        if not length:
            for name, state in states.items():
                assert found[f"{name}_next"][row].tobytes() == state.tobytes()
            continue
        expected = by_torch(config, weights, given[config.input][:length, row], states)
        for name, array in expected.items():
            ours = found[name][row] if name.endswith("_next") else found[name][:length, row]
            np.testing.assert_allclose(ours, array, rtol=1e-5, atol=1e-5, err_msg=f"{name}, row {row}")


def test_rows_of_any_length_get_what_torch_gives_them(config, random_weights, built, run_graph) -> None:
    """In one call: a whole row, one of no steps, one of a single step, and some between."""
    given = case(config)
    found = run_graph(built(config) / "sequence.onnx", given)
    assert_rows_are_torchs(config, random_weights(config), given, found, LENGTHS)


def test_idle_steps_are_finite_whatever_stands_there(lstm, built, run_graph) -> None:
    """What pads a short row is read, and must reach neither its states nor, as NaN, anyone's arithmetic."""
    given = case(lstm)
    others = given | {"tokens": given["tokens"].copy()}
    for row, length in enumerate(LENGTHS):
        others["tokens"][length:, row] = 6
    first, second = (run_graph(built(lstm) / "sequence.onnx", one) for one in (given, others))
    assert np.isfinite(second["log_probabilities"]).all()
    for name in ("hidden_next", "cell_next"):
        assert first[name].tobytes() == second[name].tobytes()


def test_another_runtime_gives_the_same(config, random_weights, built) -> None:
    """Onnx's own reference, without ONNX Runtime. It knows no lengths either, so all rows are whole."""
    given = case(config) | {"lengths": np.full(len(LENGTHS), STEPS, np.int32)}
    model = onnx.load(built(config) / "sequence.onnx")
    names = [output.name for output in model.graph.output]
    found = dict(zip(names, ReferenceEvaluator(model).run(None, given), strict=True))
    assert_rows_are_torchs(config, random_weights(config), given, found, given["lengths"])


def test_weights_are_made_ready_once_at_load(config, built, tmp_path) -> None:
    """Nothing that only turns weights around is left to do at each call."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(built(config) / "sequence.onnx", options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    left = [node.op_type for node in graph.node if node.input and set(node.input) <= stored]
    assert left == []


def test_portable_form_costs_little_room(random_weights) -> None:
    """Half a megabyte at most for 2 × 384 over bytes: the embedding and the first layer's input, no more."""
    config = StackConfig(cell="lstm", layers=2, hidden_size=384, embedding_size=64, vocabulary_size=256)
    files = build(config, random_weights(config)).files
    step = onnx.load_model_from_string(files["model.onnx"])
    read_by_step = sum(
        int(entry.value)
        for tensor in step.graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    )
    assert len(files["weights.bin"]) - read_by_step + len(files["sequence.onnx"]) < 500_000


def test_proof_passes_and_says_how_near(config, random_weights, built) -> None:
    """Against PyTorch, the step graph, and itself in two calls."""
    proof = prove_sequence(config, random_weights(config), built(config))
    differences = [proof[f"sequence_largest_difference_{what}"] for what in ("pytorch", "step", "cut")]
    assert all(0 <= difference <= 1e-5 for difference in differences)
    assert proof["sequence_steps"] > 300


@pytest.mark.parametrize(
    ("cell", "scale", "seed"), [("rnn", 4, 0), ("rnn", 4, 4), ("gru", 3, 4), ("gru", 4, 5)]
)
def test_a_network_that_amplifies_is_proven_too(random_weights, tmp_path, cell, scale, seed) -> None:
    """A chaotic network makes much of a last bit over many steps; that is no fault of the graph."""
    config = StackConfig(cell=cell, layers=2, hidden_size=24, embedding_size=4, vocabulary_size=9)
    weights = {name: scale * weight for name, weight in random_weights(config, seed).items()}
    build(config, weights).write(tmp_path)
    compared = prove_sequence(config, weights, tmp_path)["sequence_steps"]
    assert 30 < compared < 300  # the long rows are chaos


def drop_lengths(graph: onnx.GraphProto) -> None:
    """Let every row run to the end."""
    for node in graph.node:
        if node.op_type == "LSTM":
            node.input[4] = ""


def mix_gates(graph: onnx.GraphProto) -> None:
    """Put the input gate where the forget gate belongs."""
    node = next(node for node in graph.node if node.op_type == "Concat" and "ordered" in node.output[0])
    node.input[0], node.input[2] = node.input[2], node.input[0]


def forget_empty_rows(graph: onnx.GraphProto) -> None:
    """Give a row of no steps the states after one."""
    for node in graph.node:
        if node.op_type == "Where":
            node.input[2] = node.input[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_lengths, r"sequence\.onnx, row \d of \d+, 1 steps, .*expected a difference of at most 1e-05"),
        (mix_gates, r"sequence\.onnx, row 0 of 1, 1 steps"),
        (
            forget_empty_rows,
            r"hidden, sequence\.onnx, row \d of \d+, 0 steps: expected a difference of at most 0",
        ),
    ],
)
def test_any_fault_fails_the_proof(lstm, random_weights, built, change, message) -> None:
    """Lengths, order of the gates, rows of no steps: each is looked at."""
    directory = built(lstm)
    model = onnx.load(directory / "sequence.onnx", load_external_data=False)
    change(model.graph)
    (directory / "sequence.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportUnproven, match=message):
        prove_sequence(lstm, random_weights(lstm), directory)
