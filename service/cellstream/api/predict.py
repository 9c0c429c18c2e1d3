"""One Predict stream: what its client sends goes to the registry, what that tells waits in the outbox.

It makes no task and waits for nothing: it is told what comes, and asked for responses when there is room. A
client that does not read is neither read nor stepped: it blocks only itself.
"""

from __future__ import annotations

import struct
from functools import partial

from google.protobuf.timestamp_pb2 import Timestamp

from cellstream.api import convert
from cellstream.api.context import Context
from cellstream.api.flow import Flow
from cellstream.api.outbox import FAILURE_BYTES, NOTICE_BYTES, Outbox, Part, Unencodable, Write
from cellstream.api.parsing import ITEM_BYTES_MIN, has_more_fields, parse
from cellstream.engine import Progress
from cellstream.errors import CellstreamError, MalformedMessage, MessageTooLarge
from cellstream.sessions import Cause, Ending, Handle, Mode, Open, QueuedFeed, Served, Session
from cellstream.transport.call import OK, Call, Status, Why
from cellstream.v1 import prediction_pb2 as pb

_SIZE = struct.Struct("=I")


class PredictStream:
    """Reads a client's messages, and answers them in order.

    Args:
        call: The call.
        context: What the server's handlers share.

    Raises:
        Draining, TooManyStreams: As `Registry.connect`.
    """

    __slots__ = (
        "_answered",
        "_call",
        "_context",
        "_flow",
        "_half_closed",
        "_items_done",
        "_last_status",
        "_outbox",
        "_stream",
        "_taken_bytes",
        "_unread",
    )

    def __init__(self, call: Call, context: Context) -> None:
        self._call = call
        self._context = context
        self._stream = context.registry.connect(self)
        self._flow = Flow(
            call, self._stream, context.registry, context.unsent, context.settings.stream_outbox_bytes_max
        )
        self._outbox = Outbox(context.settings.response_bytes_max)
        self._answered: list[tuple[Served, float]] = []
        self._taken_bytes = 0  # of the response that is being sent
        # What came while it is paused, each message behind its size: bounded by its window.
        self._unread = bytearray()
        self._items_done = 0  # of the first of these
        self._half_closed = False
        self._last_status: Status | None = None  # how it ends, once all that was read is answered

    def __repr__(self) -> str:
        return f"<PredictStream: {self._flow!r}, {self._outbox!r}>"

    # ------------------------------------------------------------ told by the transport

    def received(self, message: bytes) -> None:
        """Do what a message asks, or keep it until the stream is no longer paused."""
        if not message:
            return  # it asks nothing, and kept it would cost more than the window counts
        if self._stream.paused or self._unread:
            self._keep(message)
        elif (stopped_at := self._read(message, 0)) is not None:
            self._keep(message)
            self._items_done = stopped_at

    def half_closed(self) -> None:
        """End the stream once all that was read is answered."""
        self._half_closed = True
        self._end_if_answered()

    def next_message(self) -> bytes | None:
        """Encode the next response."""
        if self._taken_bytes:
            self._flow.sent(self._taken_bytes)
            self._taken_bytes = 0
            if self._unread:
                self._read_on()
        answered = self._answered
        while True:
            try:
                taken = self._outbox.take(answered)
            except Unencodable as failure:
                self._fail_answer(failure)
            else:
                break
        if taken is None:
            return None
        response, self._taken_bytes = taken
        if answered:
            self._observe(answered)
            answered.clear()
        return response

    def closed(self, why: Why) -> None:
        """Let go of the sessions; whatever was not applied is dropped."""
        self._context.registry.disconnect(self._stream)
        self._flow.close()

    def _observe(self, answered: list[tuple[Served, float]]) -> None:
        """Count how long the feeds took that a response answers."""
        now = self._context.clock()
        served = None
        for one, received_at in answered:
            if one is not served:
                served = one
                histogram = self._context.metrics.feed_seconds.of(one.name, one.version)
            histogram.observe(now - received_at)

    def _end_if_answered(self) -> None:
        if self._stream.unapplied_bytes or self._unread:
            return
        if self._last_status is not None:
            self._call.end(self._last_status)
        elif self._half_closed:
            self._call.end(OK)

    # ------------------------------------------------------------ reading

    def _keep(self, message: bytes) -> None:
        self._unread += _SIZE.pack(len(message))
        self._unread += message

    def _read_on(self) -> None:
        """Read what was kept, as far as the stream is not paused again.

        It counts as unread until all of it was looked at: a half-closed stream must not end in between.
        """
        unread, place = self._unread, 0
        while place < len(unread) and not self._stream.paused:
            start = place + _SIZE.size
            end = start + _SIZE.unpack_from(unread, place)[0]
            stopped_at = self._read(bytes(unread[start:end]), self._items_done)
            if stopped_at is not None:
                self._items_done = stopped_at
                break
            self._items_done = 0
            place = end
        del unread[:place]
        self._end_if_answered()

    def _read(self, message: bytes, done: int) -> int | None:
        """Do what a message asks; one that cannot be read ends the stream once all before it is answered.

        Args:
            message: It.
            done: How many of its items have been done.

        Returns:
            How many are done, if the stream was paused before the last; None: nothing is left to do.
        """
        if self._last_status is not None:
            return None  # behind a message that ends the stream
        try:
            return self._take(message, done, self._context.clock())
        except CellstreamError as refused:
            self._last_status = self._context.errors.explain(refused)
            self._end_if_answered()
            return None

    def _take(self, raw: bytes, done: int, received_at: float) -> int | None:
        """Do what one message asks, in the order of its fields, until the stream is paused.

        Args:
            raw: The message.
            done: How many of its items have been done.
            received_at: When it was read, seconds of the server's clock.

        Returns:
            How many items are done, if some are left; None: all are.
        """
        settings = self._context.settings
        items_max = settings.message_items_max
        if len(raw) > ITEM_BYTES_MIN * items_max and has_more_fields(raw, items_max):
            raise _too_many_items(f"more than {items_max}", items_max)
        request = parse(pb.PredictRequest, raw, settings.message_bytes_max)
        # Held and sliced: protobuf makes a list anew each time it is asked for one, which took a fifth of the
        # Python of a message with one feed, and its iterators end by raising an IndexError. Most messages
        # have feeds alone: what is empty is not sliced.
        opens, resets, feeds, closes = request.opens, request.resets, request.feeds, request.closes
        before_feeds = len(opens) + len(resets)
        before_closes = before_feeds + len(feeds)
        items = before_closes + len(closes)
        if items > items_max:
            raise _too_many_items(str(items), items_max)
        share = len(raw) // items if items else 0  # of the message's bytes, for each that may have to wait
        registry, stream = self._context.registry, self._stream
        if done < before_feeds:
            for wanted in opens[done:]:
                if stream.paused:
                    return done
                registry.open(stream, wanted.handle, _load_open(wanted))
                done += 1
            for reset in resets[done - len(opens) :]:
                if stream.paused:
                    return done
                registry.reset(stream, reset.handle, share)
                done += 1
        if done < before_closes:
            tokens_max = settings.feed_tokens_max
            for feed in feeds[done - before_feeds :]:
                if stream.paused:
                    return done
                registry.feed(stream, feed.handle, convert.given_by(feed, received_at, share, tokens_max))
                done += 1
        if done < items:
            for close in closes[done - before_closes :]:
                if stream.paused:
                    return done
                registry.close(stream, close.handle, close.keep, share)
                done += 1
        if rest := len(raw) - share * (items - len(opens)):
            self._flow.applied(rest)
        return None

    # ------------------------------------------------------------ told by the registry

    def opened(self, handle: Handle, created: bool, previous: Ending | None) -> None:
        """The handle holds its session."""
        session = handle.session
        assert session is not None, "a handle that is opened has its session"
        write = partial(
            _write_opened,
            handle=handle.number,
            session=session,
            position=session.position,
            created=created,
            previous=previous,
        )
        self._owe(Part.OPENED, NOTICE_BYTES, write)

    def refused(self, number: int, session_id: str, error: CellstreamError) -> None:
        """The handle of this number could not be opened."""
        if len(session_id.encode()) > self._context.settings.session_id_bytes_max:
            session_id = ""  # no session's id, and as large as the client likes
        self._owe(
            Part.OPENED,
            FAILURE_BYTES,
            partial(self._write_refused, number=number, id=session_id, error=error),
        )

    def result(self, handle: Handle, queued: QueuedFeed, progress: Progress) -> None:
        """A feed was answered, or failed."""
        if progress.error is not None:
            self._fail(handle.number, queued, progress.position, progress.error)
            return
        session = handle.session
        assert session is not None, "a feed runs for a session"
        self._call.ready()
        self._flow.owe(self._outbox.add_progress(handle.number, queued, progress, session.served))

    def rejected(self, number: int, queued: QueuedFeed, error: CellstreamError) -> None:
        """A feed names a handle that is not in use."""
        self._fail(number, queued, 0, error)

    def event(self, number: int, cause: Cause, position: int, error: CellstreamError | None) -> None:
        """Something happened to a session, or a reset or close could not be done."""
        write = partial(
            self._write_event,
            number=number,
            cause=cause,
            position=position,
            time=self._context.wall_clock(),
            error=error,
        )
        self._owe(Part.EVENTS, NOTICE_BYTES if error is None else FAILURE_BYTES, write)

    def applied(self, size: int) -> None:
        """So many bytes of what was read are applied, or failed."""
        self._flow.applied(size)
        if self._half_closed or self._last_status is not None:
            self._end_if_answered()

    def drained(self, error: CellstreamError) -> None:
        """The server is going away."""
        self._last_status = self._context.errors.explain(error)
        self._call.end(self._last_status)

    def _fail(self, number: int, queued: QueuedFeed, position: int, error: CellstreamError) -> None:
        write = partial(self._write_failure, number=number, id=queued.id, position=position, error=error)
        self._owe(Part.RESULTS, FAILURE_BYTES, write)

    def _fail_answer(self, failure: Unencodable) -> None:
        """Tell the client, in place of a feed's answer, that it cannot be told."""
        cause, queued = failure.__cause__, failure.queued
        assert isinstance(cause, Exception), "it is raised from what went wrong"
        self._flow.sent(self._outbox.drop(queued))
        tell = partial(self._fail, failure.handle, queued, failure.position)
        self._context.registry.fail_answer(self._stream, failure.handle, queued, cause, tell)

    def _owe(self, part: Part, size: int, write: Write) -> None:
        self._outbox.add(part, size, write)
        self._call.ready()
        self._flow.owe(size)

    # ------------------------------------------------------------ writing, once there is room

    def _write_refused(
        self, response: pb.PredictResponse, number: int, id: str, error: CellstreamError
    ) -> None:
        response.opened.add(handle=number, session_id=id, error=self._context.errors.status(error))

    def _write_failure(
        self, response: pb.PredictResponse, number: int, id: int, position: int, error: CellstreamError
    ) -> None:
        status = self._context.errors.status(error)
        response.results.add(handle=number, feed_id=id, position=position, done=True, error=status)

    def _write_event(
        self,
        response: pb.PredictResponse,
        number: int,
        cause: Cause,
        position: int,
        time: float,
        error: CellstreamError | None,
    ) -> None:
        response.events.add(
            handle=number,
            cause=pb.Cause.ValueType(cause),
            position=position,
            time=_timestamp(time),
            error=None if error is None else self._context.errors.status(error),
        )


def _write_opened(
    response: pb.PredictResponse,
    handle: int,
    session: Session,
    position: int,
    created: bool,
    previous: Ending | None,
) -> None:
    opened = response.opened.add(
        handle=handle,
        session_id=session.id,
        model=session.served.name,
        version=session.served.version,
        position=position,
        created=created,
    )
    if previous is not None:
        opened.previous.cause = pb.Cause.ValueType(previous.cause)
        opened.previous.position = previous.position
        opened.previous.time.CopyFrom(_timestamp(previous.time))


def _too_many_items(found: str, most: int) -> MessageTooLarge:
    return MessageTooLarge(
        f"the message has {found} opens, resets, feeds and closes; at most {most} are taken. "
        "Send it in parts.",
        message_items_max=most,
    )


def _load_open(wanted: pb.Open) -> Open:
    try:
        mode = Mode(wanted.mode)
    except ValueError:
        raise MalformedMessage(f"an Open's mode is {wanted.mode}; it is 0, 1 or 2.") from None
    load_answer = partial(convert.load_answer, convert.copied(wanted.answer))
    return Open(wanted.session_id, wanted.model, wanted.version, mode, load_answer)


def _timestamp(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
