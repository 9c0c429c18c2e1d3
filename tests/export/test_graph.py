"""The graphs do what torch.nn does, show the gates of the equations, and keep their promises about bits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from cellstream.cells import StackConfig
from cellstream.errors import CheckpointInvalid
from cellstream.export.building import build

STEPS, ROWS = 9, 5


def case(config: StackConfig, steps: int = STEPS, rows: int = ROWS) -> dict[str, np.ndarray]:
    """Inputs and starting states by the graph's names."""
    random = np.random.default_rng(1)
    if config.input == "tokens":
        inputs = random.integers(0, config.outputs_size, (steps, rows))
    else:
        inputs = random.normal(size=(steps, rows, config.outputs_size)).astype(np.float32)
    shape = (rows, config.layers, config.hidden_size)
    states = {name: random.uniform(-1, 1, shape).astype(np.float32) for name in config.states}
    switch = {"with_gates": np.array(True)} if config.gates else {}
    return {config.input: inputs, **states, **switch}


def read_by_torch(config, weights, inputs: np.ndarray) -> torch.Tensor:
    """What the first layer sees."""
    if config.input == "tokens":
        return torch.from_numpy(weights["embedding.weight"])[torch.from_numpy(inputs)]
    return torch.nn.functional.linear(
        torch.from_numpy(inputs), *(torch.from_numpy(weights[f"input.{name}"]) for name in ("weight", "bias"))
    )


def test_graph_predicts_what_torch_does(config, random_weights, built, run_graph) -> None:
    """Predictions and states are those of torch.nn with the same weights, from states that are not zero.

    torch.nn is the independent source: neither our equations nor an exporter have a part in it.
    """
    weights, given = random_weights(config), case(config)
    kind = getattr(torch.nn, config.cell.upper())
    recurrence = kind(config.embedding_size, config.hidden_size, config.layers)
    recurrence.load_state_dict(
        {
            f"{name}_l{layer}": torch.from_numpy(weights[f"layers.{layer}.{name}"])
            for layer in range(config.layers)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
    )
    before = [torch.from_numpy(given[name]).transpose(0, 1).contiguous() for name in config.states]
    with torch.no_grad():
        h, after = recurrence(
            read_by_torch(config, weights, given[config.input]),
            tuple(before) if len(before) > 1 else before[0],
        )
        expected = h @ torch.from_numpy(weights["head.weight"]).T + torch.from_numpy(weights["head.bias"])
        if config.input == "tokens":
            expected = expected.log_softmax(-1)

    found = run_graph(built(config) / "model.onnx", given)
    prediction = found["log_probabilities" if config.input == "tokens" else "prediction"]
    np.testing.assert_allclose(prediction, expected.numpy(), rtol=1e-5, atol=1e-5)
    for name, state in zip(config.states, after if len(before) > 1 else [after], strict=True):
        np.testing.assert_allclose(found[f"{name}_next"], state.transpose(0, 1).numpy(), atol=1e-5)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """σ."""
    return 1 / (1 + np.exp(-x))


def gates_of_first_layer(config, weights, given) -> dict[str, np.ndarray]:
    """The gates of layer 0 at the first step, from the equations of the paper in float64."""
    x = read_by_torch(config, weights, given[config.input]).numpy()[0].astype(np.float64)
    h = given["hidden"][:, 0]
    from_x = x @ weights["layers.0.weight_ih"].T + weights["layers.0.bias_ih"]
    from_h = h @ weights["layers.0.weight_hh"].T + weights["layers.0.bias_hh"]
    if config.cell == "lstm":
        i, f, g, o = np.split(from_x + from_h, 4, axis=1)
        return {"forget": sigmoid(f), "input": sigmoid(i), "output": sigmoid(o), "candidate": np.tanh(g)}
    (r_x, z_x, n_x), (r_h, z_h, n_h) = np.split(from_x, 3, axis=1), np.split(from_h, 3, axis=1)
    r = sigmoid(r_x + r_h)
    return {"reset": r, "update": sigmoid(z_x + z_h), "candidate": np.tanh(n_x + r * n_h)}


def test_graph_shows_the_gates_of_the_equations(gated, random_weights, built, run_graph) -> None:
    """Each gate carries its own name: a forget gate shown as the input gate would mislead whoever looks."""
    given = case(gated)
    found = run_graph(built(gated) / "model.onnx", given)
    for name, expected in gates_of_first_layer(gated, random_weights(gated), given).items():
        assert found[name].shape == (STEPS, ROWS, gated.layers, gated.hidden_size)
        np.testing.assert_allclose(found[name][0, :, 0], expected, atol=1e-5)


def test_gates_of_higher_layers_explain_their_states(gated, built, run_graph) -> None:
    """Every layer's next state follows from the gates shown for it, so no layer shows another's."""
    given = case(gated, steps=1)
    found = run_graph(built(gated) / "model.onnx", given)
    if gated.cell == "lstm":
        f, i, o, g = (found[name][0] for name in ("forget", "input", "output", "candidate"))
        cell = f * given["cell"] + i * g
        np.testing.assert_allclose(found["cell_next"], cell, atol=1e-6)
        np.testing.assert_allclose(found["hidden_next"], o * np.tanh(cell), atol=1e-6)
    else:
        z, n = found["update"][0], found["candidate"][0]
        np.testing.assert_allclose(found["hidden_next"], (1 - z) * n + z * given["hidden"], atol=1e-6)


def test_unwanted_gates_are_empty_and_change_nothing(gated, built, run_graph) -> None:
    """Copying gates out costs up to a fifth of a step: who does not look does not pay, nor get other bits."""
    given = case(gated)
    shown = run_graph(built(gated) / "model.onnx", given)
    found = run_graph(built(gated) / "model.onnx", {**given, "with_gates": np.array(False)})
    for name in gated.gates:
        assert found[name].shape == (0, 0, gated.layers, gated.hidden_size)
    for name in found.keys() - set(gated.gates):
        assert found[name].tobytes() == shown[name].tobytes(), name


def test_head_predicts_what_the_step_did(config, built, run_graph) -> None:
    """A session's prediction can be read from its state later: the same bits as the step's own."""
    step = run_graph(built(config) / "model.onnx", case(config))
    hidden = {"hidden": step["hidden_next"]}
    ((name, prediction),) = run_graph(built(config) / "head.onnx", hidden).items()
    assert prediction.tobytes() == step[name][-1].tobytes()


def test_log_probabilities_sum_to_one(lstm, built, run_graph) -> None:
    """What is called log-probabilities is: users add them up and exponentiate them."""
    found = run_graph(built(lstm) / "model.onnx", case(lstm))["log_probabilities"]
    np.testing.assert_allclose(np.exp(found.astype(np.float64)).sum(-1), 1, atol=1e-6)


def test_graphs_are_valid_onnx(config, built) -> None:
    """Onnx's own checker, with shape inference, takes every file: other runtimes can read them."""
    for file in ("model.onnx", "head.onnx", "sequence.onnx"):
        onnx.checker.check_model(built(config) / file, full_check=True)


def test_building_twice_gives_the_same_bytes(config, random_weights) -> None:
    """A version can be rebuilt from its checkpoint and compared by digest."""
    weights = random_weights(config)
    reversed_weights = dict(reversed(weights.items()))
    assert build(config, weights) == build(config, reversed_weights)


def test_weights_are_stored_once(config, built) -> None:
    """All graphs read one weights.bin, and no float of the model is written into a graph."""
    for file in ("model.onnx", "head.onnx", "sequence.onnx"):
        stored = onnx.load(built(config) / file, load_external_data=False).graph.initializer
        floats = [tensor for tensor in stored if tensor.data_type == onnx.TensorProto.FLOAT]
        assert floats
        for tensor in floats:
            assert {entry.key: entry.value for entry in tensor.external_data}["location"] == "weights.bin"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("head.bias"), "head.bias"),
        (lambda weights: weights.update(extra=np.zeros(1, np.float32)), "extra"),
        (
            lambda weights: weights.update({"head.bias": np.zeros(3, np.float32)}),
            r"head.bias: expected .* \(3,\)",
        ),
        (lambda weights: weights["head.bias"].put(0, np.nan), "head.bias: expected finite numbers"),
    ],
    ids=["missing", "unknown", "misshapen", "not finite"],
)
def test_wrong_weights_are_refused(lstm, random_weights, change, message) -> None:
    """A checkpoint of another configuration, or of a training that diverged, is told apart by name."""
    weights = random_weights(lstm)
    change(weights)
    with pytest.raises(CheckpointInvalid, match=message):
        build(lstm, weights)
