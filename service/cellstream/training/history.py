"""How a run went: what the report draws, what TensorBoard shows, what the log says. Plain numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Point:
    """A stretch of training.

    Attributes:
        tokens: Seen at its end.
        seconds: Spent at its end.
        wall_time: Seconds since 1970, at its end.
        loss: Mean over the stretch before each update, in nats a token, as it was minimised.
        bits: The same surprise, in bits per character.
        learning_rate: At its end.
        gradient_norm: Mean over the stretch, before clipping.
        tokens_per_second: Of the stretch, measurements apart.
    """

    tokens: int
    seconds: float
    wall_time: float
    loss: float
    bits: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float


@dataclass(frozen=True)
class Evaluation:
    """A measurement on the validation text.

    Attributes:
        tokens: Seen before it.
        seconds: Spent before it.
        wall_time: Seconds since 1970.
        bits: Per character.
        training_bits: Per character of the training text, just before.
        sample: What the model wrote then.
    """

    tokens: int
    seconds: float
    wall_time: float
    bits: float
    training_bits: float
    sample: str


@dataclass
class History:
    """Everything in the order in which it was seen.

    Attributes:
        training: Stretches of training.
        validation: Measurements.
    """

    training: list[Point] = field(default_factory=list)
    validation: list[Evaluation] = field(default_factory=list)

    def to_plain(self) -> dict[str, Any]:
        """Write it as lists of numbers, the inverse of `from_plain`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> History:
        """Read what `to_plain` wrote."""
        return cls(
            [Point(**one) for one in plain["training"]], [Evaluation(**one) for one in plain["validation"]]
        )
