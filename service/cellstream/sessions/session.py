"""Sessions, the handles by which streams hold them, and what waits in a handle's queue.

Plain records; `registry.py` holds the rules. The queue belongs to the handle and not to the session, so that
a new writer can never run the old one's remaining tokens.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cellstream.engine import Answer, Feed, Progress
from cellstream.errors import CellstreamError
from cellstream.sessions import life
from cellstream.sessions.catalogue import Served
from cellstream.sessions.endings import Ending


class Mode(enum.IntEnum):
    """How an Open treats a session that exists, or does not; the numbers are those of the wire."""

    ATTACH_OR_CREATE = 0
    CREATE = 1
    ATTACH = 2


@dataclass(frozen=True, slots=True)
class Open:
    """What a stream asks for when it opens a handle.

    Attributes:
        session_id: Empty: a session that ends with the stream.
        model: Empty: the session's own, else the default.
        version: Empty: the session's own, else the highest.
        mode: What to do about an existing session.
        load_answer: Checks, against the model that the session turned out to have, what feeds answer with
            unless they say otherwise; raises RequestError.
    """

    session_id: str
    model: str
    version: str
    mode: Mode
    load_answer: Callable[[Served], Answer]


@dataclass(slots=True, eq=False)
class QueuedFeed:
    """A feed in a handle's queue.

    It is made into tokens only at the head of the queue: a handle whose Open waits does not know its model.
    Whoever queues it derives from this, and says how. Not frozen, as all that is made for each feed: that
    triples what making one costs.

    Attributes:
        id: The client's number.
        position: How many tokens the client holds to be applied before these; None: it does not say.
        received_at: When its message was read, seconds of the server's clock.
        size: Its share of its message's bytes, at least 1: what the stream owes until the feed is over.
    """

    id: int
    position: int | None
    received_at: float
    size: int

    def load(self, session: Session, answer: Answer, on_progress: Callable[[Feed, Progress], None]) -> Feed:
        """What the engine is to do, checked whole against the session's model.

        Args:
            session: Whose feed it is.
            answer: What it answers with, unless it says otherwise itself.
            on_progress: Told what was done.

        Raises:
            RequestError: Whatever is wrong with it.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class QueuedReset:
    """A reset in a handle's queue."""

    size: int


@dataclass(frozen=True, slots=True)
class QueuedClose:
    """A close in a handle's queue; nothing follows it."""

    keep: bool
    size: int


@dataclass(frozen=True, slots=True)
class QueuedFailure:
    """The place of a feed that failed while it waited: what follows must say its position."""

    size: int = 0


Queued = QueuedFeed | QueuedReset | QueuedClose | QueuedFailure


class Session:
    """What a client holds: a state in a slot, kept between calls."""

    __slots__ = ("fed_at", "handle", "id", "named", "serial", "served", "slot", "state")

    def __init__(self, id: str, named: bool, served: Served, slot: int, serial: int, now: float) -> None:
        self.id = id
        self.named = named
        self.served = served
        self.slot = slot
        self.serial = serial
        self.state = life.State.HELD
        self.handle: Handle | None = None
        self.fed_at = now

    @property
    def position(self) -> int:
        """How many tokens its state has absorbed."""
        return self.served.engine.position(self.slot)

    def __repr__(self) -> str:
        return f"<Session {self.served.name}/{self.served.version} slot {self.slot}: {self.state.value}>"


NO_ANSWER_YET = Answer()
"""What a handle's feeds answer with before its Open has said; all handles share it."""


class Handle:
    """A stream's hold on a session, and what the stream has asked of it.

    Most handles are idle most of the time, and an empty deque alone takes 600 bytes: `queue` and
    `waiting_opens` are made when something has to wait, and are empty tuples otherwise.
    """

    __slots__ = (
        "answer",
        "closing",
        "current",
        "failed",
        "feed",
        "number",
        "queue",
        "session",
        "stream",
        "waiting_opens",
    )

    def __init__(self, stream: Stream, number: int) -> None:
        self.stream = stream
        self.number = number
        self.session: Session | None = None  # None while its Open waits
        self.answer = NO_ANSWER_YET
        self.queue: deque[Queued] | tuple[()] = ()  # `enqueue` and `dequeue` change it
        self.current: QueuedFeed | None = None
        self.feed: Feed | None = None  # what the engine has of `current`
        self.failed = False
        self.closing = False
        self.waiting_opens: tuple[tuple[Handle, Open], ...] = ()

    def enqueue(self, queued: Queued) -> None:
        """Put something behind all that waits."""
        if not self.queue:
            self.queue = deque()
        self.queue.append(queued)

    def dequeue(self) -> Queued:
        """Take what waits for longest; something has to wait."""
        assert self.queue, "nothing waits"
        queued = self.queue.popleft()
        if not self.queue:
            self.queue = ()
        return queued

    @property
    def position(self) -> int:
        """How many tokens its session has absorbed; 0 while its Open waits."""
        return 0 if self.session is None else self.session.position

    def __repr__(self) -> str:
        return f"<Handle {self.number} of {self.session}: {len(self.queue)} queued>"


class Listener(Protocol):
    """Whoever reads a stream's answers. None of these may raise."""

    def opened(self, handle: Handle, created: bool, previous: Ending | None) -> None:
        """The handle holds its session."""

    def refused(self, number: int, session_id: str, error: CellstreamError) -> None:
        """The handle of this number could not be opened."""

    def result(self, handle: Handle, queued: QueuedFeed, progress: Progress) -> None:
        """A feed was answered, or failed."""

    def rejected(self, number: int, queued: QueuedFeed, error: CellstreamError) -> None:
        """A feed names a handle that is not in use."""

    def event(self, number: int, cause: life.Cause, position: int, error: CellstreamError | None) -> None:
        """Something happened to a session, or a reset or close could not be done."""

    def applied(self, size: int) -> None:
        """So many bytes of what was read are applied, or failed."""

    def drained(self, error: CellstreamError) -> None:
        """The server is going away: the stream ends with this error once it has sent what is pending."""


class Stream:
    """One client's stream, as the registry sees it.

    Attributes:
        listener: Who reads its answers.
        handles: Those in use, by number.
        closed_handles: Why handles that were in use no longer are; what their late feeds are told.
        unapplied_bytes: How many bytes of messages have been read and are not applied; 0: all that was read
            is answered.
        paused: Its feeds are not scheduled, because its client does not read.
    """

    __slots__ = ("closed_handles", "handles", "listener", "paused", "unapplied_bytes")

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.handles: dict[int, Handle] = {}
        self.closed_handles: dict[int, CellstreamError] = {}
        self.unapplied_bytes = 0
        self.paused = False

    def __repr__(self) -> str:
        paused = ", paused" if self.paused else ""
        return f"<Stream: {len(self.handles)} handles, {self.unapplied_bytes} bytes unapplied{paused}>"

    def paid(self, size: int) -> None:
        """Count bytes of what was read as applied."""
        if size:
            self.unapplied_bytes -= size
            self.listener.applied(size)

    def remember(self, number: int, error: CellstreamError, most: int) -> None:
        """Remember why a handle is no longer in use; the oldest of too many is forgotten."""
        self.closed_handles.pop(number, None)
        if len(self.closed_handles) >= most:
            del self.closed_handles[next(iter(self.closed_handles))]
        self.closed_handles[number] = error.with_traceback(None)  # its frames hold on to the whole request
