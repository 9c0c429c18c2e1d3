"""What a call costs by its graph, rows, steps and answers, and which graph is the cheaper.

The step graph runs one step for all rows at a time. The sequence graph runs many steps of few rows at once,
each row as many as it has tokens: what a step multiplies is then one large product for all steps, but rows
that end early pay for the rest.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

RAGGED_MAX = 2
"""How many times the tokens of its shortest row a sequence call has steps at most. So no feed waits for more
than as much again as it brought, and at most half of its row is padding; longer feeds go on without it."""

WORTH = 0.9
"""The share of the step graph's cost that the sequence graph must not exceed. Near a tie the graph that is
exact runs, and what noise did to a measurement decides nothing."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a call of a graph by its rows and steps, measured at load; straight lines in between.

    Attributes:
        rows: Ascending numbers of rows, the first is 1.
        first: What a call of so many rows and one step took.
        further: What each further step of it took.
    """

    rows: tuple[int, ...]
    first: tuple[float, ...]
    further: tuple[float, ...]

    def call_seconds(self, rows: int, steps: int) -> float:
        """What a call takes."""
        return self._at(rows, self.first) + (steps - 1) * self._at(rows, self.further)

    def steps_within(self, rows: int, seconds: float, told: float = 0.0) -> int:
        """How many steps a call of `rows` rows may have to take at most so long; 0 if not even one.

        Args:
            rows: How many.
            seconds: What it may take.
            told: What its feeds are told of each step costs, in seconds.
        """
        left = seconds - self._at(rows, self.first) - told
        return 0 if left < 0 else 1 + int(left / (self._at(rows, self.further) + told))

    def _at(self, rows: int, seconds: tuple[float, ...]) -> float:
        return _read(self.rows, seconds, rows)

    def __str__(self) -> str:
        """In µs, by rows: the first step + each further one."""
        columns = zip(self.rows, self.first, self.further, strict=True)
        return ", ".join(f"{rows}: {1e6 * first:.0f}+{1e6 * further:.0f}" for rows, first, further in columns)


@dataclass(frozen=True, slots=True)
class Telling:
    """Seconds of telling one feed of one step, by how many most likely tokens it wants.

    It is Python's and numpy's work, not the graph's: for a small graph, or many tokens of a large vocabulary,
    many times what the step itself costs.

    Attributes:
        top_k: Ascending, the first is 1; empty where there are no tokens.
        seconds: What each took, measured at load.
    """

    top_k: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()

    def step_seconds(self, top_k: int) -> float:
        """What one step of one feed takes; 0 for none, whose costs are small."""
        return _read(self.top_k, self.seconds, top_k) if top_k and self.top_k else 0.0


def _read(places: tuple[int, ...], values: tuple[float, ...], place: int) -> float:
    """Read a column of a table; beyond its end it grows in proportion to its last entry."""
    after = bisect.bisect_left(places, place)
    if after == len(places):
        return values[-1] * place / places[-1]
    if places[after] == place:
        return values[after]
    low, high = places[after - 1], places[after]
    share = (place - low) / (high - low)
    return values[after - 1] * (1 - share) + values[after] * share


def sequence_steps(waiting: Sequence[int], step_seconds: float, sequence: Costs, steps_max: int) -> int:
    """How many steps the sequence graph had best run; 0 where the step graph is as cheap.

    What counts is the cost of a token. Padding costs and gives none, so it pays only where rows that end
    early are few.

    Args:
        waiting: How many tokens each row has.
        step_seconds: What the step graph would take for each token that it absorbs.
        sequence: What the sequence graph costs.
        steps_max: How many steps it may run with so many rows.
    """

    def token_seconds(steps: int) -> float:
        return sequence.call_seconds(len(waiting), steps) / sum(min(tokens, steps) for tokens in waiting)

    longest = min(RAGGED_MAX * min(waiting), steps_max)
    # Between two neighbouring numbers of tokens the cost only falls or only rises: the best is one of them.
    best = min(sorted({min(tokens, longest) for tokens in waiting}), key=token_seconds)
    return best if token_seconds(best) <= WORTH * step_seconds else 0
