"""The recall task: symbols to remember, a gap of noise, then say them again. How long a gap can be learned?

    in      c a  n m o n m m o …  ? ?
    out                           c a

After the tasks with long time lags of Hochreiter and Schmidhuber (1997): the noise is random, so it has to
be kept out of the memory. Tiny networks of one layer and the same number of weights, one for each gap, learn
from the same number of sequences. Each cell's learning rate at each gap is the best of `RATES` by the
accuracy of one seed that is not used again.
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

GAPS = (2, 4, 8, 16, 32, 64, 128)

UPDATES = 1000

ROWS = 64

RATES = (1e-3, 3e-3, 1e-2)

SEEDS = (1, 2, 3)

TESTED = 1024
"""Sequences."""


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
    """Choose the rate, then train and test every seed, for each cell and gap."""
    torch.set_num_threads(1)
    results = read_result("recall")
    for cell in SIZES:
        for gap in GAPS:
            tried = {f"{rate:g}": accuracy(cell, gap, rate, seed=0) for rate in RATES}
            rate = float(max(tried, key=tried.__getitem__))
            found = {"learning_rates": tried, "accuracy": [accuracy(cell, gap, rate, seed) for seed in SEEDS]}
            known = results.setdefault(
                cell, {"hidden_size": SIZES[cell], "weights": config(cell).parameters, "gaps": {}}
            )
            known["gaps"][str(gap)] = found
            print(f"{cell}, gap {gap}: {found}", flush=True)
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


def accuracy(cell: CellKind, gap: int, rate: float, seed: int) -> float:
    """Train one network for a gap; give the share of symbols that it then gets right."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = FusedStack(config(cell))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    for _ in range(UPDATES):
        sequences = draw(random, gap, ROWS)
        answers = torch.from_numpy(sequences.answers)
        loss = nn.functional.nll_loss(_answer(model, sequences).flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it without annotations
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.inference_mode():
        sequences = draw(random, gap, TESTED)
        return round(float((_answer(model, sequences).argmax(-1).numpy() == sequences.answers).mean()), 4)


def _answer(model: FusedStack, sequences: Sequences) -> torch.Tensor:
    """Log-probabilities where it is asked, [REMEMBERED, rows, vocabulary]."""
    trace: Trace = model(torch.from_numpy(sequences.inputs))
    return trace.prediction[-REMEMBERED:]


if __name__ == "__main__":
    main()
