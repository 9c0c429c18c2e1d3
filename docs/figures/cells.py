"""Looks for cells that mean something: every cell against every feature, with three controls.

A search through hundreds of cells always finds something. So what is found in one play must hold in another
(*confirmed*); it must beat the best that the same search finds when the feature is moved along the text, so
that it fits nothing (*chance*); and a cell that knows no more than the character just read remembers nothing
(*last character alone*). Two of the plays were held out of training: one to search, one to confirm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from docs.figures.features import COUNTS, FACTS
from docs.figures.measures import (
    SATURATED,
    Numbers,
    areas,
    by_character,
    correlations,
    half_life,
    ranks,
)
from docs.figures.reading import Array, Reader, Tokens, as_tokens, in_rows

ROWS, WARM_UP = 32, 200
"""A play is read in so many stretches at once, each behind so many characters that only warm up its state."""

SHIFTS = 20
"""How often a feature is moved for the control."""

EVERY = 3
"""The search looks at every third moment: neighbours are much alike, and it takes a third of the time."""

GATES = ("forget", "input", "output")

Score = Callable[[Numbers, Numbers], Numbers]
"""From features [features, time] and cells [time, cells] to signed scores [features, cells]; nothing is 0."""


@dataclass(frozen=True)
class Play:
    """What reading a play left; moments are in the order of the text.

    Attributes:
        tokens: The character of each moment, [time].
        cells: C after it, float32 [time, layers × units].
        features: What is true of the text at each moment, by name, float32 [time]; facts are 0 or 1.
        left: By gate, the share of moments in which each cell's gate was below `SATURATED`, [layers, units].
        right: The same above 1 − `SATURATED`.
        half_lives: Of each cell in steps, [layers, units].
    """

    tokens: Tokens
    cells: Array
    features: dict[str, Array]
    left: dict[str, Numbers]
    right: dict[str, Numbers]
    half_lives: Numbers


@dataclass(frozen=True)
class Finding:
    """The cell that follows a feature best.

    Attributes:
        feature: Its name in `features`.
        measure: `|r|` or `AUC`.
        layer: From 1, as the guide counts.
        unit: From 0.
        sign: 1 if the cell goes up with the feature, −1 if down.
        found: The score in the play that was searched.
        confirmed: The score of the same cell, with the same sign, in the other play.
        chance: The 95th percentile of the best score of any cell with a feature moved along the text.
        last_character: What the last character alone reaches in the other play.
    """

    feature: str
    measure: str
    layer: int
    unit: int
    sign: int
    found: float
    confirmed: float
    chance: float
    last_character: float

    @property
    def means_something(self) -> bool:
        """Whether it beats both controls in the play that was not searched."""
        return self.confirmed > max(self.chance, self.last_character)


def read_play(reader: Reader, text: str) -> Play:
    """Reads a whole play, all cells watched."""
    tokens, places = in_rows(text, ROWS, WARM_UP)
    cells = list[Array]()
    left = {gate: np.zeros(()) for gate in GATES}
    right, log_forget = dict(left), np.zeros(())
    for step, given in enumerate(reader.steps(tokens)):
        if step < WARM_UP:
            continue
        cells.append(given.states["cell"])
        for gate in GATES:
            left[gate] = left[gate] + (given.gates[gate] < SATURATED).mean(0)
            right[gate] = right[gate] + (given.gates[gate] > 1 - SATURATED).mean(0)
        log_forget = log_forget + np.log(np.maximum(given.gates["forget"], 1e-30)).mean(0)
    steps, order = len(places), places.T.reshape(-1)
    return Play(
        tokens=as_tokens(text)[order],
        cells=np.stack(cells, 1).reshape(order.size, -1),  # rows first: the order of the text
        features={name: of(text)[order].astype(np.float32) for name, of in {**COUNTS, **FACTS}.items()},
        left={gate: share / steps for gate, share in left.items()},
        right={gate: share / steps for gate, share in right.items()},
        half_lives=half_life(log_forget / steps),
    )


def find(searched: Play, confirming: Play) -> list[Finding]:
    """The best cell for every feature, with its controls.

    Args:
        searched: The play in which all cells are scored.
        confirming: The other one.
    """
    counts = _search("|r|", correlations, 0.0, tuple(COUNTS), searched, confirming)
    facts = _search("AUC", _areas, 0.5, tuple(FACTS), searched, confirming)
    return counts + facts


def _search(
    measure: str, score: Score, nothing: float, names: Sequence[str], searched: Play, confirming: Play
) -> list[Finding]:
    """Searches with one kind of score; `nothing` is what it gives where there is nothing."""
    cells = searched.cells[::EVERY]
    prepared = ranks(cells) if score is _areas else cells
    rng = np.random.default_rng(1)
    offsets = rng.integers(len(cells) // 50, len(cells) - len(cells) // 50, SHIFTS)
    units = searched.half_lives.shape[1]
    found = []
    for name in names:
        feature, there = searched.features[name], confirming.features[name]
        sparse = feature[::EVERY]
        scores = score(sparse[None], prepared)[0]
        moved = score(np.stack([np.roll(sparse, offset) for offset in offsets]), prepared)
        best = int(np.abs(scores).argmax())
        sign = 1 if scores[best] > 0 else -1
        watched = confirming.cells[:, [best]]
        guess = by_character(searched.tokens, feature, confirming.tokens)[:, None]
        if score is _areas:
            watched, guess = ranks(watched), ranks(guess)
        found.append(
            Finding(
                feature=name,
                measure=measure,
                layer=best // units + 1,
                unit=best % units,
                sign=sign,
                found=nothing + abs(float(scores[best])),
                confirmed=nothing + sign * float(score(there[None], watched)[0, 0]),
                chance=nothing + float(np.quantile(np.abs(moved).max(1), 0.95)),
                last_character=nothing + float(score(there[None], guess)[0, 0]),
            )
        )
    return found


def _areas(features: Numbers, cell_ranks: Numbers) -> Numbers:
    return areas(features > 0, cell_ranks) - 0.5
