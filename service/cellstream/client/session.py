"""A session as its caller sees it: a name, a position, and what can be asked of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, Self, TypeAlias, Unpack

from cellstream.client.connection import Connection, bounded
from cellstream.client.feeds import AnswerOptions, Input, check_size, encode, read_answer
from cellstream.client.generation import Generation, SamplingOptions, generate_request
from cellstream.client.hold import Hold
from cellstream.client.pending import Parts, Pending
from cellstream.client.reply import Reply
from cellstream.errors import CellstreamError, PositionMismatch, SessionIdInvalid
from cellstream.v1 import prediction_pb2 as pb

Mode: TypeAlias = Literal["attach_or_create", "create", "attach"]
"""How opening treats a session that exists, or does not."""

_MODES: dict[str, pb.Mode.ValueType] = {
    "attach_or_create": pb.MODE_UNSPECIFIED,
    "create": pb.MODE_CREATE,
    "attach": pb.MODE_ATTACH,
}

_CAUSES = {
    pb.CAUSE_TAKEN_OVER: "taken_over",
    pb.CAUSE_EXPIRED: "expired",
    pb.CAUSE_CLOSED: "closed",
    pb.CAUSE_KEPT: "kept",
    pb.CAUSE_RESET: "reset",
    pb.CAUSE_DRAINING: "draining",
}


@dataclass(frozen=True, slots=True)
class Ending:
    """How the last session of a name ended.

    Attributes:
        cause: In a word: closed, expired, draining.
        position: How many tokens it had absorbed.
        time: When.
    """

    cause: str
    position: int
    time: datetime


def read_mode(mode: Mode) -> pb.Mode.ValueType:
    """Makes the wire's mode of ours.

    Raises:
        ValueError: It is none of them.
    """
    if mode not in _MODES:
        raise ValueError(f"mode is one of {', '.join(_MODES)}, not {mode!r}")
    return _MODES[mode]


class Session:
    """One session; made by `Client.session`.

    As a context manager it opens the session and lets go of it at the end: a named session stays with the
    server for its next opening, one without a name ends. Without one, the first call opens it.
    """

    def __init__(
        self,
        connection: Connection,
        session_id: str,
        model: str,
        version: str,
        mode: Mode,
        options: AnswerOptions,
    ) -> None:
        opening = pb.Open(session_id=session_id, model=model, version=version, mode=read_mode(mode))
        if options:
            opening.answer.CopyFrom(read_answer(options))
        self._name = session_id
        self._options = options
        self._connection = connection
        self._hold = Hold(connection, opening)
        self._ledger = self._hold.ledger

    def __repr__(self) -> str:
        name = repr(self.id) if self.id else "without a name"
        model = f" of {self._hold.told.model}/{self._hold.told.version}" if self._hold.told.model else ""
        return f"<Session {name}{model} at {self.position}: {self._hold.standing.value}>"

    @property
    def id(self) -> str:
        """Its id; of a session without a name, the server's, once it is open."""
        return self._name or self._hold.told.session_id

    @property
    def position(self) -> int:
        """How many tokens or frames it has absorbed, as far as the caller was told."""
        return self._ledger.position

    @property
    def model(self) -> str:
        """The model that serves it; empty until it is open."""
        return self._hold.told.model

    @property
    def version(self) -> str:
        """The version that serves it; empty until it is open."""
        return self._hold.told.version

    @property
    def created(self) -> bool:
        """Whether its state was new when it was last opened."""
        return self._hold.told.created

    @property
    def previous(self) -> Ending | None:
        """How the last session of this name ended, if the server remembers."""
        if not self._hold.told.HasField("previous"):
            return None
        event = self._hold.told.previous
        return Ending(_CAUSES.get(event.cause, "unknown"), event.position, event.time.ToDatetime(UTC))

    # ------------------------------------------------------------ opening and letting go

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # On the way out with an error, Ctrl-C too, a server that is silent is not waited for as long as else.
        seconds = self._connection.settings.close_timeout_seconds if error is not None else None
        try:
            await self.leave(timeout_seconds=seconds)
        except CellstreamError:
            if error is None:
                raise

    async def open(self, *, timeout_seconds: float | None = None) -> None:
        """Opens it, or attaches to it again after `leave` or a lost connection. Open already: nothing.

        Args:
            timeout_seconds: How long it may take; None: the client's own bound.

        Raises:
            PositionMismatch: The server's position is not the one that the caller was told; the session is
                open, and goes on from the server's.
            SessionError: It is not there, or has been taken over: never is a new one made in its place.
            CapacityError: The server has no room for it.
            RequestError: No such model or version, or an id that no session can have.
            ConnectionLost: The server cannot be reached, or did not answer in time.
        """
        await self._hold.open(timeout_seconds)

    async def reattach(self, *, timeout_seconds: float | None = None) -> int:
        """Attaches to it anew and takes the server's position for granted, whatever was told before.

        Takes the session from whoever holds it now: the way back after `TakenOver`, and the way to find
        out what was applied after `ConnectionLost`. Feeds of ours in flight fail with `TakenOver`.

        Args:
            timeout_seconds: How long it may take; None: the client's own bound.

        Returns:
            The position.

        Raises:
            SessionIdInvalid: It has no name: it ended with its stream.
            SessionError: It is not there.
            ConnectionLost: The server cannot be reached, or did not answer in time.
        """
        if not self._name:
            raise SessionIdInvalid(
                "a session without a name ends with its stream; there is none to attach to"
            )
        await self._hold.reattach(timeout_seconds)
        return self.position

    async def leave(self, *, timeout_seconds: float | None = None) -> None:
        """Lets go of it once its feeds are answered: a named session stays, one without a name ends.

        The next call attaches to a named one again.

        Args:
            timeout_seconds: How long it may take; None: the client's own bound.

        Raises:
            ConnectionLost: The server did not answer in time.
        """
        await self._hold.leave(timeout_seconds)

    async def close(self, *, timeout_seconds: float | None = None) -> None:
        """Ends it once its feeds are answered. Ended already: nothing.

        Args:
            timeout_seconds: How long it may take; None: the client's own bound.

        Raises:
            TakenOver: It is another writer's now, and goes on.
            ConnectionLost: The server cannot be reached, or did not answer in time.
        """
        await self._hold.close(timeout_seconds)

    # ------------------------------------------------------------ feeding

    async def predict(
        self, given: Input, *, timeout_seconds: float | None = None, **answer: Unpack[AnswerOptions]
    ) -> Reply:
        """Feeds it, and waits for the whole answer.

        Args:
            given: Text; token ids (a sequence or an integer array [tokens]; bytes are ids too); or frames,
                a float array [frames, features].
            timeout_seconds: How long to wait for the next word about this feed; None: the client's bound.
            **answer: What to answer with, where it differs from the session's.

        Returns:
            The answer, the parts of a long one joined.

        Raises:
            RequestError: The feed is wrong; nothing was applied.
            SessionError: The session is not what was believed; `position` tells where it is.
            CapacityError: The server cannot now.
            ServerError: The model failed on this feed; `position` tells how much was applied.
            ConnectionLost: The connection broke or no answer came in time; the next call finds out whether
                the feed was applied.
        """
        return await (await self.send(given, timeout_seconds=timeout_seconds, **answer))

    def predict_in_parts(
        self, given: Input, *, timeout_seconds: float | None = None, **answer: Unpack[AnswerOptions]
    ) -> Parts:
        """Feeds it, and gives each part of the answer as it comes: for long feeds that answer every step.

        Breaking off gives up the answer, not the feed: the server applies it to its end, and the next feed
        finds that out with `PositionMismatch`.

        Args:
            given: As in `predict`.
            timeout_seconds: As in `predict`.
            **answer: As in `predict`.

        Returns:
            The parts, in order; iterate over them with `async for`. They raise what `predict` raises, after
            the parts that came before.
        """
        return Parts(lambda: self.send(given, timeout_seconds=timeout_seconds, **answer))

    async def send(
        self, given: Input, *, timeout_seconds: float | None = None, **answer: Unpack[AnswerOptions]
    ) -> Pending:
        """Feeds it without waiting for the answer, so that several feeds are in flight.

        Feeds of one session are applied in order. Waits only while the session is not open, or so much is
        unsent that the server must first catch up.

        Args:
            given: As in `predict`.
            timeout_seconds: As in `predict`, from here on.
            **answer: As in `predict`.

        Returns:
            What to await for the answer.

        Raises:
            FeedAfterFailure: An earlier feed has failed, and its error has not been seen yet: await it.
            CellstreamError: As `open`, and for a feed that cannot be sent at all.
        """
        encoded = encode(given)
        check_size(encoded, self._connection.settings.message_bytes_max)
        wanted = read_answer(self._options | answer) if answer else None
        timeout_seconds = self._connection.seconds(timeout_seconds)
        while True:
            feed_id, position = self._ledger.next_feed()
            conversation = self._hold.conversation
            if conversation is None:
                await self._hold.open(timeout_seconds)
            elif conversation.full:
                async with bounded(timeout_seconds, "room to send"):
                    await conversation.room()
            else:
                break
        conversation.outbox.feed(self._hold.key, self._hold.handle, feed_id, position, encoded, wanted)
        conversation.wake()
        pending = Pending(asyncio.get_running_loop(), timeout_seconds)
        self._ledger.sent(feed_id, pending)
        self._hold.watch(pending.deadline)
        return pending

    async def reset(self, *, timeout_seconds: float | None = None) -> None:
        """Puts it back to its initial state and position 0, behind the feeds in flight.

        Failures before it are forgotten.

        Args:
            timeout_seconds: How long it may take; None: the client's own bound.

        Raises:
            SessionError: It is not there, or has been taken over.
            ConnectionLost: The server cannot be reached, or did not answer in time.
        """
        while (conversation := self._hold.conversation) is None:
            with contextlib.suppress(PositionMismatch):  # it is open, and where it stood no longer matters
                await self._hold.open(timeout_seconds)
        reset: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ledger.reset_sent(reset)
        conversation.outbox.reset(self._hold.key, self._hold.handle)
        conversation.wake()
        async with bounded(self._connection.seconds(timeout_seconds), "a reset"):
            await reset

    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        timeout_seconds: float | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Generation:
        """Goes on by itself from where the session stands: lets go of it, generates, attaches again.

        The session is the generation's until that ends; meanwhile feeds are refused with `TakenOver`. At its
        end the session is attached to again, and its position checked. A generation that is broken off may
        have absorbed more than it sent: the next call then raises `PositionMismatch`, and `reattach` accepts
        the server's position beforehand.

        Args:
            prompt: Text or token ids to absorb first; None: nothing.
            timeout_seconds: How long to wait for each piece; None: the client's own bound.
            **sampling: How tokens are drawn.

        Returns:
            The pieces; iterate over them with `async for`.

        Raises:
            SessionIdInvalid: It has no name: what has none ends when it is let go of.
            GenerationInvalid: A setting is out of range.
        """
        if not self._name:
            raise SessionIdInvalid("give the session a name to generate with it: without one it ends first")
        return Generation(
            self._connection,
            generate_request(prompt, sampling, session_id=self._name, mode=pb.MODE_ATTACH),
            self._connection.seconds(timeout_seconds),
            self._hold,
        )
