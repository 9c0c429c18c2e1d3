"""A feed that was sent, and the reply that is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator

from cellstream.client.reply import Reply, join_replies
from cellstream.errors import CellstreamError


class Pending:
    """What `Session.send` gives back: await it for the reply.

    A feed fails with its own error, raised where it is awaited. Cancelling the wait does not take the feed
    back: it gives up the answer, and the session's next feed finds out whether it was applied.

    Args:
        loop: The running loop.
        timeout_seconds: How long the server may be silent about this feed.
    """

    __slots__ = ("_future", "_loop", "_on_part", "_parts", "deadline", "seen", "timeout_seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_seconds: float) -> None:
        self.seen = False
        """Whether the caller has been given the answer or the error, or has given it up."""
        self.timeout_seconds = timeout_seconds
        self.deadline = loop.time() + timeout_seconds
        """When the server will have been silent for too long, by the loop's clock."""
        self._loop = loop
        self._future: asyncio.Future[Reply] = loop.create_future()
        self._parts: list[Reply] = []
        self._on_part: Callable[[Reply], None] | None = None

    def __await__(self) -> Generator[object, None, Reply]:
        try:
            return (yield from self._future)
        finally:
            self.seen = True

    def __repr__(self) -> str:
        if not self._future.done():
            return f"<Pending: {len(self._parts)} parts so far>"
        if self._future.cancelled():
            return "<Pending, given up>"
        return f"<Pending, answered: {self._future.exception() or self._future.result()!r}>"

    def done(self) -> bool:
        """Whether it is answered, failed or given up."""
        return self._future.done()

    def watch(self, on_part: Callable[[Reply], None], on_done: Callable[[], None]) -> None:
        """Has each part handed on as it comes; they are not kept for the reply.

        Args:
            on_part: Takes a part.
            on_done: Called soon after the last part, or the error.
        """
        self._on_part = on_part
        self._future.add_done_callback(lambda _: on_done())

    def give_up(self) -> None:
        """Stops waiting, whatever the answer is or will be."""
        self.seen = True
        self._future.cancel()

    def answer(self, part: Reply, *, done: bool) -> None:
        """Takes a part of the answer, the last one if `done`."""
        if self._on_part is not None:
            self._on_part(part)
        elif self._parts or not done:
            self._parts.append(part)
        if done:
            self._future.set_result(join_replies(self._parts) if self._parts else part)
        else:
            self.deadline = self._loop.time() + self.timeout_seconds

    def fail(self, error: CellstreamError) -> None:
        """Ends it with an error."""
        self._future.set_exception(error)
        # Looked at here, so that asyncio does not log it as never retrieved: a failure that nobody awaits
        # is not silent, for no later feed is sent until it has been seen.
        self._future.exception()


class Parts(AsyncIterator[Reply]):
    """The parts of one feed's answer, in order; the feed is sent when the first is asked for.

    Breaking out of `async for` gives up the answer, and so does `aclose`. A generator would do so only when
    the loop next looks after it: too late for a feed that is sent in the next line.

    Args:
        send: Sends the feed.
    """

    def __init__(self, send: Callable[[], Awaitable[Pending]]) -> None:
        self._send = send
        self._pending: Pending | None = None
        self._parts: asyncio.Queue[Reply | None] = asyncio.Queue()
        self._over = False

    async def __anext__(self) -> Reply:
        if self._over:
            raise StopAsyncIteration
        if self._pending is None:
            self._pending = await self._send()
            hand_on = self._parts.put_nowait  # not self: what is watched must not keep its watcher alive
            self._pending.watch(hand_on, lambda: hand_on(None))
        if (part := await self._parts.get()) is not None:
            return part
        self._over = True
        await self._pending
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Gives up what is still to come. Over already: nothing."""
        self._end()

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            if self._pending is not None:
                self._pending.give_up()
