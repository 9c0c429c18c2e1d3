"""What goes into the engine and what comes out of it: plain values, no behaviour.

A *feed* is what one session has waiting; a *call* runs one or more steps of a *batch* of feeds;
*progress* is what one call did for one feed. The engine knows slots and numbers. It does not know
session ids, streams, handles or text.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cellstream.errors import CellstreamError


class Want(enum.IntEnum):
    """Which steps of a feed answer; the numbers are those of the wire."""

    EVERY_STEP = 1
    LAST = 2
    NONE = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What a feed answers with, checked against the model before it comes here.

    Attributes:
        want: Which steps answer.
        top_k: How many most likely tokens, 0 for none; ties go to the lowest id.
        log_probabilities: Every output of the graph, whole.
        score: The log-probability of each answering step's token, given all before it.
        states: The state tensors after each answering step.
        gates: The gates of each answering step.
        detailed: Whether there is more to answer than the most likely tokens.
    """

    want: Want = Want.LAST
    top_k: int = 5
    log_probabilities: bool = False
    score: bool = False
    states: bool = False
    gates: bool = False
    detailed: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Asked for every row of every step, so it is worked out once.
        detailed = self.log_probabilities or self.score or self.states or self.gates
        object.__setattr__(self, "detailed", detailed)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a feed goes on by itself once its own tokens are absorbed.

    Each draw depends on `seed` and the session's position alone.

    Attributes:
        max_tokens: How many tokens to make at most, at least 1.
        temperature: 0: always the most likely, ties to the lowest id.
        top_k: Draw among this many most likely; 0: all.
        top_p: Draw among the fewest most likely that hold this much probability, in (0, 1].
        seed: Any 64-bit number.
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int


@dataclass(slots=True, eq=False)
class Feed:
    """One session's input while it is being applied. Its owner makes it, the engine moves `applied`.

    Attributes:
        slot: The session's row of the slab.
        inputs: Token ids, or float32 frames [time, features]; at least one, unless it samples.
        answer: What to answer with.
        on_progress: Called after each call that answers, ends or fails the feed, or absorbs a token that
            it made; must not raise (if it does, the engine logs it and goes on).
        received_at: When its message was read, in seconds of the engine's clock.
        applied: How many of `inputs` the session has absorbed.
        sampling: How it goes on by itself; the tokens that it makes are appended to `inputs`.
        made: How many of `inputs`, the last ones, it made itself; moved by the engine.
        finished: Set by `on_progress` to end a feed that samples, before its next token is drawn: it is
            over then, as if the progress had been `done`, and is told nothing more.
    """

    slot: int
    inputs: list[int] | NDArray[np.float32]
    answer: Answer
    on_progress: Callable[[Feed, Progress], None]
    received_at: float
    applied: int = 0
    sampling: Sampling | None = None
    made: int = 0
    finished: bool = False


@dataclass(slots=True)
class Progress:
    """What one call did for one feed.

    A call that fails is run again in smaller pieces: a feed may then get several of these from one turn, in
    order, and its `applied` be further on than the first of them say.

    Attributes:
        position: How many tokens the session has absorbed now.
        done: Whether this was the feed's last.
        steps: How many steps answered; the arrays below have one row for each.
        top_ids: `steps` × top_k token ids, best first.
        top_log_probabilities: `steps` × top_k natural logarithms.
        scores: `steps` natural logarithms, NaN for a session's very first token; None if not asked for.
        outputs: Whole outputs by the manifest's names, [steps, ...]; None if not asked for.
        states: State tensors by name, [steps, ...]; None if not asked for.
        gates: Gates by name, [steps, layers, units]; None if not asked for.
        made: The tokens that the feed made itself and that were absorbed in this call.
        error: Why the feed failed; it is done, and `position` tells how much of it was applied.
    """

    position: int
    done: bool
    steps: int = 0
    top_ids: list[int] = field(default_factory=list)
    top_log_probabilities: list[float] = field(default_factory=list)
    scores: list[float] | None = None
    outputs: dict[str, NDArray[np.float32]] | None = None
    states: dict[str, NDArray[np.float32]] | None = None
    gates: dict[str, NDArray[np.float32]] | None = None
    made: Sequence[int] = ()
    error: CellstreamError | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """What one turn of the engine did, for metrics.

    Attributes:
        rows: How many sessions stepped.
        steps: How many steps the call ran, on the graph whose results were committed.
        tokens: How many tokens were committed.
        seconds: How long schedule, run and settle took together.
        queue_seconds: For each feed whose first token this call applied: how long it had waited.
    """

    rows: int
    steps: int
    tokens: int
    seconds: float
    queue_seconds: list[float]
