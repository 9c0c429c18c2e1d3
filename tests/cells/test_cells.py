"""The equations against PyTorch's own cells with the same weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cellstream.cells.cell import Cell
from cellstream.cells.gru import GRUCell
from cellstream.cells.lstm import LSTMCell
from cellstream.cells.rnn import RNNCell

WIDTH, UNITS, BATCH, TIME = 5, 7, 3, 11
PAIRS = [
    pytest.param(RNNCell, nn.RNN, id="rnn"),
    pytest.param(LSTMCell, nn.LSTM, id="lstm"),
    pytest.param(GRUCell, nn.GRU, id="gru"),
]


def pair(
    ours: type[Cell], theirs: Callable[..., nn.RNNBase], dtype: torch.dtype
) -> tuple[Cell, nn.RNNBase, Tensor, tuple[Tensor, ...]]:
    """Make both with the same weights, an input [time, batch, width] and a non-zero starting state."""
    torch.manual_seed(3)
    reference = theirs(WIDTH, UNITS).to(dtype)
    cell = ours(WIDTH, UNITS).to(dtype)  # type: ignore[call-arg]  # each cell knows its own blocks
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in reference.state_dict().items()})
    x = torch.randn(TIME, BATCH, WIDTH, dtype=dtype)
    state = tuple(torch.randn(BATCH, UNITS, dtype=dtype) for _ in cell.initial(BATCH))  # type: ignore[operator]
    return cell, reference, x, state


def run(cell: Cell, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Step a cell over time: outputs [time, batch, units] and the last state."""
    current = type(cell.initial(0))(*state)  # type: ignore[operator]
    outputs = []
    for x_t in x:
        current, _ = cell(x_t, current)
        outputs.append(current.h)
    return torch.stack(outputs), tuple(current)


def run_reference(
    reference: nn.RNNBase, x: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same by PyTorch's own recurrence."""
    before = tuple(one[None] for one in state)
    outputs, after = reference(x, before if len(before) > 1 else before[0])
    return outputs, tuple(one[0] for one in (after if isinstance(after, tuple) else (after,)))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_outputs_and_states_are_pytorchs(ours: type[Cell], theirs: Callable[..., nn.RNNBase]) -> None:
    """Weights trained by PyTorch mean the same in our equations, from any starting state."""
    cell, reference, x, state = pair(ours, theirs, torch.float32)
    outputs, after = run(cell, x, state)
    outputs_expected, after_expected = run_reference(reference, x, state)
    torch.testing.assert_close(outputs, outputs_expected, rtol=0, atol=1e-6)
    for found, expected in zip(after, after_expected, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_gradients_are_pytorchs(ours: type[Cell], theirs: Callable[..., nn.RNNBase]) -> None:
    """Training either form moves the weights alike: through outputs, states and time."""
    cell, reference, x, state = pair(ours, theirs, torch.float64)
    direction = torch.randn(TIME, BATCH, UNITS, dtype=torch.float64)
    gradients: list[list[Tensor]] = []
    runs: list[tuple[nn.Module, Callable[..., tuple[Tensor, tuple[Tensor, ...]]]]]
    runs = [(cell, run), (reference, run_reference)]
    for model, forward in runs:
        inputs = [x.clone().requires_grad_(), *(one.clone().requires_grad_() for one in state)]
        outputs, after = forward(model, inputs[0], tuple(inputs[1:]))
        loss = (outputs * direction).sum() + sum(one.square().sum() for one in after)
        gradients.append(list(torch.autograd.grad(loss, [*inputs, *model.parameters()])))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_lstm_gates_are_those_that_made_the_state() -> None:
    """A user who reads the gates must be able to redo C and h from them."""
    cell, _, x, (h, c) = pair(LSTMCell, nn.LSTM, torch.float64)
    after, gates = cell(x[0], type(cell.initial(0))(h, c))  # type: ignore[operator]
    assert list(gates) == ["forget", "input", "output", "candidate"]
    torch.testing.assert_close(after.c, gates["forget"] * c + gates["input"] * gates["candidate"])
    torch.testing.assert_close(after.h, gates["output"] * torch.tanh(after.c))
    rows = cell.weight_ih[UNITS : 2 * UNITS], cell.weight_hh[UNITS : 2 * UNITS]  # PyTorch: i, then f
    biases = cell.bias_ih[UNITS : 2 * UNITS] + cell.bias_hh[UNITS : 2 * UNITS]
    torch.testing.assert_close(gates["forget"], torch.sigmoid(x[0] @ rows[0].T + h @ rows[1].T + biases))


def test_gru_gates_are_those_that_made_the_state() -> None:
    """The update gate keeps, the candidate replaces; swapping the two is the classic mistake."""
    cell, _, x, (h,) = pair(GRUCell, nn.GRU, torch.float64)
    after, gates = cell(x[0], type(cell.initial(0))(h))  # type: ignore[operator]
    assert list(gates) == ["reset", "update", "candidate"]
    torch.testing.assert_close(after.h, (1 - gates["update"]) * gates["candidate"] + gates["update"] * h)
    rows = cell.weight_ih[:UNITS], cell.weight_hh[:UNITS]  # PyTorch: r first
    biases = cell.bias_ih[:UNITS] + cell.bias_hh[:UNITS]
    torch.testing.assert_close(gates["reset"], torch.sigmoid(x[0] @ rows[0].T + h @ rows[1].T + biases))


def test_rnn_shows_no_gates_and_begins_at_zero() -> None:
    """Its hidden state is all there is."""
    cell = RNNCell(WIDTH, UNITS)
    state = cell.initial(BATCH)
    assert state._fields == ("h",)
    assert not state.h.any()
    assert cell(torch.zeros(BATCH, WIDTH), state)[1] == {}
