"""How much of the budget is spent, and the learning rate that goes with it. Plain numbers, no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """How long training may last; at least one of the two.

    Attributes:
        tokens: How many tokens; None: any.
        seconds: How long; None: any.
    """

    tokens: int | None
    seconds: float | None

    def spent(self, tokens: int, seconds: float) -> float:
        """Give the share that is spent, whichever limit is nearer: from 0, 1 at the end.

        A limit in time thus bends the schedule to the speed of the machine instead of cutting it off.
        """
        shares = [0.0]
        if self.tokens is not None:
            shares.append(tokens / self.tokens)
        if self.seconds is not None:
            shares.append(seconds / self.seconds)
        return min(max(shares), 1.0)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a half cosine.

    Attributes:
        highest: The learning rate at the end of the warm-up.
        warmup_ratio: Share of the budget for the warm-up, in [0, 1).
        final_ratio: The last learning rate as a share of the highest.
    """

    highest: float
    warmup_ratio: float
    final_ratio: float

    def learning_rate(self, spent: float) -> float:
        """Give the learning rate where this share of the budget is spent."""
        if spent < self.warmup_ratio:
            return self.highest * spent / self.warmup_ratio
        decayed = (spent - self.warmup_ratio) / (1 - self.warmup_ratio)
        cosine = (1 + math.cos(math.pi * decayed)) / 2  # 1 → 0
        return self.highest * (self.final_ratio + (1 - self.final_ratio) * cosine)
