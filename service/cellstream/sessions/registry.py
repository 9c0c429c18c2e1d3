"""Which sessions exist, who writes to each, and in what order what is asked of them is done.

Everything here runs on the event loop between two calls of an engine, or inside the settling of one, so every
method is atomic. It knows no protobuf, no socket and no task: a `Stream` is told through its `Listener`.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import structlog

from cellstream.engine import Feed, Progress
from cellstream.errors import (
    CellstreamError,
    InternalError,
    NonFinite,
    QueueTimeout,
    RequestError,
    ServerError,
)
from cellstream.metrics import Metrics
from cellstream.sessions import life, refusals
from cellstream.sessions.catalogue import Catalogue, Served
from cellstream.sessions.endings import Ending, Endings
from cellstream.sessions.session import (
    Handle,
    Listener,
    Mode,
    Open,
    QueuedClose,
    QueuedFailure,
    QueuedFeed,
    QueuedReset,
    Session,
    Stream,
)
from cellstream.settings import Settings

log = structlog.get_logger(__name__)


class Registry:
    """All sessions and streams of a server.

    Args:
        catalogue: The models.
        settings: The bounds.
        metrics: Where what happens is counted.
        wake: Called when an engine has something to do.
        clock: Seconds, monotonic; the engines' clock.
        wall_clock: Seconds since the epoch, for what people read.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        settings: Settings,
        metrics: Metrics,
        *,
        wake: Callable[[], None],
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self.catalogue = catalogue
        self.streams: dict[Stream, None] = {}  # in the order in which they came, so that a sweep has one
        self.draining = False
        self._settings = settings
        self._metrics = metrics
        self._wake = wake
        self._clock = clock
        self._wall_clock = wall_clock
        self._sessions: dict[str, Session] = {}  # the longest without a feed first
        self._endings = Endings(settings.tombstones_max, settings.tombstone_seconds)
        self.held: Counter[Served] = Counter()  # sessions that a stream holds, for each model version
        self._serial = 0
        self._hash_key = secrets.token_bytes(16)

    def __repr__(self) -> str:
        held = self.held.total()
        return f"<Registry: {len(self._sessions)} sessions, {held} held by {len(self.streams)} streams>"

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def __len__(self) -> int:
        return len(self._sessions)

    # ------------------------------------------------------------ streams

    def connect(self, listener: Listener) -> Stream:
        """A new stream.

        Raises:
            Draining: The server is going away.
            TooManyStreams: All that the server takes are open.
        """
        if self.draining:
            raise refusals.draining(self._settings)
        if len(self.streams) >= self._settings.streams_max:
            raise refusals.too_many_streams(self._settings)
        stream = Stream(listener)
        self.streams[stream] = None
        self._metrics.streams_opened.inc()
        return stream

    def disconnect(self, stream: Stream) -> None:
        """The stream is gone: unapplied feeds are dropped, named sessions stay, the others end."""
        self.streams.pop(stream, None)
        for handle in list(stream.handles.values()):
            handle.waiting_opens = ()
            session = handle.session
            self._detach(handle)
            if session is not None:
                self._move(session, life.Event.LET_GO if session.named else life.Event.STREAM_END)

    def pause(self, stream: Stream) -> None:
        """Stop scheduling the stream's feeds: its client does not read."""
        stream.paused = True
        for handle in stream.handles.values():
            if handle.feed is not None and handle.session is not None:
                handle.session.served.engine.withdraw(handle.feed)

    def resume(self, stream: Stream) -> None:
        """Schedule the stream's feeds again."""
        stream.paused = False
        for handle in stream.handles.values():
            if handle.feed is not None and handle.session is not None:
                handle.session.served.engine.submit(handle.feed)
        self._wake()

    # ------------------------------------------------------------ what a stream asks

    def open(self, stream: Stream, number: int, request: Open) -> None:
        """Make a session known to the stream, and the stream its one writer.

        The listener is told `opened` or `refused`, at once or, where a Close of the same session is queued on
        the same stream, when that is done.

        Raises:
            HandleInUse: The stream uses this number already.
        """
        if number in stream.handles:
            raise refusals.handle_in_use(number)
        stream.closed_handles.pop(number, None)
        if len(stream.handles) >= self._settings.stream_handles_max:
            error = refusals.too_many_handles(self._settings)
            stream.remember(number, error, self._settings.stream_closed_handles_max)
            stream.listener.refused(number, request.session_id, error)
            return
        handle = Handle(stream, number)
        stream.handles[number] = handle
        self._open(handle, request)

    def feed(self, stream: Stream, number: int, queued: QueuedFeed) -> None:
        """Queue a feed. The listener is told `result`, or `rejected` where the handle is not in use."""
        handle = stream.handles.get(number)
        if handle is None or handle.closing:
            stream.listener.rejected(number, queued, self._not_in_use(stream, number))
            stream.listener.applied(queued.size)
            return
        stream.unapplied_bytes += queued.size
        if handle.current is None and not handle.queue and handle.session is not None:
            self._start(handle, handle.session, queued)
        else:
            handle.enqueue(queued)

    def reset(self, stream: Stream, number: int, size: int) -> None:
        """Queue a reset, `size` bytes of its message; answered by an event."""
        handle = stream.handles.get(number)
        if handle is None or handle.closing:
            error = self._not_in_use(stream, number)
            stream.listener.event(number, life.Cause.RESET, 0, error)
            stream.listener.applied(size)
            return
        stream.unapplied_bytes += size
        handle.enqueue(QueuedReset(size))
        self._advance(handle)

    def close(self, stream: Stream, number: int, keep: bool, size: int) -> None:
        """Queue a close, `size` bytes of its message; answered by an event."""
        handle = stream.handles.get(number)
        if handle is None or handle.closing:
            error = self._not_in_use(stream, number)
            stream.listener.event(number, life.Cause.KEPT if keep else life.Cause.CLOSED, 0, error)
            stream.listener.applied(size)
            return
        handle.closing = True
        stream.unapplied_bytes += size
        handle.enqueue(QueuedClose(keep, size))
        self._advance(handle)

    # ------------------------------------------------------------ seen from outside a stream

    def get(self, session_id: str) -> Session:
        """The session of an id.

        Raises:
            SessionIdInvalid: The id is empty.
            SessionUnknown, SessionExpired, SessionClosed: There is none.
        """
        if not session_id:
            raise refusals.session_id_empty("this")
        session = self._sessions.get(session_id)
        if session is None:
            raise self._endings.missing(session_id)
        return session

    def page(self, after_serial: int, size: int) -> list[Session]:
        """The `size` oldest sessions made after the one of this serial number, the oldest first."""
        later = (session for session in self if session.serial > after_serial)
        return heapq.nsmallest(size, later, key=lambda session: session.serial)

    def end(self, session_id: str) -> int:
        """End a session; a stream that holds it is told.

        Returns:
            How many tokens it had absorbed.

        Raises:
            SessionIdInvalid, SessionUnknown, SessionExpired, SessionClosed: As `get`.
        """
        session = self.get(session_id)
        position = session.position
        self._end(session, life.Event.CLOSE, life.Cause.CLOSED, refusals.session_closed(position))
        return position

    def hash(self, session: Session) -> str:
        """What stands for the session's id in logs and listings; keyed, so that ids stay unguessable."""
        return hashlib.blake2b(session.id.encode(), key=self._hash_key, digest_size=8).hexdigest()

    # ------------------------------------------------------------ time, and the end

    def sweep(self) -> None:
        """End what has waited or been idle too long, as of now."""
        now = self._clock()
        for stream in list(self.streams):
            # What waits is counted, a feed as one byte at least: 100,000 idle handles need no asking.
            if not stream.unapplied_bytes:
                continue
            for handle in list(stream.handles.values()):
                if handle.current is not None or handle.queue:
                    self._time_out(handle, now)
        self._expire(now)
        self._endings.forget(now)

    def drain(self) -> None:
        """End every session: queued feeds end with Draining, one event tells each handle its final position.

        Opens are refused from now on, those too that wait for a Close.
        """
        self.draining = True
        for session in list(self):
            self._end(session, life.Event.DRAIN, life.Cause.DRAINING, refusals.draining(self._settings))

    def end_streams(self) -> None:
        """End every stream, once it has sent what is pending."""
        for stream in list(self.streams):
            stream.listener.drained(refusals.drained(self._settings))

    def _time_out(self, handle: Handle, now: float) -> None:
        """Fail the handle's feeds that have waited their longest for their first token."""
        overdue = now - self._settings.feed_wait_seconds_max
        if waiting := handle.queue:
            for place, queued in enumerate(waiting):
                if isinstance(queued, QueuedFeed) and queued.received_at <= overdue:
                    waiting[place] = QueuedFailure()
                    self._fail(handle, queued, refusals.queue_timeout(self._settings))
        current, feed, session = handle.current, handle.feed, handle.session
        if current is not None and feed is not None and session is not None:
            never_applied = feed.applied == 0
            if never_applied and current.received_at <= overdue:
                session.served.engine.withdraw(feed)
                handle.current = handle.feed = None
                handle.failed = True
                self._fail(handle, current, refusals.queue_timeout(self._settings))
                self._advance(handle)

    def _expire(self, now: float) -> None:
        idle_since = now - self._settings.session_idle_seconds
        expired = []
        for session in self:
            if session.fed_at > idle_since:
                break
            handle = session.handle
            busy = handle is not None and (handle.current is not None or bool(handle.queue))
            if not busy or (handle is not None and handle.stream.paused):
                expired.append(session)
        for session in expired:
            error = refusals.session_expired(session.position, self._settings)
            self._end(session, life.Event.EXPIRE, life.Cause.EXPIRED, error)

    # ------------------------------------------------------------ opening

    def _open(self, handle: Handle, request: Open) -> None:
        """Open the handle now, or behind a Close that is queued for the same session on the same stream."""
        session = self._sessions.get(request.session_id) if request.session_id else None
        if session is not None and session.handle is not None:
            holder = session.handle
            if holder.closing and holder.stream is handle.stream:
                holder.waiting_opens += ((handle, request),)
                return
        try:
            if self.draining:
                raise refusals.draining(self._settings)
            if session is None:
                session, previous = self._create(handle, request)
                created = True
            else:
                self._attach(handle, request, session)
                created, previous = False, None
        except CellstreamError as error:
            self._refuse_handle(handle, request.session_id, error)
            return
        handle.session = session
        session.handle = handle
        self.held[session.served] += 1
        handle.stream.listener.opened(handle, created, previous)
        log.debug("session_opened", session=self.hash(session), created=created, position=session.position)
        self._advance(handle)

    def _create(self, handle: Handle, request: Open) -> tuple[Session, Ending | None]:
        name = request.session_id
        if len(name.encode()) > self._settings.session_id_bytes_max:
            raise refusals.session_id_long(len(name.encode()), self._settings)
        if request.mode is Mode.ATTACH:
            if not name:
                raise refusals.session_id_empty("MODE_ATTACH")
            raise self._endings.missing(name)
        served = self.catalogue.find(request.model, request.version)
        handle.answer = request.load_answer(served)
        if served.engine.slots_taken >= served.engine.slots_max:
            raise refusals.too_many_sessions(served, self._settings)
        self._serial += 1
        session = Session(
            id=name or secrets.token_urlsafe(16),
            named=bool(name),
            served=served,
            slot=served.engine.take_slot(),
            serial=self._serial,
            now=self._clock(),
        )
        self._sessions[session.id] = session
        self._metrics.sessions_opened.labels(served.name, served.version).inc()
        return session, self._endings.take(name)

    def _attach(self, handle: Handle, request: Open, session: Session) -> None:
        if request.mode is Mode.CREATE:
            raise refusals.session_exists(session.position)
        served = session.served
        if (request.model or served.name, request.version or served.version) != (served.name, served.version):
            raise refusals.model_mismatch(served)
        handle.answer = request.load_answer(served)
        if session.handle is None:
            session.state = life.after(session.state, life.Event.ATTACH)
        else:
            session.state = life.after(session.state, life.Event.TAKE_OVER)
            error = refusals.taken_over(session.position)
            self._metrics.takeovers.inc()
            waiting = session.handle.waiting_opens
            self._tell_and_detach(session.handle, life.Cause.TAKEN_OVER, error)
            for waiting_handle, _ in waiting:  # the last to ask is the writer: they asked before
                self._refuse_handle(waiting_handle, session.id, error)

    def _refuse_handle(self, handle: Handle, session_id: str, error: CellstreamError) -> None:
        """The handle's Open failed: it is free again, and all that followed it ends with the same error."""
        stream, listener = handle.stream, handle.stream.listener
        del stream.handles[handle.number]
        stream.remember(handle.number, error, self._settings.stream_closed_handles_max)
        listener.refused(handle.number, session_id, error)
        for queued in handle.queue:
            if isinstance(queued, QueuedFeed):
                listener.rejected(handle.number, queued, error)
            elif isinstance(queued, QueuedReset):
                listener.event(handle.number, life.Cause.RESET, 0, error)
            elif isinstance(queued, QueuedClose):
                cause = life.Cause.KEPT if queued.keep else life.Cause.CLOSED
                listener.event(handle.number, cause, 0, error)
            stream.paid(queued.size)
        handle.queue = ()

    # ------------------------------------------------------------ the queue of a handle

    def _advance(self, handle: Handle) -> None:
        """Do what stands at the head of the queue, until a feed runs or nothing is left."""
        session = handle.session
        if session is None:
            return
        stream = handle.stream
        while handle.queue and handle.current is None:
            queued = handle.dequeue()
            if isinstance(queued, QueuedFeed):
                self._start(handle, session, queued)
                continue
            if isinstance(queued, QueuedFailure):
                handle.failed = True
                continue
            if isinstance(queued, QueuedReset):
                session.served.engine.reset(session.slot)
                handle.failed = False
                self._metrics.resets.inc()
                stream.listener.event(handle.number, life.Cause.RESET, 0, None)
            else:
                self._close(handle, session, queued.keep)
            stream.paid(queued.size)

    def _start(self, handle: Handle, session: Session, queued: QueuedFeed) -> None:
        """Check a feed whole, and give it to the engine."""
        engine = session.served.engine
        if queued.position is not None:
            position = engine.position(session.slot)
            if queued.position != position:
                error: CellstreamError = refusals.position_mismatch(queued.position, position)
                handle.failed = True
                self._fail(handle, queued, error)
                return
            handle.failed = False
        elif handle.failed:
            error = refusals.feed_after_failure(engine.position(session.slot))
            self._fail(handle, queued, error)
            return
        try:
            feed = queued.load(session, handle.answer, partial(self._progress, handle))
        except RequestError as refused:
            handle.failed = True
            self._fail(handle, queued, refused)
            return
        except Exception as unforeseen:
            mistake = InternalError.with_new_id()
            mistake.__cause__ = unforeseen
            handle.failed = True
            self._fail(handle, queued, mistake)
            return
        handle.current = queued
        handle.feed = feed
        if not handle.stream.paused:
            engine.submit(feed)
            self._wake()

    def _progress(self, handle: Handle, feed: Feed, progress: Progress) -> None:
        """One call did something for the handle's feed."""
        queued, session = handle.current, handle.session
        if handle.feed is not feed or queued is None or session is None:
            return  # let go of while this call was being settled
        if progress.error is not None:
            handle.failed = True
            self._log_failure(handle, queued, progress.error)
        try:
            handle.stream.listener.result(handle, queued, progress)
        except Exception as cause:  # the answer cannot be told, so the feed ends here, and says so

            def tell(mistake: CellstreamError) -> None:
                failed = Progress(position=progress.position, done=True, error=mistake)
                handle.stream.listener.result(handle, queued, failed)

            self.fail_answer(handle.stream, handle.number, queued, cause, tell)
            return
        if progress.done or feed.finished:
            handle.current = handle.feed = None
            handle.stream.paid(queued.size)
            self._touch(session)
            if handle.queue:
                self._advance(handle)

    def fail_answer(
        self,
        stream: Stream,
        number: int,
        queued: QueuedFeed,
        cause: Exception,
        tell: Callable[[CellstreamError], None],
    ) -> None:
        """End a feed, if it still runs, because its answer cannot be told; what it applied stays applied.

        Args:
            stream: Whose feed it is.
            number: Its handle.
            queued: The feed.
            cause: What went wrong; it goes to the log.
            tell: Tells the client, before anything that waits behind the feed.
        """
        mistake = InternalError.with_new_id()
        mistake.__cause__ = cause
        handle = stream.handles.get(number)
        if handle is None:
            log.error("feed_failed", feed=queued.id, exc_info=cause, **mistake.values)
            tell(mistake)
            return
        self._log_failure(handle, queued, mistake)
        tell(mistake)
        if handle.current is queued:
            if handle.feed is not None and handle.session is not None:
                handle.session.served.engine.withdraw(handle.feed)
                self._touch(handle.session)
            handle.current = handle.feed = None
            handle.failed = True
            stream.paid(queued.size)
            self._advance(handle)

    def _fail(self, handle: Handle, queued: QueuedFeed, error: CellstreamError) -> None:
        self._log_failure(handle, queued, error)
        failed = Progress(position=handle.position, done=True, error=error)
        handle.stream.listener.result(handle, queued, failed)
        handle.stream.paid(queued.size)

    def _log_failure(self, handle: Handle, queued: QueuedFeed, error: CellstreamError) -> None:
        """Log a feed's failure: aloud what an operator can mend, else only for who looks for it.

        What is the server's own fault gets an id here, under which the log has what the wire has not.
        """
        is_loud = isinstance(error, NonFinite | QueueTimeout | ServerError)
        if not is_loud and not log.is_enabled_for(logging.DEBUG):
            return  # a message may hold thousands of feeds that fail, and each line hashes its session's id
        told = log.warning if is_loud else log.debug
        found: dict[str, object] = {"feed": queued.id, "reason": error.reason, "position": handle.position}
        if isinstance(error, ServerError):
            found["error_id"] = error.values.setdefault("error_id", InternalError.new_id())
            told, found["exc_info"] = log.error, error
        session = None if handle.session is None else self.hash(handle.session)
        told("feed_failed", session=session, **found)

    # ------------------------------------------------------------ letting go

    def _close(self, handle: Handle, session: Session, keep: bool) -> None:
        """A close has reached the head of its queue."""
        waiting = handle.waiting_opens
        error = refusals.handle_closed(handle.number)
        self._tell_and_detach(handle, life.Cause.KEPT if keep else life.Cause.CLOSED, error)
        self._move(session, life.Event.LET_GO if keep else life.Event.CLOSE)
        self._open_waiting(waiting)

    def _end(self, session: Session, event: life.Event, cause: life.Cause, error: CellstreamError) -> None:
        """End a session, held or not."""
        waiting: Sequence[tuple[Handle, Open]] = ()
        if session.handle is not None:
            waiting = session.handle.waiting_opens
            self._tell_and_detach(session.handle, cause, error)
        self._move(session, event)
        self._open_waiting(waiting)

    def _open_waiting(self, waiting: Sequence[tuple[Handle, Open]]) -> None:
        for handle, request in waiting:
            self._open(handle, request)

    def _tell_and_detach(self, handle: Handle, cause: life.Cause, error: CellstreamError) -> None:
        """Take the handle from its stream: unapplied feeds end with `error`, one event tells the cause."""
        stream = handle.stream
        position = handle.position
        unapplied = [handle.current, *handle.queue]
        owed = self._detach(handle)
        for queued in unapplied:
            if isinstance(queued, QueuedFeed):
                self._log_failure(handle, queued, error)
                failed = Progress(position=position, done=True, error=error)
                stream.listener.result(handle, queued, failed)
        stream.remember(handle.number, error, self._settings.stream_closed_handles_max)
        stream.listener.event(handle.number, cause, position, None)
        stream.paid(owed)

    def _detach(self, handle: Handle) -> int:
        """Take the handle from its stream, in silence; its session has no writer then.

        Returns:
            How many bytes of what was read were not applied: the stream is paid them once its listener has
            been told.
        """
        stream, session = handle.stream, handle.session
        del stream.handles[handle.number]
        owed: int = sum(queued.size for queued in (handle.current, *handle.queue) if queued is not None)
        if session is not None:
            if handle.feed is not None:
                session.served.engine.withdraw(handle.feed)
            session.handle = None
            self.held[session.served] -= 1
        handle.current = handle.feed = None
        handle.queue = ()
        return owed

    def _move(self, session: Session, event: life.Event) -> None:
        """Move a session that no handle holds along its life."""
        session.state = life.after(session.state, event)
        if session.state is not life.State.ENDED:
            return
        cause = life.ENDED_BY[event]
        position = session.position
        session.served.engine.give_back(session.slot)
        del self._sessions[session.id]
        self._metrics.sessions_ended.labels(cause).inc()
        write = log.info if event is life.Event.EXPIRE else log.debug  # the others were asked for
        write("session_ended", session=self.hash(session), cause=cause, position=position)
        if session.named and event in (life.Event.CLOSE, life.Event.EXPIRE):
            told = life.Cause.CLOSED if event is life.Event.CLOSE else life.Cause.EXPIRED
            ending = Ending(told, position, self._clock(), self._wall_clock())
            self._endings.remember(session.id, ending)

    def _touch(self, session: Session) -> None:
        """The session was fed: it goes to the end of the order in which sessions expire."""
        session.fed_at = self._clock()
        del self._sessions[session.id]
        self._sessions[session.id] = session

    # ------------------------------------------------------------ errors

    def _not_in_use(self, stream: Stream, number: int) -> CellstreamError:
        if number in stream.handles:
            return refusals.handle_closing(number)
        return stream.closed_handles.get(number) or refusals.handle_unknown(number)
