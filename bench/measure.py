"""Two sides measured in turn, and what comes of it: ratios of pairs, medians, spreads."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
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
        latencies: From sending to answer, in seconds, one for each message.
    """

    tokens: int
    seconds: float
    cpu_seconds: float
    mean_batch: float | None = None
    client_cpu_seconds: float | None = None
    latencies: Sequence[float] = field(default=(), repr=False)

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @property
    def cpu_microseconds_per_token(self) -> float:
        """What a token costs the process that answers."""
        return 1e6 * self.cpu_seconds / self.tokens

    def to_json(self) -> dict[str, Any]:
        """All of it, the latencies as quantiles."""
        numbers = asdict(self)
        numbers["latencies"] = (
            {f"p{percent}_ms": 1e3 * quantile(self.latencies, percent / 100) for percent in (50, 90, 99)}
            if self.latencies
            else None
        )
        return numbers


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
            "ours": [run.to_json() for run in self.ours],
            "floor": [run.to_json() for run in self.floor],
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


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]
