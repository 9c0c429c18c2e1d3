"""Which feeds step next, and how many steps one call runs: plain bookkeeping, no clock, no arrays.

Continuous batching by step: a batch takes one token from every feed that waits, so a feed of ten thousand
tokens takes one row of each step and delays nobody, and what a session gets does not depend on how its
tokens were cut into feeds. Two bounds keep a call short: as many rows, and as many steps, as the cost table
allows in the time target; where one step of one row takes longer, that is what a call has. Where there is a
sequence graph (`fast` numerics) and it is the cheaper for what waits, a batch says how many steps of it to
run. Same calls, same batches.

(BatchMaker, EuroSys'18, batches by cell; Orca, OSDI'22, calls it iteration-level scheduling.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from cellstream.engine.batch import Feed, Want
from cellstream.engine.costs import Costs, Telling, sequence_steps

# Names of the module: an enum's member costs 30 ns to look up, and these are compared for every row.
_EVERY_STEP = Want.EVERY_STEP

STEPS_MAX = 256
"""Steps of one call at most, however cheap: beyond it the fixed cost of a call is far below one percent."""

HEAVY = 2
"""How many steps' time a call of the sequence graph may take of a model whose single step exceeds the target.
Whoever arrives meanwhile waits for at most twice the shortest call that there is."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of the next call.

    Attributes:
        feeds: They all have tokens.
        steps: How many tokens each feed steps by on the step graph.
        sequence_steps: How many at most on the sequence graph, which is the cheaper; 0: it is not.
    """

    feeds: list[Feed]
    steps: int
    sequence_steps: int = 0


class Scheduler:
    """The feeds that wait, in the order in which they get their turn; at most one for each slot.

    Args:
        costs: What a call of the step graph costs.
        batch_rows_max: Rows of one call at most.
        call_seconds_max: Target for one call. Where a single step of a single row takes longer, calls have
            that one step, or as many of the sequence graph as take at most `HEAVY` times as long.
        steps_max: Steps of one call at most; 1 for a graph whose results depend on how steps are cut.
        sequence: What a call of the sequence graph costs; None: there is none.
        telling: What it costs to tell feeds of their steps; it shortens calls whose every step answers.

    Attributes:
        waiting: The feeds that wait, by slot, in the order of their turns; changed here only.
        rows_max: Rows of one call at most.
    """

    def __init__(
        self,
        costs: Costs,
        *,
        batch_rows_max: int,
        call_seconds_max: float,
        steps_max: int = STEPS_MAX,
        sequence: Costs | None = None,
        telling: Telling | None = None,
    ) -> None:
        # How many steps a call of so many rows may run; 0 where not even one fits the target.
        fitting = [costs.steps_within(rows, call_seconds_max) for rows in range(1, batch_rows_max + 1)]
        self.rows_max = max([rows for rows, steps in enumerate(fitting, start=1) if steps], default=1)
        self._steps_max = [1] + [min(max(steps, 1), steps_max) for steps in fitting[: self.rows_max]]
        self._costs, self._sequence = costs, sequence
        self._step_told = lru_cache((telling or Telling()).step_seconds)  # Most rows want the same.
        self._call_seconds_max = call_seconds_max if fitting[0] else HEAVY * costs.call_seconds(1, 1)
        # Likewise of the sequence graph; 0 where it does not pay for so many rows.
        self._sequence_steps_max = [0] * (self.rows_max + 1)
        if sequence is not None:
            for rows, steps in enumerate(self._steps_max[1:], start=1):
                longest = min(sequence.steps_within(rows, self._call_seconds_max), STEPS_MAX)
                seconds = costs.call_seconds(rows, steps) / (rows * steps)
                if longest > 1 and sequence_steps([longest] * rows, seconds, sequence, longest):
                    self._sequence_steps_max[rows] = longest
        self.waiting: dict[int, Feed] = {}

    def __repr__(self) -> str:
        return f"<Scheduler: {len(self.waiting)} feeds waiting, {self.rows_max} rows a call>"

    def add(self, feed: Feed) -> None:
        """Puts a feed behind all that wait; none of its slot may be waiting."""
        assert feed.slot not in self.waiting, f"a feed of slot {feed.slot} is waiting"
        self.waiting[feed.slot] = feed

    def remove(self, feed: Feed) -> bool:
        """Takes a feed out; whether it was waiting."""
        if self.waiting.get(feed.slot) is not feed:
            return False
        del self.waiting[feed.slot]
        return True

    def remove_all(self, feeds: Iterable[Feed]) -> None:
        """Takes out feeds that all wait."""
        for feed in feeds:
            del self.waiting[feed.slot]

    def next_batch(self) -> Batch | None:
        """The feeds that step next, oldest first; None when none waits.

        They go on waiting until they are removed. Where not all fit, those taken go behind the others.
        """
        waiting = self.waiting
        if not waiting:
            return None
        if len(waiting) <= self.rows_max:
            feeds = list(waiting.values())
        else:
            feeds = list(islice(waiting.values(), self.rows_max))
            for feed in feeds:
                del waiting[feed.slot]
                waiting[feed.slot] = feed
        steps, told = self._steps_max[len(feeds)], 0.0
        for feed in feeds:
            if steps == 1:
                break
            # A feed that samples and has absorbed all its tokens has one more: the one to be drawn.
            steps = min(steps, len(feed.inputs) - feed.applied) or 1
            if feed.answer.want is _EVERY_STEP:
                told += self._step_told(feed.answer.top_k)
                if feed.answer.states:
                    steps = 1  # The graph gives the states after the last step only.
        if told and steps > 1:
            steps = min(steps, self._costs.steps_within(len(feeds), self._call_seconds_max, told) or 1)
        return Batch(feeds, steps, self._sequence_steps(feeds, steps, told) if self._sequence else 0)

    def _sequence_steps(self, feeds: Sequence[Feed], steps: int, told: float) -> int:
        """How many steps the sequence graph had best run in place of so many of the step graph; 0: none."""
        assert self._sequence is not None, "whoever asks has seen to it"
        rows, longest = len(feeds), self._sequence_steps_max[len(feeds)]
        if not longest or any(map(_needs_step_graph, feeds)):
            return 0
        waiting = [len(feed.inputs) - feed.applied for feed in feeds]
        if min(waiting) < 2:
            return 0  # One with a single token waiting, or one to be drawn, is not held up.
        if told:
            longest = min(longest, self._sequence.steps_within(rows, self._call_seconds_max, told) or 1)
        seconds = self._costs.call_seconds(rows, steps) / (rows * steps)
        return sequence_steps(waiting, seconds, self._sequence, longest)


def _needs_step_graph(feed: Feed) -> bool:
    """Whether it asks for what only the step graph shows: gates, and, step by step, the states."""
    answer = feed.answer
    return answer.gates or (answer.states and answer.want is _EVERY_STEP)
