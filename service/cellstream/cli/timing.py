"""How long a command took, and how long the answers took that it waited for."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

_KEPT = 100_000
"""Answers whose latency is kept: `tail -f` may go on for months."""


class Timing:
    """Starts when it is made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._latencies: deque[float] = deque(maxlen=_KEPT)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._started

    def add(self, seconds: float) -> None:
        """One more answer came, after so many seconds."""
        self._latencies.append(seconds)

    def quantile_milliseconds(self, quantile: float) -> float:
        """The latency that this share of the last 100,000 answers did not pass; 0 if there are none."""
        return float(np.quantile(self._latencies, quantile)) * 1e3 if self._latencies else 0.0

    def to_json(self) -> dict[str, float]:
        """For programs."""
        return {
            "seconds": round(self.seconds, 3),
            "latency_p50_milliseconds": round(self.quantile_milliseconds(0.5), 3),
            "latency_p95_milliseconds": round(self.quantile_milliseconds(0.95), 3),
        }

    def __str__(self) -> str:
        p50, p95 = (self.quantile_milliseconds(quantile) for quantile in (0.5, 0.95))
        return f"{self.seconds:.1f} s; latency p50 {p50:.2f} ms, p95 {p95:.2f} ms"
