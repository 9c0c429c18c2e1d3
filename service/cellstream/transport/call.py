"""What stands between a transport and what it carries: a call, its handler, and how it ends.

A method names a factory; the transport calls it when the first message of a call is whole. From then on the
transport tells the handler what comes (`received`, `half_closed`, at last `closed`) and asks it for output
when there is room (`next_message`). The handler tells the transport that it has output (`ready`), that input
is applied (`consumed`), and how the call ends (`end`). All of these are plain method calls on the event loop:
no task, no future and no event for a stream or a message.

An exception that a handler raises ends its call with the status that `Service.explain` makes of it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


class Code(enum.IntEnum):
    """The status codes of gRPC (google/rpc/code.proto)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ends.

    Attributes:
        code: Its code.
        message: For a person; any Unicode, the transport encodes it.
        details: A serialised `google.rpc.Status` for `grpc-status-details-bin`; empty: none.
    """

    code: Code = Code.OK
    message: str = ""
    details: bytes = b""


OK = Status()
"""The call did what was asked."""


class Why(enum.Enum):
    """Why a call is over, as its handler hears it."""

    ENDED = "ended"
    """Its status was sent: the handler called `end`, or raised."""
    CANCELLED = "cancelled"
    """The client broke it off, or broke the protocol on it."""
    DEADLINE = "deadline"
    """Its `grpc-timeout` ran out; the client was told DEADLINE_EXCEEDED."""
    LOST = "lost"
    """The connection is gone, or was given up."""


Metadata = Mapping[str, str | bytes]
"""Custom metadata by lower-case key; bytes where the key ends in `-bin`. Of a key that came more than once,
the values joined with commas (RFC 9110, section 5.3); of a `-bin` key the last."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end.

    Attributes:
        address: `127.0.0.1:40112`, `[::1]:40112`, or `unix:`.
        identity: The subject of the client's certificate under mutual TLS, as RFC 4514 writes it; else None.
    """

    address: str
    identity: str | None = None


class Call(Protocol):
    """What a handler holds. After `closed` every method does nothing.

    Attributes:
        metadata: What the client sent with the call.
        deadline: When it ends by itself, in seconds of the event loop's clock; None: never.
        peer: Who asks.
    """

    metadata: Metadata
    deadline: float | None
    peer: Peer

    def ready(self) -> None:
        """Say that `next_message` has something; calling it again before it is asked changes nothing."""

    def consumed(self, size: int) -> None:
        """Say that so many bytes of messages that were received are applied: as many may come instead."""

    def end(self, status: Status) -> None:
        """End the call with this status, once `next_message` has given None. The first status counts."""


class Handler(Protocol):
    """What serves one call. Its methods return at once."""

    def received(self, message: bytes) -> None:
        """Take a whole message, unpacked."""

    def half_closed(self) -> None:
        """Hear that no further message will come."""

    def next_message(self) -> bytes | None:
        """Return the next message to send, or None. Asked when there is room, and again once that is sent."""

    def closed(self, why: Why) -> None:
        """Hear that the call is over. Once, last, whatever happened."""


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service.

    Attributes:
        start: Makes the handler of a call, at its first message.
        one_request: Whether a call has exactly one request message. Its handler hears of it only once the
            client has half-closed; none or a second one ends the call with INTERNAL.
    """

    start: Callable[[Call], Handler]
    one_request: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that a transport serves.

    Attributes:
        methods: By path, `/package.Service/Method`.
        explain: Makes the status of what a handler raised, and counts and logs it; never raises.
    """

    methods: Mapping[str, Method]
    explain: Callable[[Exception], Status]
