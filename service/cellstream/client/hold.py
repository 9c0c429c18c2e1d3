"""A session's place on the shared stream: opened, attached to again, let go of, lost.

It decides where a session stands and what may be done about it; what is in flight the ledger knows. One rule
holds everywhere: only the first opening may make a session. Each later one attaches to what is there, so that
a lost state is never replaced by a fresh one.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import enum

from cellstream.client.connection import Connection, bounded
from cellstream.client.conversation import Conversation
from cellstream.client.ledger import Ledger
from cellstream.client.status import from_status
from cellstream.errors import (
    CellstreamError,
    ConnectionLost,
    Draining,
    PositionMismatch,
    SessionClosed,
    SessionError,
    SessionExpired,
    TakenOver,
)
from cellstream.v1 import prediction_pb2 as pb
from cellstream.v1 import session_pb2, session_pb2_grpc

# How a session leaves us when we did not ask for it: the error of what is in flight and of later calls,
# why, and whether a later call may attach to it again by itself. Never after a take-over: two clients
# that take a session back from each other would not stop.
_ENDINGS: dict[int, tuple[type[CellstreamError], str, bool]] = {
    pb.CAUSE_TAKEN_OVER: (
        TakenOver,
        "has another writer now; to take it back, attach to it anew (in Python: `reattach`)",
        False,
    ),
    pb.CAUSE_EXPIRED: (SessionExpired, "was idle too long and is gone; open a new one", False),
    pb.CAUSE_CLOSED: (SessionClosed, "was closed elsewhere and is gone; open a new one", False),
    pb.CAUSE_DRAINING: (Draining, "is where its server, which is going away, leaves it", True),
}
_ENDED_OTHERWISE = (ConnectionLost, "was let go of by the server", True)


class Standing(enum.Enum):
    """Where a session stands, as its client sees it."""

    NEW = "not opened yet"
    HELD = "open"
    AWAY = "let go of"  # it should still be there: the next call attaches to it again
    GONE = "gone"


class Hold:
    """Holds one session, or knows why not.

    Args:
        connection: To the server.
        opening: How to open it the first time; its handle is not set.
    """

    def __init__(self, connection: Connection, opening: pb.Open) -> None:
        self.ledger = Ledger()
        self.told = pb.Opened()
        """The server's answer to the last opening."""
        self.standing = Standing.NEW
        self.handle = 0
        """Which it is on the conversation, while it is held."""
        self._connection = connection
        self._opening_message = opening
        self._name = opening.session_id
        self._left: CellstreamError | None = None  # why it was let go of last
        self._loan: object | None = None  # what a generation of ours is known by, while it writes
        self._conversation: Conversation | None = None
        self._lock = asyncio.Lock()  # one opening or letting go at a time
        self._opening: asyncio.Future[None] | None = None
        self._closing: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def conversation(self) -> Conversation | None:
        """Where it can be fed now; None: it must be opened first."""
        settled = self.standing is Standing.HELD and self._opening is None and self._closing is None
        return self._conversation if settled else None

    @property
    def key(self) -> object:
        """What keeps its order in a message: two objects for one name are one session."""
        return self._name or self

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"session {self._name!r}" if self._name else "the session without a name"

    # ------------------------------------------------------------ opening and letting go

    async def open(self, timeout_seconds: float | None = None) -> None:
        """Opens it, or attaches to it again and compares positions; see `Session.open`."""
        async with self._lock:
            if self.standing is Standing.HELD:
                return
            if self._gone is not None:
                raise copy.copy(self._gone)
            if self._loan is not None:
                raise TakenOver(f"{self.label} is generating: let that end, or close it, first")
            if self.standing is Standing.NEW:
                await self._attach(self._opening_message, timeout_seconds)
                self.ledger.position = self.told.position
                return
            try:
                await self._attach(self._opening_again, timeout_seconds)
            except ConnectionLost as lost:
                if not isinstance(self._left, Draining):
                    raise
                raise ConnectionLost(
                    f"{self.label} cannot be returned to; its server said that it was going away, at "
                    f"position {self.ledger.position}: {lost.message}"
                ) from lost
            mine, theirs = self.ledger.position, self.told.position
            self.ledger.position = theirs
            if mine != theirs:
                raise PositionMismatch(
                    f"{self.label} has absorbed {theirs} tokens, and you were told of {mine}: decide what to "
                    f"send again; the next feed goes on from {theirs}",
                    client_position=mine,
                    server_position=theirs,
                )

    async def reattach(self, timeout_seconds: float | None = None) -> None:
        """Attaches to it, whoever holds it, and takes the server's position; see `Session.reattach`."""
        async with self._lock:
            self._detach(TakenOver(f"{self.label} was attached to anew"), may_return=True)
            self._left = self._loan = None
            await self._attach(self._opening_again, timeout_seconds)
            self.ledger.position = self.told.position
            self.ledger.forget_failure()

    async def leave(self, timeout_seconds: float | None = None) -> None:
        """Lets go of it, behind what is in flight; see `Session.leave`."""
        async with self._lock:
            conversation = self._conversation
            if self.standing is not Standing.HELD or conversation is None:
                return
            try:
                await self._let_go(keep=bool(self._name), timeout_seconds=timeout_seconds)
            except SessionError:
                pass  # Taken over, expired or closed in the same moment: it is let go of.
            except ConnectionLost:
                if conversation.ended is None:
                    raise
                # The end of its stream does the same to a session as a close does.

    async def close(self, timeout_seconds: float | None = None) -> None:
        """Ends it, behind what is in flight; see `Session.close`."""
        async with self._lock:
            if self.standing is Standing.HELD:
                await self._let_go(keep=False, timeout_seconds=timeout_seconds)
            elif self.standing is Standing.AWAY:
                with contextlib.suppress(SessionError):  # unknown, expired or closed: it has ended
                    await self._connection.ask(
                        lambda channel: session_pb2_grpc.SessionServiceStub(channel).CloseSession,
                        session_pb2.CloseSessionRequest(session_id=self._name),
                        timeout_seconds,
                    )
            elif isinstance(self._gone, TakenOver):
                raise copy.copy(self._gone)
            if self.standing is not Standing.GONE:
                self._detach(self._closed_here, may_return=False)

    # ------------------------------------------------------------ lent to a generation

    async def lend(self) -> tuple[object, int]:
        """Lets go of the session for a generation.

        Returns:
            What the loan is known by, and the position to go on from.
        """
        if self.standing is Standing.NEW:
            await self.open()
        await self.leave()
        self.ledger.check_seen()  # what was in flight is answered now
        if self._gone is not None:
            raise copy.copy(self._gone)
        self._loan = object()
        return self._loan, self.ledger.position

    def take_back(self, loan: object, position: int | None) -> None:
        """Notes that a generation is over, and where. A loan that is no longer known: nothing."""
        if self._loan is not None and self._loan is loan:
            self._loan = None
            if position is not None:
                self.ledger.position = position

    # ------------------------------------------------------------ silence

    def watch(self, deadline: float) -> None:
        """Has it noticed if a feed is still unanswered at a time of the loop's clock.

        One alarm for all feeds, mostly set already and found out to be early when it rings: a timer for each
        feed would be set and cancelled for nothing, at a notable part of what a feed costs here.
        """
        if self._alarm is None or deadline < self._alarm.when():
            self._unwatch()
            self._alarm = asyncio.get_running_loop().call_at(deadline, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        deadline = self.ledger.expire(asyncio.get_running_loop().time())
        if deadline is not None:
            self.watch(deadline)

    def _unwatch(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    # ------------------------------------------------------------ what the conversation tells

    def on_opened(self, opened: pb.Opened) -> None:
        """Takes the answer to our Open."""
        if self._opening is None or self._opening.done():
            return
        if opened.HasField("error"):
            self._opening.set_exception(from_status(opened.error))
        else:
            self.told = opened
            self.standing = Standing.HELD  # now: what comes next, before who opens it wakes, may end that
            self._opening.set_result(None)

    def on_result(self, result: pb.Result) -> None:
        """Takes an answer to a feed."""
        self.ledger.result(result)

    def on_event(self, event: pb.Event) -> None:
        """Takes what happened to the session."""
        if event.cause == pb.CAUSE_RESET:
            self.ledger.reset_done(event)
        elif event.HasField("error"):
            self._detach(from_status(event.error), may_return=False)
        elif self._closing is not None and event.cause in (pb.CAUSE_KEPT, pb.CAUSE_CLOSED):
            if not self._closing.done():
                self._closing.set_result(None)
            self._detach(self._closed_here, may_return=event.cause == pb.CAUSE_KEPT)
        else:
            kind, how, may_return = _ENDINGS.get(event.cause, _ENDED_OTHERWISE)
            self._detach(kind(f"{self.label} {how}", position=event.position), may_return=may_return)

    def on_lost(self, error: CellstreamError) -> None:
        """Takes the end of the stream."""
        self._detach(error, may_return=True)

    # ------------------------------------------------------------ helpers

    @property
    def _gone(self) -> CellstreamError | None:
        """Why nobody can return to it; None: somebody can, or it is held."""
        return self._left if self.standing is Standing.GONE else None

    @property
    def _opening_again(self) -> pb.Open:
        again = pb.Open(session_id=self._name, mode=pb.MODE_ATTACH)
        if self._opening_message.HasField("answer"):
            again.answer.CopyFrom(self._opening_message.answer)
        return again

    @property
    def _closed_here(self) -> CellstreamError:
        return SessionClosed(f"{self.label} was closed here", position=self.ledger.position)

    async def _attach(self, message: pb.Open, timeout_seconds: float | None) -> None:
        """Opens a handle on the shared stream; called under the lock.

        Where the connection turns out to be dead it tries again, as long as a call waits for a connection: a
        channel learns of its own end a moment after its streams do. An Open may be repeated, for it applies
        nothing; only one that must create the session may not.
        """
        loop, settings = asyncio.get_running_loop(), self._connection.settings
        give_up_at = loop.time() + settings.connect_timeout_seconds
        pause_seconds = 0.01
        async with bounded(self._connection.seconds(timeout_seconds), "an open"):
            while True:
                try:
                    return await self._attach_once(message)
                except ConnectionLost:
                    too_late = self._connection.closed or loop.time() + pause_seconds >= give_up_at
                    if too_late or message.mode == pb.MODE_CREATE:
                        raise
                await asyncio.sleep(pause_seconds)
                pause_seconds *= 2

    async def _attach_once(self, message: pb.Open) -> None:
        stood = self.standing
        conversation = self._connection.conversation()
        self._conversation = conversation
        self._opening = asyncio.get_running_loop().create_future()
        self.handle = conversation.join(self)
        numbered = pb.Open(handle=self.handle)
        numbered.MergeFrom(message)
        conversation.outbox.open(self.key, numbered)
        conversation.wake()
        try:
            await self._opening
        except BaseException as error:
            self._conversation = None
            if not isinstance(error, CellstreamError):  # with an Open that fails its handle is gone
                # It may yet be opened, and nobody would feed it: whatever comes is let go of.
                conversation.leave(self.handle)
                if conversation.ended is None:
                    conversation.outbox.close(self.key, self.handle, keep=bool(self._name))
                    conversation.wake()
                if self.standing is Standing.HELD:
                    self.standing = stood
            raise
        finally:
            self._opening = None

    async def _let_go(self, *, keep: bool, timeout_seconds: float | None) -> None:
        """Closes the handle, behind what is in flight; called under the lock."""
        assert self._conversation is not None, "a session that is held has a conversation"
        self._closing = asyncio.get_running_loop().create_future()
        self._conversation.outbox.close(self.key, self.handle, keep=keep)
        self._conversation.wake()
        try:
            async with bounded(self._connection.seconds(timeout_seconds), "a close"):
                await self._closing
        except BaseException as error:
            if self.standing is Standing.HELD:
                # The close is on its way and cannot be taken back: the handle is used no more.
                lost = ConnectionLost(f"{self.label} was being let go of, unanswered: {error!r}")
                self._detach(lost, may_return=True)
            raise
        finally:
            self._closing = None

    def _detach(self, error: CellstreamError, *, may_return: bool) -> None:
        """Has no handle from here on.

        Args:
            error: Why; of what is in flight, and of later calls unless the session may be returned to.
            may_return: Whether it should still be there; one without a name never is.
        """
        if self._conversation is not None:
            self._conversation.leave(self.handle)
            self._conversation = None
        if self._opening is not None and self.standing is not Standing.HELD:
            if not self._opening.done():
                self._opening.set_exception(copy.copy(error))
            return  # It was not held, and stands where it stood.
        self.standing = Standing.AWAY if may_return and self._name else Standing.GONE
        self._left = error
        self._unwatch()
        self.ledger.fail_all(error)
        if self._closing is not None and not self._closing.done():
            self._closing.set_exception(copy.copy(error))
