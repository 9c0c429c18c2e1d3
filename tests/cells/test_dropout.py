"""What is hidden while a network learns: each kind against a run of the equations with the same masks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cellstream.cells import StackConfig
from cellstream.cells.config import CellKind
from cellstream.cells.dropout import Dropout, hide, hide_rows, hide_weights
from cellstream.cells.stack import FusedStack, States

CELLS: list[CellKind] = ["rnn", "lstm", "gru"]
MODULES: dict[str, Callable[..., nn.RNNCellBase]] = {
    "rnn": nn.RNNCell,
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
}
TIME, BATCH, UNITS, TOKENS = 7, 3, 8, 9


def config(cell: CellKind, dropout: float = 0.0) -> StackConfig:
    """A tiny one."""
    return StackConfig(
        cell=cell, layers=2, hidden_size=UNITS, embedding_size=5, vocabulary_size=TOKENS, dropout=dropout
    )


def by_hand(
    model: FusedStack, ids: Tensor, embedding: Tensor, hidden: list[Tensor], masks: list[Tensor]
) -> Tensor:
    """The predictions by PyTorch's single steps.

    Args:
        model: Its weights.
        ids: int64 [time, batch].
        embedding: In place of the model's.
        hidden: Each layer's hidden-to-hidden weights, in place of the model's.
        masks: What the outputs of each layer are multiplied with, each broadcast to [time, batch, units].
    """
    weights = model.weights()
    x = embedding[ids]
    for layer in range(2):
        cell = MODULES[model.config.cell](x.shape[-1], UNITS)
        with torch.no_grad():
            for name, weight in cell.named_parameters():
                weight.copy_(hidden[layer] if name == "weight_hh" else weights[f"layers.{layer}.{name}"])
        state: object = None
        steps: list[Tensor] = []
        for step in x:
            state = cell(step, state)
            steps.append(state[0] if isinstance(state, tuple) else state)  # type: ignore[arg-type]
        x = torch.stack(steps) * masks[layer]
    return nn.functional.log_softmax(
        nn.functional.linear(x, weights["head.weight"], weights["head.bias"]), -1
    )


@pytest.mark.parametrize("cell", CELLS)
def test_every_kind_is_that_of_its_paper(cell: CellKind) -> None:
    """All at once, by PyTorch's single-step modules and masks drawn from the same dice."""
    shares = Dropout(embedding=0.3, recurrent=0.4, output=0.2, locked=True)
    torch.manual_seed(1)
    model = FusedStack(config(cell, dropout=0.5), shares).train()
    ids = torch.randint(0, TOKENS, (TIME, BATCH))
    weights = model.weights()

    torch.manual_seed(2)
    found = model(ids).prediction
    torch.manual_seed(2)
    rows = torch.empty(TOKENS, 1).bernoulli_(0.7) / 0.7
    first = nn.functional.dropout(weights["layers.0.weight_hh"], 0.4)
    between = torch.empty(1, BATCH, UNITS).bernoulli_(0.5) / 0.5
    second = nn.functional.dropout(weights["layers.1.weight_hh"], 0.4)
    before_head = torch.empty(1, BATCH, UNITS).bernoulli_(0.8) / 0.8
    expected = by_hand(
        model, ids, weights["embedding.weight"] * rows, [first, second], [between, before_head]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_unlocked_masks_differ_from_step_to_step(cell: CellKind) -> None:
    """As PyTorch's own dropout between layers, whose dice these are."""
    torch.manual_seed(1)
    model = FusedStack(config(cell, dropout=0.5), Dropout(output=0.2)).train()
    ids = torch.randint(0, TOKENS, (TIME, BATCH))
    weights = model.weights()
    torch.manual_seed(2)
    found = model(ids).prediction
    torch.manual_seed(2)
    ones = torch.ones(TIME, BATCH, UNITS)
    masks = [nn.functional.dropout(ones, 0.5), nn.functional.dropout(ones, 0.2)]
    hidden = [weights["layers.0.weight_hh"], weights["layers.1.weight_hh"]]
    expected = by_hand(model, ids, weights["embedding.weight"], hidden, masks)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_what_learned_with_dice_is_measured_without(cell: CellKind) -> None:
    """A served model must not roll dice, and needs no other weights: PyTorch's module, to the bit."""
    shares = Dropout(embedding=0.3, recurrent=0.4, output=0.2, locked=True)
    model = FusedStack(config(cell, dropout=0.5), shares).eval()
    ids = torch.randint(0, TOKENS, (TIME, BATCH))
    with torch.inference_mode():
        h, _ = model.recurrence(model.embedding(ids))
        assert torch.equal(model(ids).prediction, nn.functional.log_softmax(model.head(h), -1))


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_hidden_is_pytorchs_own_training(cell: CellKind) -> None:
    """Bit for bit, dice, states and gradients too: a recipe without regularisation trains as ever."""
    sizes = config(cell, dropout=0.5)
    torch.manual_seed(1)
    model = FusedStack(sizes).train()
    modules: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
    native = modules[cell](5, UNITS, 2, dropout=0.5)
    native.load_state_dict(model.recurrence.state_dict())
    ids = torch.randint(0, TOKENS, (TIME, BATCH))
    states: States = {name: torch.randn(BATCH, 2, UNITS) for name in sizes.states}

    torch.manual_seed(2)
    found = model(ids, states)
    torch.manual_seed(2)
    before = [state.transpose(0, 1).contiguous() for state in states.values()]
    h, after = native(model.embedding(ids), tuple(before) if len(before) > 1 else before[0])
    expected = nn.functional.log_softmax(model.head(h), -1)
    assert torch.equal(found.prediction, expected)
    for state, one in zip(found.states.values(), after if cell == "lstm" else [after], strict=True):
        assert torch.equal(state, one.transpose(0, 1))
    found.prediction.square().mean().backward()
    expected.square().mean().backward()
    for ours, theirs in zip(model.recurrence.parameters(), native.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_locked_hides_a_unit_at_all_steps() -> None:
    """One mask a window, another for each row of the batch; what stays is scaled, so that the mean stays."""
    torch.manual_seed(0)
    kept = hide(torch.ones(50, 40, 30), 0.25, locked=True)
    assert torch.equal(kept, kept[:1].expand_as(kept))
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert len({tuple(row.tolist()) for row in kept[0]}) == 40
    assert kept.mean().item() == pytest.approx(1, abs=0.05)


def test_an_embedding_loses_whole_rows() -> None:
    """A token is hidden wherever it stands: the network must do without it."""
    torch.manual_seed(0)
    kept = hide_rows(torch.ones(1000, 3), 0.25)
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert (kept[:, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)


def test_a_share_of_nothing_rolls_no_dice() -> None:
    """Where a recipe hides nothing its other dice must fall as before."""
    before, x = torch.get_rng_state(), torch.ones(2, 3, 4)
    assert hide(x, 0.0, locked=True) is hide(x, 0.0, locked=False) is x
    assert hide_rows(x, 0.0) is hide_weights(x, 0.0) is x
    assert torch.equal(torch.get_rng_state(), before)


def test_a_forget_bias_keeps_the_cell_state() -> None:
    """It lies in the second block of PyTorch's i, f, g, o, and in no other weight; a GRU has no such gate."""
    for cell in CELLS:
        torch.manual_seed(1)
        plain = FusedStack(config(cell)).weights()
        torch.manual_seed(1)
        biased = FusedStack(config(cell), forget_bias=1.0).weights()
        for name, weight in plain.items():
            expected = weight.clone()
            if cell == "lstm" and name.endswith("bias_hh"):
                expected[UNITS : 2 * UNITS] += 1
            assert torch.equal(biased[name], expected)


def test_frames_have_no_embedding_to_hide() -> None:
    """Said, not passed over."""
    sizes = StackConfig(
        cell="lstm", layers=1, hidden_size=4, input="values", embedding_size=4, features=2, dropout=0.0
    )
    with pytest.raises(ValueError, match="embedding: expected 0 for an input of values"):
        FusedStack(sizes, Dropout(embedding=0.1))
