"""The life of a session, as one table.

Rule 1: a session has at most one writer, the *handle* of a stream that holds it.
Rule 2: a session that no stream holds is kept; only a session that can be found again is kept.
Rule 3: an ended session never comes back; its name may be given to a new one.

    (create) ──▶ HELD ──LET_GO──▶ KEPT ──ATTACH──▶ HELD
                 HELD ──TAKE_OVER──▶ HELD
    HELD, KEPT ──CLOSE, EXPIRE, DRAIN──▶ ENDED          HELD ──STREAM_END──▶ ENDED

A pair that is not in the table is a mistake of ours, never of a client's.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Where a session is in its life."""

    HELD = "held"
    KEPT = "kept"
    ENDED = "ended"


class Event(enum.Enum):
    """What can happen to a session."""

    ATTACH = "attach"
    TAKE_OVER = "take over"
    LET_GO = "let go"
    CLOSE = "close"
    EXPIRE = "expire"
    STREAM_END = "stream end"
    DRAIN = "drain"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.KEPT, Event.ATTACH): State.HELD,
    (State.HELD, Event.TAKE_OVER): State.HELD,
    (State.HELD, Event.LET_GO): State.KEPT,
    (State.HELD, Event.CLOSE): State.ENDED,
    (State.KEPT, Event.CLOSE): State.ENDED,
    (State.HELD, Event.EXPIRE): State.ENDED,
    (State.KEPT, Event.EXPIRE): State.ENDED,
    (State.HELD, Event.STREAM_END): State.ENDED,
    (State.HELD, Event.DRAIN): State.ENDED,
    (State.KEPT, Event.DRAIN): State.ENDED,
}


class Cause(enum.IntEnum):
    """What a stream is told; the numbers are those of the wire."""

    TAKEN_OVER = 1
    EXPIRED = 2
    CLOSED = 3
    KEPT = 4
    RESET = 5
    DRAINING = 6


ENDED_BY: dict[Event, str] = {
    Event.CLOSE: "closed",
    Event.EXPIRE: "expired",
    Event.STREAM_END: "stream_ended",
    Event.DRAIN: "drained",
}
"""The label of `cellstream_sessions_ended_total` for each event that ends a session."""


def after(state: State, event: Event) -> State:
    """The state after an event.

    Raises:
        AssertionError: The event cannot happen in this state.
    """
    next_state = TRANSITIONS.get((state, event))
    assert next_state is not None, f"{event} cannot happen to a session that is {state}"
    return next_state
