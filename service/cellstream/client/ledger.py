"""What of a session is in flight, and which position its caller has been told. Plain code, without await.

Which tokens a session has absorbed only its position says, so the rule of this module is: *a feed is sent in
a way that the server applies it only if everything before it went as the caller knows*.

- With nothing in flight, a feed carries the position that the caller was last told. Whatever happened
  meanwhile (an answer that was given up, a connection that broke, another writer) makes it fail with
  `PositionMismatch`, which tells the server's position; the feed after that goes on from there.
- Behind others in flight, a feed carries no position: the server applies them in order and, after one that
  fails, refuses the rest (`FeedAfterFailure`) until one comes that carries a position.
- Until a failure has been seen, that is, awaited, no feed carries a position past it: it is not sent at all.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque

from cellstream.client.pending import Pending
from cellstream.client.reply import read_result
from cellstream.client.status import from_status
from cellstream.errors import CellstreamError, ConnectionLost, FeedAfterFailure
from cellstream.v1 import prediction_pb2 as pb


class Ledger:
    """The feeds and resets of one session that are in flight, and the position that its caller was told."""

    def __init__(self) -> None:
        self.position = 0
        self._feeds_sent = 0
        self._in_flight: dict[int, Pending] = {}  # by feed id, oldest first
        self._resets: deque[asyncio.Future[None]] = deque()
        self._failed: Pending | None = None  # the first to fail of those whose error may not be seen yet
        self._must_say_position = False

    @property
    def unanswered(self) -> int:
        """How many feeds are in flight."""
        return len(self._in_flight)

    def check_seen(self) -> None:
        """Refuses to go on past a failure that its caller has not seen.

        Raises:
            FeedAfterFailure: There is one.
        """
        if self._failed is not None:
            if not self._failed.seen:
                raise FeedAfterFailure(
                    "an earlier feed of this session failed: await it, then go on from there"
                )
            self._failed = None

    def next_feed(self) -> tuple[int, int | None]:
        """Says which id the next feed gets, and which position it carries, if any.

        Raises:
            FeedAfterFailure: An earlier feed has failed, and its caller has not seen it.
        """
        self.check_seen()
        return self._feeds_sent, self.position if self._must_say_position or not self._behind else None

    def sent(self, feed_id: int, pending: Pending) -> None:
        """Enters a feed that was sent with what `next_feed` said."""
        self._feeds_sent += 1
        self._in_flight[feed_id] = pending
        self._must_say_position = False

    def reset_sent(self, reset: asyncio.Future[None]) -> None:
        """Enters a reset that was sent; what comes behind it need not know of failures before."""
        self._resets.append(reset)
        self.forget_failure()

    def forget_failure(self) -> None:
        """Goes on as if every failure had been seen."""
        self._failed = None
        self._must_say_position = False

    def result(self, result: pb.Result) -> None:
        """Takes a result, and hands it to who waits for it."""
        failed = result.HasField("error")
        pending = self._in_flight.get(result.feed_id)
        if pending is None:
            return
        if failed or result.done:
            del self._in_flight[result.feed_id]
        if pending.done():
            # Given up: the caller is not told, so the position that he was told stays.
            self._must_say_position |= failed
            return
        self.position = result.position
        if failed:
            error = from_status(result.error)
            error.values.setdefault("position", str(result.position))
            self._fail(pending, error)
        else:
            pending.answer(read_result(result), done=result.done)

    def reset_done(self, event: pb.Event) -> None:
        """Takes the answer to the oldest reset."""
        reset = self._resets.popleft()
        if reset.done():
            return
        if event.HasField("error"):
            reset.set_exception(from_status(event.error))
        else:
            self.position = event.position
            self.forget_failure()  # of feeds before it, told meanwhile
            reset.set_result(None)

    def expire(self, now: float) -> float | None:
        """Fails the feeds about which the server has been silent for too long.

        Args:
            now: The time, by the loop's clock, in seconds.

        Returns:
            When to look again; None: nothing waits.
        """
        waiting = [pending for pending in self._in_flight.values() if not pending.done()]
        for pending in waiting:
            if pending.deadline <= now:
                pending.fail(
                    ConnectionLost(
                        f"no word about a feed for {pending.timeout_seconds:g} s; it may have been applied",
                        position=self.position,
                        unanswered=len(self._in_flight),
                    )
                )
                self._note_failure(pending)
        return min((pending.deadline for pending in waiting if not pending.done()), default=None)

    def fail_all(self, error: CellstreamError) -> None:
        """Fails all that is in flight: nothing more will be heard of it."""
        in_flight, self._in_flight = self._in_flight, {}
        resets, self._resets = self._resets, deque()
        for pending in in_flight.values():
            if not pending.done():
                own = copy.copy(error)  # an exception that is raised in two places mixes their tracebacks
                own.values = {
                    "position": str(self.position),
                    "unanswered": str(len(in_flight)),
                } | error.values
                self._fail(pending, own)
        for reset in resets:
            if not reset.done():
                reset.set_exception(copy.copy(error))

    @property
    def _behind(self) -> bool:
        """Whether something is in flight whose answer will be told, so that order alone says enough."""
        if self._resets and not self._resets[-1].done():
            return True
        return bool(self._in_flight) and not next(reversed(self._in_flight.values())).done()

    def _fail(self, pending: Pending, error: CellstreamError) -> None:
        pending.fail(error)
        # One refused for an earlier one's sake says nothing new, and the next feed may be on its way already.
        if not isinstance(error, FeedAfterFailure):
            self._note_failure(pending)

    def _note_failure(self, pending: Pending) -> None:
        self._must_say_position = True
        if self._failed is None or self._failed.seen:
            self._failed = pending
