"""A small service on the contract of `transport.call`: what gRPC's interop cases need, and odd handlers."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from cellstream.errors import CellstreamError
from cellstream.transport.call import OK, Call, Code, Handler, Method, Service, Status, Why

ASK = struct.Struct(">II")
"""How many messages of how many bytes a client asks for: the interop cases' `response_parameters`."""


@dataclass
class Log:
    """What handlers heard, in order, for tests to wait on."""

    closed: list[Why] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    explained: list[Exception] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    handlers: list[TestHandler] = field(default_factory=list)
    on_change: list[Callable[[], None]] = field(default_factory=list)

    def changed(self) -> None:
        """Call whoever waits."""
        for listener in tuple(self.on_change):
            listener()


class TestHandler:
    """Answers from a queue; subclasses fill it."""

    __test__ = False  # for pytest
    consumes = True

    def __init__(self, log: Log, call: Call) -> None:
        self.log = log
        self.call = call
        self.out: deque[bytes] = deque()
        self.is_half_closed = False
        self.why: Why | None = None
        log.calls.append(call)
        log.handlers.append(self)
        log.changed()

    def send(self, message: bytes) -> None:
        """Have a message sent."""
        self.out.append(message)
        self.call.ready()

    def received(self, message: bytes) -> None:
        assert self.why is None, "nothing is called after `closed`"
        self.log.received.append(message)
        self.take(message)
        if self.consumes:
            self.call.consumed(len(message))
        self.log.changed()

    def take(self, message: bytes) -> None:
        """Do what the message asks."""

    def half_closed(self) -> None:
        assert self.why is None, "nothing is called after `closed`"
        self.is_half_closed = True
        self.log.changed()
        self.call.end(OK)

    def next_message(self) -> bytes | None:
        assert self.why is None, "nothing is called after `closed`"
        return self.out.popleft() if self.out else None

    def closed(self, why: Why) -> None:
        assert self.why is None, "`closed` is called once"
        self.why = why
        self.log.closed.append(why)
        self.log.changed()


class Echo(TestHandler):
    """Sends every message back."""

    def take(self, message: bytes) -> None:
        self.send(message)


class Hoard(Echo):
    """Sends back, and never says that anything is consumed."""

    consumes = False


class Many(TestHandler):
    """Sends as many messages as asked for."""

    def take(self, message: bytes) -> None:
        count, size = ASK.unpack(message)
        for _ in range(count):
            self.send(bytes(size))


class Endless(TestHandler):
    """Always has another message."""

    def take(self, message: bytes) -> None:
        self.size = ASK.unpack(message)[1]
        self.call.ready()

    def next_message(self) -> bytes | None:
        return bytes(self.size)

    def half_closed(self) -> None:
        pass


class Count(TestHandler):
    """Answers with the sum of what it was sent."""

    total = 0

    def take(self, message: bytes) -> None:
        self.total += len(message)

    def half_closed(self) -> None:
        self.send(str(self.total).encode())
        super().half_closed()


class Metadata(TestHandler):
    """Answers with the metadata that it was sent."""

    def take(self, message: bytes) -> None:
        self.send(repr(dict(self.call.metadata)).encode())


class Fail(TestHandler):
    """Ends with the status that the message names: its code, a space, its text."""

    def take(self, message: bytes) -> None:
        code, _, text = message.partition(b" ")
        self.call.end(Status(Code(int(code)), text.decode(), b"details" if b"!" in text else b""))


class Raise(TestHandler):
    """Raises at the message that names the method."""

    def _maybe(self, where: str) -> None:
        if self.log.received and self.log.received[-1] == where.encode():
            raise ZeroDivisionError(where)

    def take(self, message: bytes) -> None:
        self.call.ready()
        self._maybe("received")

    def half_closed(self) -> None:
        self._maybe("half_closed")
        super().half_closed()

    def next_message(self) -> bytes | None:
        self._maybe("next_message")
        return super().next_message()

    def closed(self, why: Why) -> None:
        super().closed(why)
        self._maybe("closed")


class Silent(TestHandler):
    """Never answers and never ends by itself."""

    def half_closed(self) -> None:
        self.is_half_closed = True
        self.log.changed()


def make_service() -> tuple[Service, Log]:
    """Make the service, and the log of its handlers."""
    log = Log()

    def method(kind: type[TestHandler], *, one_request: bool = False) -> Method:
        def start(call: Call) -> Handler:
            return kind(log, call)

        return Method(start, one_request)

    def refuse(call: Call) -> Handler:
        raise ZeroDivisionError("start")

    def explain(error: Exception) -> Status:
        log.explained.append(error)
        log.changed()
        if isinstance(error, CellstreamError):
            return Status(Code.INVALID_ARGUMENT, error.message, error.reason.encode())
        return Status(Code.INTERNAL, "explained")

    return (
        Service(
            {
                "/test.Test/Unary": method(Echo, one_request=True),
                "/test.Test/Echo": method(Echo),
                "/test.Test/Hoard": method(Hoard),
                "/test.Test/Many": method(Many),
                "/test.Test/ManyOnce": method(Many, one_request=True),
                "/test.Test/Endless": method(Endless),
                "/test.Test/Count": method(Count),
                "/test.Test/Metadata": method(Metadata, one_request=True),
                "/test.Test/Fail": method(Fail, one_request=True),
                "/test.Test/FailStream": method(Fail),
                "/test.Test/Raise": method(Raise),
                "/test.Test/Silent": method(Silent),
                "/test.Test/Refuse": Method(refuse),
            },
            explain,
        ),
        log,
    )
