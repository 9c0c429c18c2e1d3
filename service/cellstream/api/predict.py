"""One Predict stream: a reader, a writer, and the registry between them.

The reader takes messages while the client keeps up; the writer sends whatever has become pending while the
message before was being written. A stream whose queued tokens or unsent responses pass their bound is not
read, and its feeds are not scheduled, until it drains: a slow reader blocks only itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from grpc.aio import ServicerContext

from cellstream.api import convert
from cellstream.api.outbox import Outbox, Part
from cellstream.api.rpc import parse
from cellstream.api.status import Teller
from cellstream.engine import Progress
from cellstream.errors import CellstreamError, MalformedMessage, MessageTooLarge
from cellstream.metrics import Metrics
from cellstream.sessions import Cause, Ending, Handle, Mode, Open, QueuedFeed, Registry
from cellstream.settings import Settings
from cellstream.v1 import prediction_pb2 as pb

STATUS_BYTES = 400
"""About what an error takes."""


class PredictStream:
    """Reads a client's messages, and answers them in order.

    Args:
        registry: Who holds which state.
        settings: The bounds.
        teller: By whom errors leave.
        metrics: Where latency is counted.
        clock: Seconds, monotonic.
        wall_clock: Seconds since the epoch.
        watching: Streams that want to know when a turn has been settled; this one adds and removes itself.

    Raises:
        Draining, TooManyStreams: As `Registry.connect`.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        teller: Teller,
        metrics: Metrics,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        watching: set[PredictStream],
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._teller = teller
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._watching = watching
        self._outbox = Outbox(settings.response_bytes_max)
        self._changed = asyncio.Event()  # what the reader waits for may have come true
        self._cut: asyncio.Future[CellstreamError] = asyncio.get_running_loop().create_future()
        self._stream = registry.connect(self)

    async def run(
        self, messages: AsyncIterator[bytes], context: ServicerContext[bytes, pb.PredictResponse]
    ) -> None:
        """Serve the stream to its end.

        Raises:
            CellstreamError: What ends the stream early, after all results of what was read.
        """
        reading = asyncio.create_task(self._read(messages))
        writing = asyncio.create_task(self._write(context))
        try:
            ends: tuple[asyncio.Future[Any], ...] = (reading, writing, self._cut)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            error: CellstreamError | None = None
            if self._cut.done():
                error = self._cut.result()
            elif reading.done():
                error = reading.result()
            self._outbox.close()
            await writing
        finally:
            # Whatever ended it, a cancel too: the sessions are let go of before anything else is awaited.
            self._registry.disconnect(self._stream)
            self._watching.discard(self)
            reading.cancel()
            writing.cancel()
        if error is not None:
            raise error

    def cut(self, error: CellstreamError) -> None:
        """End the stream with this error, once what is pending has been sent."""
        if not self._cut.done():
            self._cut.set_result(error)

    def look(self) -> None:
        """A turn was settled, or a response was sent: pause or resume, and wake the reader where it waits."""
        bound = self._settings.stream_outbox_bytes_max
        if self._outbox.bytes > bound and not self._stream.paused:
            self._registry.pause(self._stream)
        elif self._outbox.bytes <= bound // 2 and self._stream.paused:
            self._registry.resume(self._stream)
        if not self._stream.paused:
            self._watching.discard(self)
        self._changed.set()

    # ------------------------------------------------------------ reading

    async def _read(self, messages: AsyncIterator[bytes]) -> CellstreamError | None:
        """Take messages until the end of input, then wait until all that was read is answered.

        Returns:
            What ends the stream early; None at the end of input.
        """
        error: CellstreamError | None = None
        async for raw in messages:
            try:
                self._take(raw)
            except CellstreamError as refused:
                error = refused
                break
            while self._overfull():
                await self._change()
        while not self._stream.idle:
            await self._change()
        return error

    def _overfull(self) -> bool:
        return (
            self._stream.queued_tokens > self._settings.stream_queue_tokens_max
            or self._outbox.bytes > self._settings.stream_outbox_bytes_max
        )

    async def _change(self) -> None:
        self._watching.add(self)
        self._changed.clear()
        await self._changed.wait()

    def _take(self, raw: bytes) -> None:
        """Do what one message asks, in the order of its fields."""
        now = self._clock()
        request = parse(pb.PredictRequest, raw, self._settings.message_bytes_max)
        # Held and sliced: protobuf makes a list anew each time it is asked for one, which took a fifth of the
        # Python of a message with one feed, and its iterators end by raising an IndexError.
        opens, resets, feeds, closes = request.opens, request.resets, request.feeds, request.closes
        items = len(opens) + len(resets) + len(feeds) + len(closes)
        if items > self._settings.message_items_max:
            raise MessageTooLarge(
                f"the message has {items} opens, resets, feeds and closes; at most "
                f"{self._settings.message_items_max} "
                "are taken. Send it in parts.",
                message_items_max=self._settings.message_items_max,
            )
        registry, stream = self._registry, self._stream
        for wanted in opens[:]:
            registry.open(stream, wanted.handle, _load_open(wanted))
        for reset in resets[:]:
            registry.reset(stream, reset.handle)
        tokens_max = self._settings.feed_tokens_max
        for feed in feeds[:]:
            registry.feed(stream, feed.handle, convert.given_by(feed, now, tokens_max))
        for close in closes[:]:
            registry.close(stream, close.handle, close.keep)

    # ------------------------------------------------------------ writing

    async def _write(self, context: ServicerContext[bytes, pb.PredictResponse]) -> None:
        """Send what is pending, one message at a time: two writes at once would lose a reply."""
        outbox = self._outbox
        while (letter := await outbox.take()) is not None:
            await context.write(letter.message)
            outbox.written(letter)
            now = self._clock()
            served = None
            for answered, received_at in letter.answered:
                if answered is not served:
                    served = answered
                    histogram = self._metrics.feed_seconds.of(served.name, served.version)
                histogram.observe(now - received_at)
            if self in self._watching:
                self.look()

    # ------------------------------------------------------------ told by the registry

    def opened(self, handle: Handle, created: bool, previous: Ending | None) -> None:
        """The handle holds its session."""
        session = handle.session
        assert session is not None, "a handle that is opened has its session"
        opened = self._outbox.letter(Part.OPENED, 100).message.opened.add(
            handle=handle.number,
            session_id=session.id,
            model=session.served.name,
            version=session.served.version,
            position=session.position,
            created=created,
        )
        if previous is not None:
            opened.previous.cause = pb.Cause.ValueType(previous.cause)
            opened.previous.position = previous.position
            opened.previous.time.CopyFrom(_timestamp(previous.time))

    def refused(self, number: int, session_id: str, error: CellstreamError) -> None:
        """The handle of this number could not be opened."""
        if len(session_id.encode()) > self._settings.session_id_bytes_max:
            session_id = ""  # no session's id, and as large as the client likes
        message = self._outbox.letter(Part.OPENED, STATUS_BYTES).message
        message.opened.add(handle=number, session_id=session_id, error=self._teller.status(error))

    def result(self, handle: Handle, queued: QueuedFeed, progress: Progress) -> None:
        """A feed was answered, or failed."""
        outbox, steps = self._outbox, progress.steps
        if progress.error is not None:
            letter = outbox.letter(Part.RESULTS, convert.RESULT_BYTES + STATUS_BYTES)
            letter.results.add(
                handle=handle.number,
                feed_id=queued.id,
                position=progress.position,
                done=True,
                error=self._teller.status(progress.error),
            )
        else:
            apart, step_bytes = convert.sizes_of(progress)
            first, each = 0, steps
            room = self._settings.response_bytes_max - apart
            if step_bytes * steps > room:
                each = max(1, room // step_bytes)
            while True:
                last = steps if first + each >= steps else first + each
                letter = outbox.letter(Part.RESULTS, apart + step_bytes * (last - first))
                # Set one by one: by keyword they cost twice as much, and this runs for every token.
                result = letter.results.add()
                result.handle = handle.number
                result.feed_id = queued.id
                # A run of steps ends at the progress's position; where it is split, its parts end before.
                result.position = progress.position - (steps - last)
                if last > first:
                    convert.write_predictions(result.predictions, progress, first, last)
                if last == steps:
                    break
                first = last
            result.done = progress.done  # last: if the predictions fail, an error follows
        if progress.done and handle.session is not None:
            # Its latency is known once the letter is written.
            letter.answered.append((handle.session.served, queued.received_at))
        if outbox.bytes > self._settings.stream_outbox_bytes_max:
            self._watching.add(self)

    def rejected(self, number: int, queued: QueuedFeed, error: CellstreamError) -> None:
        """A feed names a handle that is not in use."""
        message = self._outbox.letter(Part.RESULTS, convert.RESULT_BYTES + STATUS_BYTES).message
        message.results.add(handle=number, feed_id=queued.id, done=True, error=self._teller.status(error))

    def event(self, number: int, cause: Cause, position: int, error: CellstreamError | None) -> None:
        """Something happened to a session, or a reset or close could not be done."""
        size = 40 if error is None else STATUS_BYTES
        self._outbox.letter(Part.EVENTS, size).message.events.add(
            handle=number,
            cause=pb.Cause.ValueType(cause),
            position=position,
            time=_timestamp(self._wall_clock()),
            error=None if error is None else self._teller.status(error),
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
