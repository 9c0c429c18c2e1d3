"""What a stream's client has not been sent yet, joined into as few messages as the order of things allows."""

from __future__ import annotations

import asyncio
from collections import deque
from enum import IntEnum

from cellstream.sessions import Served
from cellstream.v1 import prediction_pb2 as pb


class Part(IntEnum):
    """A response's lists, in the order in which a client applies them."""

    OPENED = 0
    RESULTS = 1
    EVENTS = 2


class Letter:
    """One response message, being filled or written.

    Attributes:
        message: It.
        results: Its results; held, because protobuf makes the list anew each time it is asked for.
        last: The last of its lists that has something in it.
        bytes: About how large it is.
        answered: For each feed that it answers to the end: the model, and when the feed was read, in seconds
            of the server's clock.
    """

    __slots__ = ("answered", "bytes", "last", "message", "results")

    def __init__(self) -> None:
        self.message = pb.PredictResponse()
        self.results = self.message.results
        self.last = Part.OPENED
        self.bytes = 0
        self.answered: list[tuple[Served, float]] = []


class Outbox:
    """Joins what is pending; one writer takes it.

    Args:
        response_bytes_max: Beyond it a new message is started.
    """

    def __init__(self, response_bytes_max: int) -> None:
        self._response_bytes_max = response_bytes_max
        self._letters: deque[Letter] = deque()
        self._loop = asyncio.get_running_loop()
        self._arrival: asyncio.Future[None] | None = None  # what the writer waits for
        self._closed = False
        self.bytes = 0  # unsent, the message that is being written included

    def letter(self, part: Part, size: int) -> Letter:
        """The message to add something to: the last one, unless that would change the order of things."""
        letters = self._letters
        last = letters[-1] if letters else None
        if last is None or part < last.last or (last.bytes and last.bytes + size > self._response_bytes_max):
            last = Letter()
            letters.append(last)
            self._tell()
        last.last = part
        last.bytes += size
        self.bytes += size
        return last

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._tell()

    async def take(self) -> Letter | None:
        """The next message; None when the outbox is closed and empty."""
        while not self._letters:
            if self._closed:
                return None
            self._arrival = self._loop.create_future()
            await self._arrival
        return self._letters.popleft()

    def written(self, letter: Letter) -> None:
        """The message has been handed to the transport."""
        self.bytes -= letter.bytes

    def _tell(self) -> None:
        """There is something for the writer, if it waits."""
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
