"""The recall task: symbols to remember, a gap of noise, then say them again. How long are they held?

    in      c a  n m o n m m o …  ? ?
    out                           c a

After the tasks with long time lags of Hochreiter and Schmidhuber (1997): the noise is random, so it has to be
kept out of the memory. Tiny networks of one layer and the same number of weights learn from the same number
of sequences, with gaps drawn evenly up to `GAP_MAX`; then each gap is tested by itself, longer ones too. The
learning rate of each cell is the best of `RATES` by the mean accuracy of one seed that is not used again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cellstream.cells.config import CellKind, StackConfig
from cellstream.cells.stack import FusedStack, Trace
from studies.study import read_result, write_result

SYMBOLS = 8
"""Different symbols to remember; as many again are noise, and one more asks."""

ASK = 2 * SYMBOLS

REMEMBERED = 2

SIZES: dict[CellKind, int] = {"lstm": 32, "gru": 38, "rnn": 68}
"""Hidden sizes of equal cost: 7,233, 7,319 and 7,293 weights."""

GAP_MAX = 64

GAPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

UPDATES = 1500

ROWS = 64

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)

SEEDS = (1, 2, 3, 4)

TESTED = 512
"""Sequences of each gap."""


@dataclass(frozen=True)
class Sequences:
    """Some sequences of the same gap.

    Attributes:
        inputs: int64 [time, rows]; the last `REMEMBERED` steps ask.
        answers: int64 [REMEMBERED, rows].
    """

    inputs: NDArray[np.int64]
    answers: NDArray[np.int64]


def main() -> None:
    """Choose the rate, then train and test every seed, for each cell."""
    torch.set_num_threads(1)
    results = read_result("recall")
    for cell in SIZES:
        tried = {f"{rate:g}": accuracies(cell, rate, seed=0) for rate in RATES}
        means = {rate: round(float(np.mean(found)), 4) for rate, found in tried.items()}
        best = max(means, key=means.__getitem__)
        results[cell] = {
            "hidden_size": SIZES[cell],
            "weights": config(cell).parameters,
            "learning_rates": means,
            "gaps": GAPS,
            "accuracy": [accuracies(cell, float(best), seed) for seed in SEEDS],
        }
        print(f"{cell}: {results[cell]}", flush=True)
        write_result("recall", results)


def config(cell: CellKind) -> StackConfig:
    """The network for the task."""
    return StackConfig(
        cell=cell, layers=1, hidden_size=SIZES[cell], embedding_size=16, vocabulary_size=2 * SYMBOLS + 1
    )


def draw(random: np.random.Generator, gap: int, rows: int) -> Sequences:
    """Draw sequences."""
    answers = random.integers(SYMBOLS, size=(REMEMBERED, rows))
    noise = random.integers(SYMBOLS, 2 * SYMBOLS, size=(gap, rows))
    ask = np.full((REMEMBERED, rows), ASK)
    return Sequences(np.concatenate((answers, noise, ask)), answers)


def accuracies(cell: CellKind, rate: float, seed: int) -> list[float]:
    """Train one network; give the share of symbols that it gets right at each of `GAPS`."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = FusedStack(config(cell))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    for _ in range(UPDATES):
        sequences = draw(random, int(random.integers(1, GAP_MAX + 1)), ROWS)
        answers = torch.from_numpy(sequences.answers)
        loss = nn.functional.nll_loss(_answer(model, sequences).flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it without annotations
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.inference_mode():
        tested = [draw(random, gap, TESTED) for gap in GAPS]
        return [
            round(float((_answer(model, one).argmax(-1).numpy() == one.answers).mean()), 4) for one in tested
        ]


def _answer(model: FusedStack, sequences: Sequences) -> torch.Tensor:
    """Log-probabilities where it is asked, [REMEMBERED, rows, vocabulary]."""
    trace: Trace = model(torch.from_numpy(sequences.inputs))
    return trace.prediction[-REMEMBERED:]


if __name__ == "__main__":
    main()
