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
    def cpu_microseconds_per_token(self) -> float:
        """What a token costs the process that answers."""
        return 1e6 * self.cpu_seconds / self.tokens


Side = Callable[[float], Run]
"""Works for about so many seconds."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours and the floor, measured in alternating pairs."""

    ours: list[Run]
    floor: list[Run]

    @property
    def ratios(self) -> list[float]:
        """Of each pair: our tokens per second over the floor's."""
        return [our.rate / bare.rate for our, bare in zip(self.ours, self.floor, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Every run of it."""
        return {
            "ratio_median": statistics.median(self.ratios),
            "ratios": self.ratios,
            "ours": [asdict(run) for run in self.ours],
            "floor": [asdict(run) for run in self.floor],
        }


def compare(ours: Side, floor: Side, *, pairs: int, seconds: float, warm_up_seconds: float) -> Comparison:
    """Measures both sides in turn, `pairs` times; every other pair begins with the other side."""
    ours(warm_up_seconds)
    floor(warm_up_seconds)
    comparison = Comparison([], [])
    for pair in range(pairs):
        turns = [(comparison.ours, ours), (comparison.floor, floor)]
        for runs, side in turns if pair % 2 == 0 else reversed(turns):
            runs.append(side(seconds))
    return comparison

