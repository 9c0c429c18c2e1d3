"""The network in its two forms, and its weights on the way between them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from cellstream.cells import StackConfig
from cellstream.cells.config import CellKind, InputKind
from cellstream.cells.stack import FusedStack, Stack, States, load_weights, numpy_weights
from cellstream.errors import CheckpointInvalid

CELLS: list[CellKind] = ["rnn", "lstm", "gru"]
INPUTS: list[InputKind] = ["tokens", "values"]


def config(cell: CellKind, kind: InputKind, *, layers: int = 2, dropout: float = 0.0) -> StackConfig:
    """A tiny one."""
    return StackConfig(
        cell=cell,
        layers=layers,
        hidden_size=6,
        input=kind,
        embedding_size=4,
        vocabulary_size=9 if kind == "tokens" else None,
        features=3 if kind == "values" else None,
        dropout=dropout,
    )


def inputs_and_states(sizes: StackConfig, time: int, batch: int) -> tuple[torch.Tensor, States]:
    """Unseen inputs and starting states."""
    torch.manual_seed(5)
    shape = (batch, sizes.layers, sizes.hidden_size)
    states = {name: torch.randn(shape) for name in sizes.states}
    if sizes.input == "tokens":
        return torch.randint(0, sizes.outputs_size, (time, batch)), states
    return torch.randn(time, batch, sizes.outputs_size), states


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", INPUTS)
def test_both_forms_give_the_same(cell: CellKind, kind: InputKind) -> None:
    """What was trained fused is what the equations, and the export that is compared with them, compute."""
    fused, stack = FusedStack(config(cell, kind)).eval(), Stack(config(cell, kind)).eval()
    load_weights(stack, numpy_weights(fused))
    inputs, states = inputs_and_states(stack.config, time=8, batch=3)
    with torch.inference_mode():
        found, expected = stack(inputs, states), fused(inputs, states)
    torch.testing.assert_close(found.prediction, expected.prediction, rtol=0, atol=1e-6)
    assert found.states.keys() == expected.states.keys() == states.keys()
    for name, state in found.states.items():
        torch.testing.assert_close(state, expected.states[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", INPUTS)
def test_weights_go_both_ways(cell: CellKind, kind: InputKind) -> None:
    """Nothing is lost or renamed from the one form to the other and back."""
    fused, stack, again = (form(config(cell, kind)) for form in (FusedStack, Stack, FusedStack))
    load_weights(stack, numpy_weights(fused))
    load_weights(again, numpy_weights(stack))
    before, after = numpy_weights(fused), numpy_weights(again)
    assert {name: weight.shape for name, weight in after.items()} == fused.config.weight_shapes()
    for name, weight in before.items():
        np.testing.assert_array_equal(weight, after[name])
    assert sum(weight.size for weight in after.values()) == fused.config.parameters
    assert sum(weight.numel() for weight in fused.parameters()) == fused.config.parameters


@pytest.mark.parametrize("cell", CELLS)
def test_cuts_do_not_matter(cell: CellKind) -> None:
    """Truncated backpropagation and serving both rest on states that can be carried over any cut."""
    stack = Stack(config(cell, "tokens")).eval()
    inputs, states = inputs_and_states(stack.config, time=9, batch=2)
    with torch.inference_mode():
        whole = stack(inputs, states)
        first = stack(inputs[:4], states)
        second = stack(inputs[4:], first.states)
    torch.testing.assert_close(whole.prediction[4:], second.prediction, rtol=0, atol=1e-6)
    torch.testing.assert_close(whole.states["hidden"], second.states["hidden"], rtol=0, atol=1e-6)


def test_gates_are_shown_for_every_step_and_layer() -> None:
    """A served graph shows [time, batch, layers, units] by name; the equations are its measure."""
    stack = Stack(config("lstm", "tokens")).eval()
    inputs, states = inputs_and_states(stack.config, time=4, batch=3)
    with torch.inference_mode():
        trace = stack(inputs, states)
    assert tuple(trace.gates) == stack.config.gates == ("forget", "input", "output", "candidate")
    assert {tuple(gate.shape) for gate in trace.gates.values()} == {(4, 3, 2, 6)}
    last = {name: gate[-1] for name, gate in trace.gates.items()}
    shown = last["output"] * torch.tanh(trace.states["cell"])
    torch.testing.assert_close(shown, trace.states["hidden"], rtol=0, atol=1e-6)


def test_predictions_of_tokens_are_log_probabilities() -> None:
    """They go out as they are: the natural logarithm of shares that sum to one."""
    stack = Stack(config("gru", "tokens")).eval()
    inputs, states = inputs_and_states(stack.config, time=2, batch=2)
    with torch.inference_mode():
        sums = stack(inputs, states).prediction.exp().sum(dim=-1)
    torch.testing.assert_close(sums, torch.ones(2, 2))


@pytest.mark.parametrize("form", [Stack, FusedStack])
def test_dropout_hides_between_layers_in_training_only(form: type[Stack] | type[FusedStack]) -> None:
    """A served model must not roll dice."""
    model = form(config("lstm", "tokens", dropout=0.5))
    inputs, states = inputs_and_states(model.config, time=3, batch=2)
    with torch.no_grad():
        model.train()
        assert not torch.equal(model(inputs, states).prediction, model(inputs, states).prediction)
        model.eval()
        assert torch.equal(model(inputs, states).prediction, model(inputs, states).prediction)


def test_one_layer_with_dropout_has_no_between() -> None:
    """PyTorch warns about it, and warnings are errors here: the recipe's dropout just has nothing to do."""
    model = FusedStack(config("rnn", "values", layers=1, dropout=0.5)).train()
    inputs, states = inputs_and_states(model.config, time=3, batch=2)
    assert torch.equal(model(inputs, states).prediction, model(inputs, states).prediction)


def test_weights_of_another_size_are_refused() -> None:
    """Broadcasting them in silence would make another model."""
    stack = Stack(config("lstm", "tokens"))
    weights = numpy_weights(stack)
    weights["head.bias"] = weights["head.bias"][:1]
    with pytest.raises(CheckpointInvalid, match=r"head\.bias: expected float32 \(9,\), found float32 \(1,\)"):
        load_weights(stack, weights)


def test_sizes_need_no_pytorch() -> None:
    """Export and tests read configurations where PyTorch is not installed."""
    code = "import sys, cellstream.cells, cellstream.cells.checkpoint; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_config_survives_its_file() -> None:
    """It is saved beside the weights and is all that says what they are."""
    for cell in CELLS:
        for kind in INPUTS:
            sizes = config(cell, kind, dropout=0.25)
            assert StackConfig.from_json(sizes.to_json()) == sizes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('"hidden_size": 0', "hidden_size: expected a whole number from 1, found 0"),
        ('"hidden_size": true', "hidden_size: expected a whole number from 1, found True"),
        ('"cell": "transformer"', "cell: expected one of rnn, lstm, gru, found 'transformer'"),
        ('"input": "pixels"', "input: expected tokens or values, found 'pixels'"),
        ('"dropout": 1', "dropout: expected a number from 0 to below 1, found 1"),
        ('"features": 3', "features: expected none for an input of tokens"),
        ('"vocabulary_size": null', "vocabulary_size: expected a whole number from 1, found None"),
        ('"heads": 8', "unexpected keyword argument 'heads'"),
    ],
)
def test_impossible_configs_say_what_is_wrong(change: str, message: str) -> None:
    """The message names the value, what was expected and what was found."""
    text = config("lstm", "tokens").to_json().rstrip().removesuffix("}").rstrip() + f", {change}}}"
    with pytest.raises(ValueError, match="expected") as caught:
        StackConfig.from_json(text)
    assert message in str(caught.value)
