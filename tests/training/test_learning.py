"""One update, its schedule, its pace, and how well a model is said to predict."""

from __future__ import annotations

import bz2
import dataclasses
import lzma
import math

import numpy as np
import pytest
import torch
from torch import nn

from cellstream.cells import StackConfig
from cellstream.cells.config import CellKind
from cellstream.cells.stack import FusedStack, Stack, Trace, load_weights, numpy_weights
from cellstream.cells.threads import threads_set
from cellstream.errors import RecipeInvalid, TrainingFailed
from cellstream.training.data import Piece, Window
from cellstream.training.learner import Learner
from cellstream.training.measure import bits_per_character, compressors_bits_per_character
from cellstream.training.muon import orthogonal
from cellstream.training.pace import Pace, choose_pace, runs_in_bfloat16
from cellstream.training.recipe import Training
from cellstream.training.schedule import Budget, Schedule

CONFIG = StackConfig(cell="lstm", layers=2, hidden_size=8, embedding_size=4, vocabulary_size=11, dropout=0.0)


def model(seed: int = 0, cell: CellKind = "lstm") -> FusedStack:
    """A tiny one."""
    torch.manual_seed(seed)
    return FusedStack(dataclasses.replace(CONFIG, cell=cell))


def token_windows(count: int, *, time: int = 6, batch: int = 3) -> list[Window]:
    """Windows of one random text that go on where the last ended."""
    ids = np.random.default_rng(1).integers(0, 11, (count * time + 1, batch))
    return [
        Window(ids[at : at + time], ids[at + 1 : at + time + 1], fresh=at == 0)
        for at in range(0, count * time, time)
    ]


def nats_by_the_equations(network: FusedStack, windows: list[Window]) -> torch.Tensor:
    """The loss of each token of all windows as one long run of the equations, [time, batch]."""
    stack = Stack(network.config).eval()
    load_weights(stack, numpy_weights(network))
    inputs, targets = (
        torch.from_numpy(np.concatenate(parts))
        for parts in zip(*((one.inputs, one.targets) for one in windows), strict=True)
    )
    with torch.inference_mode():
        trace: Trace = stack(inputs)
    return -trace.prediction.gather(-1, targets[..., None])[..., 0]


def test_the_state_is_carried_from_window_to_window() -> None:
    """Truncated backpropagation cuts the gradient, never the state."""
    network, windows = model(), token_windows(3)
    learner = Learner(network, Training(tokens=1, weight_decay=0), "float32")
    expected = nats_by_the_equations(network, windows).reshape(3, -1).mean(dim=1)
    found = [learner.learn(window, learning_rate=0.0).loss for window in windows]
    assert found == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_fresh_window_forgets() -> None:
    """A new reading of the text starts at another place: the old state says nothing there."""
    network, (window, *_) = model(), token_windows(1)
    learner = Learner(network, Training(tokens=1, weight_decay=0), "float32")
    assert learner.learn(window, 0.0) == learner.learn(window, 0.0)


def test_an_update_is_adamw_on_the_clipped_gradient() -> None:
    """The reference is PyTorch's own loop over the equations' form."""
    network, (window, *_) = model(), token_windows(1)
    training = Training(tokens=1, weight_decay=0.1, gradient_norm_max=0.05)
    stack = Stack(CONFIG).train()
    load_weights(stack, numpy_weights(network))
    optimizer = torch.optim.AdamW(stack.parameters(), lr=0.01, weight_decay=0.1)
    trace = stack(torch.from_numpy(window.inputs))
    loss = nn.functional.nll_loss(trace.prediction.flatten(0, 1), torch.from_numpy(window.targets).flatten())
    loss.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it without annotations
    nn.utils.clip_grad_norm_(stack.parameters(), 0.05)
    optimizer.step()
    Learner(network, training, "float32").learn(window, learning_rate=0.01)
    for name, weight in numpy_weights(stack).items():
        np.testing.assert_allclose(numpy_weights(network)[name], weight, atol=2e-5)


def test_muon_turns_the_matrices_of_the_recurrence_and_adamw_the_rest() -> None:
    """Muon's first step goes along the gradient's polar factor, by its paper; the reference is an SVD."""
    network, (window, *_) = model(), token_windows(1)
    before = numpy_weights(network)
    stack = Stack(CONFIG)
    load_weights(stack, before)
    trace = stack(torch.from_numpy(window.inputs))
    loss = nn.functional.nll_loss(trace.prediction.flatten(0, 1), torch.from_numpy(window.targets).flatten())
    loss.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it without annotations
    gradients = {name: weight.grad.numpy() for name, weight in stack.named_parameters()}
    training = Training(tokens=1, optimizer="muon", weight_decay=0)
    Learner(network, training, "float32").learn(window, learning_rate=0.01)
    for name, weight in numpy_weights(network).items():
        step = before[name] - weight
        if name.startswith("layers.") and weight.ndim == 2:
            left, _, right = np.linalg.svd(gradients[name], full_matrices=False)
            polar = left @ right
            # Five of Jordan's iterations come near the polar factor, and not to it.
            cosine = np.sum(step * polar) / np.linalg.norm(step) / np.linalg.norm(polar)
            assert cosine > 0.9, name
            assert np.linalg.norm(step) == pytest.approx(
                0.01 * 0.2 * max(weight.shape) ** 0.5 * np.linalg.norm(polar), rel=0.3
            ), name
        else:
            moved = np.abs(step[step != 0])
            assert np.allclose(moved, 0.01, rtol=1e-2), "AdamW's first step has the rate's length"


def by_jordan(matrix: torch.Tensor) -> torch.Tensor:
    """Muon's iteration as its author wrote it down, in float64."""
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(96, 24), (24, 96), (30, 30)])
def test_orthogonal_is_jordans_iteration(shape: tuple[int, int]) -> None:
    """In float32 and on the smaller square; gradients are as ill conditioned."""
    generator = torch.Generator().manual_seed(7)
    matrix = torch.randn(shape, generator=generator) * torch.logspace(0, -4, shape[1])
    np.testing.assert_allclose(orthogonal(matrix), by_jordan(matrix), atol=2e-4)
    assert orthogonal(torch.zeros(shape)).count_nonzero() == 0


@pytest.mark.parametrize("cell", ["gru", "rnn", "lstm"])
def test_bfloat16_learns_and_keeps_float32_weights(cell: CellKind) -> None:
    """The weights that are exported were never rounded to 8 bits."""
    network, windows = model(cell=cell), token_windows(2)
    if not runs_in_bfloat16(network, windows[0]):
        assert cell == "lstm", "PyTorch's own code, which runs anywhere"
        pytest.skip("PyTorch has no LSTM in bfloat16 for this processor")
    learner = Learner(network, Training(tokens=1), "bfloat16")
    losses = [learner.learn(window, 0.02).loss for window in windows * 20]
    assert losses[-1] < losses[0]
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    """One bad update would turn every weight into NaN, and the next checkpoint with it."""
    network, (window, *_) = model(), token_windows(1)
    with torch.no_grad():
        network.head.bias[0] = math.nan
    before = numpy_weights(network)
    with pytest.raises(TrainingFailed, match="loss became nan"):
        Learner(network, Training(tokens=1), "float32").learn(window, 0.1)
    for name, weight in numpy_weights(network).items():
        np.testing.assert_array_equal(weight, before[name])


def test_a_gradient_that_is_not_finite_stops_before_the_update() -> None:
    """A finite loss can have such a gradient, and one step along it loses every weight."""
    network, (window, *_) = model(), token_windows(1)
    network.head.weight.register_hook(lambda gradient: gradient * math.inf)
    before = numpy_weights(network)
    with pytest.raises(TrainingFailed, match="gradient became"):
        Learner(network, Training(tokens=1), "float32").learn(window, 0.1)
    for name, weight in numpy_weights(network).items():
        np.testing.assert_array_equal(weight, before[name])


def test_bits_are_those_of_one_long_run() -> None:
    """Cut into windows of any length, the held-out text is read as one session would read it."""
    network = model()
    ids = np.random.default_rng(2).integers(0, 11, 1500)
    nats = nats_by_the_equations(network, [Window(ids[:-1, None], ids[1:, None], fresh=True)])
    piece = Piece("text", "x" * 1000, ids)  # 1.5 tokens a character
    assert bits_per_character(network, piece) == pytest.approx(
        nats.mean().item() / math.log(2) * 1.5, abs=1e-5
    )


def test_rows_are_read_beside_each_other() -> None:
    """Faster, each from an empty state."""
    network = model()
    ids = np.random.default_rng(2).integers(0, 11, 60)
    rows = [Piece("row", "x" * 20, part) for part in np.split(ids, 3)]
    expected = np.mean([bits_per_character(network, row) for row in rows])
    assert bits_per_character(network, Piece("all", "x" * 60, ids), rows=3) == pytest.approx(
        expected, abs=1e-5
    )


def test_a_model_that_knows_nothing_needs_all_bits() -> None:
    """Eleven equally likely tokens: log₂ 11, whatever the text; measuring leaves training mode as it was."""
    network = model().train()
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    piece = Piece("text", "x" * 600, np.random.default_rng(3).integers(0, 11, 600))
    assert bits_per_character(network, piece) == pytest.approx(math.log2(11), abs=1e-5)
    assert network.training


def test_compressors_are_measured_behind_the_training_text() -> None:
    """As the network is: what it has learned before counts for it."""
    training, heldout = "to be or not to be " * 50, ["that is the question", "to be or not to be"]
    found = compressors_bits_per_character(training, heldout)
    both = (training + "".join(heldout)).encode()
    assert found["xz"] == pytest.approx(
        8 * (len(lzma.compress(both, preset=9)) - len(lzma.compress(training.encode(), preset=9))) / 38
    )
    assert found["bzip2"] == pytest.approx(
        8 * (len(bz2.compress(both)) - len(bz2.compress(training.encode()))) / 38
    )


def test_whichever_limit_is_nearer_ends_it() -> None:
    """A limit in time bends the schedule instead of cutting it off, so the share must reach 1 either way."""
    assert Budget(tokens=100, seconds=None).spent(25, 1e9) == 0.25
    assert Budget(tokens=None, seconds=60).spent(10**9, 15) == 0.25
    assert Budget(tokens=100, seconds=60).spent(25, 45) == 0.75
    assert Budget(tokens=100, seconds=60).spent(250, 45) == 1.0


def test_the_learning_rate_rises_then_decays_whole() -> None:
    """Linear up, half a cosine down, to the share that the recipe names."""
    schedule = Schedule(highest=2.0, warmup_ratio=0.2, final_ratio=0.1)
    assert schedule.learning_rate(0) == 0
    assert schedule.learning_rate(0.1) == pytest.approx(1.0)
    assert schedule.learning_rate(0.2) == pytest.approx(2.0)
    assert schedule.learning_rate(0.6) == pytest.approx((2.0 + 0.2) / 2)  # half way down
    assert schedule.learning_rate(1.0) == pytest.approx(0.2)
    assert Schedule(2.0, 0.0, 0.0).learning_rate(0) == 2.0


def test_a_recipe_that_says_its_pace_is_obeyed() -> None:
    """Two runs of the same recipe then differ by nothing."""
    training = Training(tokens=1, precision="bfloat16", threads=3)
    assert choose_pace(model(cell="gru"), training, token_windows(1)[0]) == Pace("bfloat16", 3)
    assert str(Pace("float32", 1)) == "float32 on 1 thread"


def test_bfloat16_is_refused_where_pytorch_cannot_and_auto_does_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on processors without AVX-512, where it says that it could not create a primitive descriptor."""
    network, (window, *_) = model(), token_windows(1)

    def refuse(*arguments: object) -> object:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("could not create a primitive descriptor")
        return torch.lstm(*arguments)

    monkeypatch.setattr("cellstream.cells.stack._RUNS", {"lstm": refuse})
    with pytest.raises(RecipeInvalid, match="no lstm in it for this processor"):
        choose_pace(network, Training(tokens=1, precision="bfloat16"), window)
    assert choose_pace(network, Training(tokens=1), window).precision == "float32"


def test_a_trial_leaves_model_threads_and_dice_as_they_were() -> None:
    """What is learned must not depend on how long a trial took."""
    network, training = model(), Training(tokens=1)
    before, dice = numpy_weights(network), torch.get_rng_state()
    with threads_set(2):
        pace = choose_pace(network, training, token_windows(1)[0])
        assert torch.get_num_threads() == 2
    assert pace.precision in ("float32", "bfloat16")
    assert pace.threads in (1, 2)
    assert torch.equal(torch.get_rng_state(), dice)
    for name, weight in numpy_weights(network).items():
        np.testing.assert_array_equal(weight, before[name])


def test_threads_are_given_back_after_a_failure() -> None:
    """The library must not leave a caller's PyTorch on one thread."""
    before = torch.get_num_threads()

    def fail() -> None:
        with threads_set(before + 1):
            assert torch.get_num_threads() == before + 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.get_num_threads() == before
