"""A call without a transport: it pulls from its handler as the contract of `cellstream.transport.call` says.

Room for output is the test's to give, so what a slow reader sees is seen here without a socket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cellstream.transport.call import Call, Handler, Method, Peer, Status, Why


class CallInMemory:
    """One call, from its start to its end.

    Args:
        method: What is called.
        room: How many messages its client has room for; None: any number.

    Attributes:
        sent: The messages that were pulled, in order.
        status: How the call ended; None: it goes on.
        raised: What the handler raised, if it did.
        consumed_bytes: How many bytes of input the handler said were applied.
    """

    metadata: Mapping[str, str | bytes] = {}
    deadline: float | None = None
    peer = Peer("memory:")

    def __init__(self, method: Method, room: int | None = None) -> None:
        self.sent: list[bytes] = []
        self.status: Status | None = None
        self.raised: Exception | None = None
        self.consumed_bytes = 0
        self._room = room
        self._ending: Status | None = None
        self._is_ready = False
        self._over = False
        call: Call = self
        self.handler: Handler = method.start(call)

    # ------------------------------------------------------------ what the handler calls

    def ready(self) -> None:
        """Remember it; the transport pulls later, not from within."""
        self._is_ready = True

    def consumed(self, size: int) -> None:
        """Count it."""
        self.consumed_bytes += size

    def end(self, status: Status) -> None:
        """Remember the first."""
        self._ending = self._ending or status

    # ------------------------------------------------------------ what the test calls

    def receive(self, *messages: bytes) -> None:
        """Hand these messages to the handler, as one read of a socket may; then pull what it has."""
        for message in messages:
            self._do(lambda message=message: self.handler.received(message))
        self.turn()

    def half_close(self) -> None:
        """Say that the client has ended its side, and pull."""
        self._do(self.handler.half_closed)
        self.turn()

    def ask(self, message: bytes) -> None:
        """Receive one message and the half-close behind it, as a call of one request does."""
        self._do(lambda: self.handler.received(message))
        self.half_close()

    def give_room(self, count: int | None) -> None:
        """Let the client read so many messages more, or any number; and pull."""
        self._room = None if count is None or self._room is None else self._room + count
        self.turn()

    def break_off(self, why: Why = Why.CANCELLED) -> None:
        """End the call from outside."""
        self._over = True
        self.handler.closed(why)

    def turn(self) -> None:
        """Pull for as long as there is something and room for it; end the call when it is to end."""
        while not self._over and self._room != 0 and (self._is_ready or self._ending):
            message = self._do(self.handler.next_message)
            if message is None:
                self._is_ready = False
                break
            self.sent.append(message)
            if self._room is not None:
                self._room -= 1
        if not self._over and self._ending and not self._is_ready and self._room != 0:
            self.status = self._ending
            self._over = True
            self.handler.closed(Why.ENDED)

    def _do(self, step: Callable[[], Any]) -> Any:
        if self._over:
            return None
        try:
            return step()
        except Exception as error:
            self.raised = error
            self._over = True
            self.handler.closed(Why.ENDED)
            return None
