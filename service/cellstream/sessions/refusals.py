"""The words in which sessions and streams refuse: what was wrong, what was expected, what to do.

One function for each, from the facts to the error. When to refuse stands in `registry.py`.
"""

from __future__ import annotations

from cellstream.errors import (
    Draining,
    FeedAfterFailure,
    HandleInUse,
    HandleUnknown,
    ModelMismatch,
    PositionMismatch,
    QueueTimeout,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionIdInvalid,
    TakenOver,
    TooManyHandles,
    TooManySessions,
    TooManyStreams,
)
from cellstream.sessions.catalogue import Served
from cellstream.settings import Settings


def too_many_streams(settings: Settings) -> TooManyStreams:
    """All streams are open."""
    return TooManyStreams(
        f"{settings.streams_max} streams are open, and that is all this server takes; try again later, or "
        "put more sessions on one stream.",
        streams_max=settings.streams_max,
        retry_after_seconds=settings.retry_after_seconds,
    )


def too_many_handles(settings: Settings) -> TooManyHandles:
    """A stream uses all the handles that it may."""
    return TooManyHandles(
        f"this stream uses {settings.stream_handles_max} handles, and that is all it may; close one, or open "
        "another stream.",
        handles_max=settings.stream_handles_max,
        retry_after_seconds=settings.retry_after_seconds,
    )


def too_many_sessions(served: Served, settings: Settings) -> TooManySessions:
    """All slots of a model are taken."""
    slots_max = served.engine.slots_max
    return TooManySessions(
        f"all {slots_max} slots of {served.name}/{served.version} are taken; close a session, or try again "
        "later. None is taken from another session.",
        slots_max=slots_max,
        retry_after_seconds=settings.retry_after_seconds,
    )


def draining(settings: Settings) -> Draining:
    """The server is going away."""
    return Draining(
        "the server is going away; open the session elsewhere, or here again when it is back.",
        retry_after_seconds=settings.retry_after_seconds,
    )


def drained(settings: Settings) -> Draining:
    """The server is going away, and a stream that was open ends."""
    return Draining(
        "the server is going away; all positions that it told are final.",
        retry_after_seconds=settings.retry_after_seconds,
    )


def queue_timeout(settings: Settings) -> QueueTimeout:
    """A feed waited its longest."""
    return QueueTimeout(
        f"the feed waited {settings.feed_wait_seconds_max:g} s and none of it was applied; try again, with "
        "its position.",
        retry_after_seconds=settings.retry_after_seconds,
    )


def handle_in_use(number: int) -> HandleInUse:
    """An Open names a handle that is in use."""
    return HandleInUse(
        f"handle {number} is in use on this stream; close it and wait for its event, or use another number.",
        handle=number,
    )


def handle_unknown(number: int) -> HandleUnknown:
    """Nothing was opened under this number."""
    return HandleUnknown(f"handle {number} is not in use on this stream; open it first.", handle=number)


def handle_closing(number: int) -> HandleUnknown:
    """The handle's Close is queued."""
    return HandleUnknown(f"handle {number} is being closed; wait for its event, then open it.", handle=number)


def handle_closed(number: int) -> HandleUnknown:
    """The handle was closed."""
    return HandleUnknown(f"handle {number} was closed; open it again.", handle=number)


def session_id_empty(what: str) -> SessionIdInvalid:
    """An id is missing where one is needed."""
    return SessionIdInvalid(f"{what} needs the id of a session; session_id is empty.")


def session_id_long(length: int, settings: Settings) -> SessionIdInvalid:
    """An id has too many bytes."""
    return SessionIdInvalid(
        f"the session id has {length} bytes; at most {settings.session_id_bytes_max} are taken.",
        session_id_bytes_max=settings.session_id_bytes_max,
    )


def session_exists(position: int) -> SessionExists:
    """The session should have been created, and is there."""
    return SessionExists(
        f"the session exists, at position {position}; attach to it, or choose another id.", position=position
    )


def session_expired(position: int, settings: Settings) -> SessionExpired:
    """The session has just ended of idleness."""
    return SessionExpired(
        f"the session was idle for {settings.session_idle_seconds:g} s and is gone; open a new one.",
        position=position,
    )


def session_closed(position: int) -> SessionClosed:
    """The session has just been closed from outside its stream."""
    return SessionClosed("the session was closed.", position=position)


def model_mismatch(served: Served) -> ModelMismatch:
    """The session is served by another model or version than the Open asks for."""
    return ModelMismatch(
        f"the session is served by {served.name}/{served.version}, and that never changes; leave model and "
        "version empty, or choose another id.",
        model=served.name,
        version=served.version,
    )


def taken_over(position: int) -> TakenOver:
    """Another writer came."""
    return TakenOver(
        "another stream or handle opened the session and is its writer now; the position tells what was "
        "applied.",
        position=position,
    )


def position_mismatch(client: int, server: int) -> PositionMismatch:
    """Client and server count differently."""
    return PositionMismatch(
        f"the client holds {client} tokens to be applied, the session has absorbed {server}; nothing was "
        "applied. Go on from the server's position.",
        client_position=client,
        server_position=server,
    )


def feed_after_failure(position: int) -> FeedAfterFailure:
    """The feed follows one that failed, and does not say from where it goes on."""
    return FeedAfterFailure(
        "an earlier feed of this handle failed; send the position to go on from, or reset the session.",
        position=position,
    )
