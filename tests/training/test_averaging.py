"""Smoothed labels and averaged weights: what is minimised, what is told, what is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from cellstream.cells import StackConfig
from cellstream.cells.checkpoint import load_checkpoint
from cellstream.cells.stack import FusedStack, load_weights, numpy_weights
from cellstream.training import load_recipe, train
from cellstream.training.data import Window, load_splits
from cellstream.training.learner import Learner
from cellstream.training.measure import bits_per_character
from cellstream.training.recipe import Training

CONFIG = StackConfig(cell="gru", layers=1, hidden_size=8, embedding_size=4, vocabulary_size=11)


def model() -> FusedStack:
    """A tiny one, the same each time."""
    torch.manual_seed(0)
    return FusedStack(CONFIG)


def windows(count: int) -> list[Window]:
    """Windows of random tokens."""
    ids = np.random.default_rng(1).integers(0, 11, (count * 6 + 1, 3))
    return [Window(ids[at : at + 6], ids[at + 1 : at + 7], fresh=at == 0) for at in range(0, count * 6, 6)]


def test_smoothed_labels_are_minimised_and_plain_ones_told() -> None:
    """The update is that of PyTorch's own smoothed loss; the curve stays comparable with any other run."""
    training = Training(tokens=1, label_smoothing=0.1, weight_decay=0.0, gradient_norm_max=1e9)
    window, reference, network = windows(1)[0], model(), model()
    inputs, targets = torch.from_numpy(window.inputs), torch.from_numpy(window.targets).flatten()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.01, weight_decay=0.0)
    logits = reference.head(reference.recurrence(reference.embedding(inputs))[0]).flatten(0, 1)
    nn.functional.cross_entropy(logits, targets, label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
    optimizer.step()

    update = Learner(network, training, "float32").learn(window, 0.01)
    assert update.loss == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), abs=1e-6)
    for name, weight in numpy_weights(reference).items():
        np.testing.assert_allclose(numpy_weights(network)[name], weight, atol=2e-5)


def test_the_average_is_the_one_written_out() -> None:
    """Beside it a plain loop over plain arrays, its memory short at the beginning."""
    network = model()
    learner = Learner(network, Training(tokens=1, averaging=0.6), "float32")
    expected = numpy_weights(network)
    for number, window in enumerate(windows(12), start=1):
        learner.learn(window, 0.02)
        decay = min(0.6, (1 + number) / (10 + number))
        expected = {
            name: decay * expected[name] + (1 - decay) * weight
            for name, weight in numpy_weights(network).items()
        }
    assert learner.kept_model is not network
    for name, weight in numpy_weights(learner.kept_model).items():
        np.testing.assert_allclose(weight, expected[name], atol=1e-6)
        assert not np.allclose(weight, numpy_weights(network)[name], atol=1e-6)


def test_an_average_changes_nothing_that_learns() -> None:
    """It looks on: with and without it the weights are the same to the bit."""
    plain, averaged = model(), model()
    one = Learner(plain, Training(tokens=1), "float32")
    other = Learner(averaged, Training(tokens=1, averaging=0.9), "float32")
    for window in windows(3):
        assert one.learn(window, 0.02) == other.learn(window, 0.02)
    assert one.kept_model is plain
    for name, weight in numpy_weights(plain).items():
        np.testing.assert_array_equal(weight, numpy_weights(averaged)[name])


def test_an_average_goes_on_where_it_was_saved() -> None:
    """After a kill the kept model must be the one of a run that was never killed, bit for bit."""
    training, read = Training(tokens=1, averaging=0.9), windows(6)
    whole = Learner(model(), training, "float32")
    for window in read:
        whole.learn(window, 0.02)
    first, second = (Learner(model(), training, "float32") for _ in range(2))
    for window in read[:3]:
        first.learn(window, 0.02)
    second.restore(first.saved())
    for window in read[3:]:
        second.learn(window, 0.02)
    for name, weight in numpy_weights(whole.kept_model).items():
        np.testing.assert_array_equal(weight, numpy_weights(second.kept_model)[name])


def test_the_average_is_what_is_measured_kept_and_told(recipe_path: Path, console: Console) -> None:
    """Whoever measures the checkpoint again finds its numbers; the card says how it was regularised."""
    changes: dict[str, object] = {
        "training.averaging": 0.9,
        "training.label_smoothing": 0.05,
        "training.locked_dropout": True,
        "training.output_dropout": 0.2,
        "training.recurrent_dropout": 0.15,
        "training.embedding_dropout": 0.05,
    }
    runs = recipe_path.parent / "runs"
    directory = train(recipe_path, runs_directory=runs, console=console, overrides=changes)
    checkpoint = load_checkpoint(directory)
    network = FusedStack(checkpoint.config)
    load_weights(network, checkpoint.weights)
    splits = load_splits(load_recipe(recipe_path).data, runs)
    assert bits_per_character(network, splits.heldout[0]) == pytest.approx(
        checkpoint.record.metrics["heldout_bits_per_character"], abs=1e-6
    )
    card = " ".join((directory / "CARD.md").read_text(encoding="utf-8").split())
    assert (
        "dropout between the layers, the same units at all steps of a window 0.1, "
        "dropout before the head, the same units at all steps of a window 0.2, "
        "dropout of whole rows of the embedding 0.05, dropout of hidden-to-hidden weights 0.15, "
        "label smoothing 0.05, moving average of the weights, with a decay of 0.9; seed 3."
    ) in card
