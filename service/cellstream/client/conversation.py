"""One Predict stream, shared by all sessions of a client: a task that writes, a task that reads and tells.

It knows handles and messages, not what a session makes of them. A conversation ends once and for all, and
tells every session still on it why; the next one is another object.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

import grpc

from cellstream.client.outbox import Outbox
from cellstream.client.settings import ClientSettings
from cellstream.client.status import from_rpc_error
from cellstream.errors import CellstreamError, ConnectionLost
from cellstream.v1 import prediction_pb2 as pb

PredictCall: TypeAlias = grpc.aio.StreamStreamCall[pb.PredictRequest, pb.PredictResponse]


class Party(Protocol):
    """Who holds a handle, and hears what comes for it."""

    def on_opened(self, opened: pb.Opened) -> None:
        """Its Open is answered; with an error, the handle is free again."""

    def on_result(self, result: pb.Result) -> None:
        """A feed has an answer."""

    def on_event(self, event: pb.Event) -> None:
        """Something happened to its session; after any cause but a reset, the handle is free again."""

    def on_lost(self, error: CellstreamError) -> None:
        """The conversation ended; the handle is gone with it."""


class Conversation:
    """A Predict stream, from the first thing that waits to be said to its end.

    Args:
        start: Makes the call, once there is a connection.
        settings: Its bounds.
    """

    def __init__(self, start: Callable[[], Awaitable[PredictCall]], settings: ClientSettings) -> None:
        self.outbox = Outbox(settings)
        self.ended: CellstreamError | None = None
        """Why nothing more can be said here."""
        self._start = start
        self._settings = settings
        self._parties: dict[int, Party] = {}
        self._handles = 0
        self._closing = False
        self._waiting = asyncio.Event()  # something waits in the outbox
        self._room = asyncio.Event()  # the outbox is below its bound
        self._room.set()
        self._task = asyncio.create_task(self._run(), name="cellstream conversation")

    def __repr__(self) -> str:
        if self.ended is not None:
            return f"<Conversation ended: {self.ended.message}>"
        return f"<Conversation: {len(self._parties)} handles, {self.outbox.size_bytes} bytes to write>"

    def join(self, party: Party) -> int:
        """Gives a party a handle that no one has had on this stream."""
        self._handles += 1
        self._parties[self._handles] = party
        return self._handles

    def leave(self, handle: int) -> None:
        """Stops telling a handle's party anything; what still comes for it is dropped."""
        self._parties.pop(handle, None)

    def wake(self) -> None:
        """Has what waits in the outbox written, together with all else that is added in this moment."""
        self._waiting.set()
        if self.outbox.size_bytes > self._settings.unsent_bytes_max:
            self._room.clear()

    @property
    def full(self) -> bool:
        """Whether so much waits to be written that senders wait too."""
        return not self._room.is_set()

    async def room(self) -> None:
        """Waits until the outbox is below its bound, or the conversation has ended."""
        await self._room.wait()

    async def close(self) -> None:
        """Ends the stream: cleanly if the server answers in time, by cancelling if not."""
        self._closing = True
        self._waiting.set()
        await asyncio.wait([self._task], timeout=self._settings.close_timeout_seconds)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """Reads to the end, whatever that is, and tells everyone."""
        error: CellstreamError = ConnectionLost("the client was closed")
        call: PredictCall | None = None
        writing: asyncio.Task[None] | None = None
        try:
            call = await self._start()
            writing = asyncio.create_task(self._write(call), name="cellstream conversation, writing")
            while isinstance(response := await call.read(), pb.PredictResponse):  # EOF is an object
                self._tell(response)
            if not self._closing:
                error = ConnectionLost("the server ended the stream")
        except grpc.aio.AioRpcError as failure:
            error = from_rpc_error(failure)
        except CellstreamError as failure:
            error = failure
        except Exception as failure:
            error = ConnectionLost(f"the stream was given up after {failure!r}")
            raise
        finally:
            # A call that is only dropped lives on in the server until it is collected.
            if writing is not None:
                writing.cancel()
            if call is not None:
                call.cancel()
            self._end(error)

    async def _write(self, call: PredictCall) -> None:
        """Writes what waits, one message at a time: what is added meanwhile joins the next one."""
        try:
            while True:
                await self._waiting.wait()
                self._waiting.clear()
                while (request := self.outbox.take()) is not None:
                    await call.write(request)
                    if self.outbox.size_bytes <= self._settings.unsent_bytes_max:
                        self._room.set()
                if self._closing:
                    await call.done_writing()
                    return
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # The call is over; why, the reader is told.

    def _tell(self, response: pb.PredictResponse) -> None:
        """Tells each party what came for it, in the order that the protocol gives."""
        parties = self._parties
        for opened in response.opened:
            party = parties.get(opened.handle)
            if opened.HasField("error"):
                parties.pop(opened.handle, None)
            if party is not None:
                party.on_opened(opened)
        for result in response.results:
            party = parties.get(result.handle)
            if party is not None:
                party.on_result(result)
        for event in response.events:
            party = parties.get(event.handle)
            if event.cause != pb.CAUSE_RESET:
                parties.pop(event.handle, None)
            if party is not None:
                party.on_event(event)

    def _end(self, error: CellstreamError) -> None:
        self.ended = error
        self._room.set()
        parties, self._parties = self._parties, {}
        for party in parties.values():
            party.on_lost(error)
