"""Two sides measured in turn, and what comes of it: ratios of pairs, medians, spreads."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Run:
    """What one side did in one stretch of time.

    Attributes:
        tokens: How many were answered.
        seconds: In how long.
        cpu_seconds: What the process that answered spent.
        mean_batch: Tokens for each step of the graph; None where there is no graph.
        client_cpu_seconds: What the load client spent; None where there is none.
        p50_ms: Median time from sending a message to its answer; None where there are no messages.
        p99_ms: What 99 of 100 messages did not exceed.
        stream_replies: The fewest and the most messages that a stream was answered.
    """

    tokens: int
    seconds: float
    cpu_seconds: float
    mean_batch: float | None = None
    client_cpu_seconds: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    stream_replies: tuple[int, int] | None = None

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @property
    def cpu_microseconds(self) -> float:
        """What a token costs the process that answers."""
        return 1e6 * self.cpu_seconds / self.tokens

    def to_json(self) -> dict[str, Any]:
        """All of it, and what follows from it."""
        return {**asdict(self), "rate": self.rate, "cpu_microseconds": self.cpu_microseconds}


Side = Callable[[float], Run]
"""Works for about so many seconds."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often to measure.

    Attributes:
        seconds: Of one measurement.
        pairs: Measurements of each side.
        warm_up_seconds: Before the first, for each side.
    """

    seconds: float
    pairs: int
    warm_up_seconds: float


def compare(ours: Side, floor: Side, plan: Plan) -> dict[str, Any]:
    """Measures both sides in turn; every other pair begins with the other side.

    Returns:
        Of each pair, in `ratios`, our tokens per second over the floor's; their median; every run.
    """
    ours(plan.warm_up_seconds)
    floor(plan.warm_up_seconds)
    ours_runs: list[Run] = []
    floor_runs: list[Run] = []
    for pair in range(plan.pairs):
        turns = [(ours_runs, ours), (floor_runs, floor)]
        for runs, side in turns if pair % 2 == 0 else reversed(turns):
            runs.append(side(plan.seconds))
    ratios = [our.rate / bare.rate for our, bare in zip(ours_runs, floor_runs, strict=True)]
    return {
        "median": statistics.median(ratios),
        "ratios": ratios,
        "ours": [run.to_json() for run in ours_runs],
        "floor": [run.to_json() for run in floor_runs],
    }
