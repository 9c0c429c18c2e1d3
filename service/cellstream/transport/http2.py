"""SKELETON, the agreed interface; replaced by the implementation.

A server's HTTP/2 connection (RFC 9113) without I/O: bytes in, events out; calls in, bytes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cellstream.settings import Settings

Headers = list[tuple[bytes, bytes]]


class Stream:
    """One stream.

    Attributes:
        id: Its number.
        owner: Whatever the layer above keeps for it (its call); None at first.
        receive_ended: Whether the peer has sent END_STREAM.
        send_ended: Whether we have.
        closed: Whether nothing more may be sent or will come (both ended, or reset by either side).
    """

    __slots__ = ("closed", "id", "owner", "receive_ended", "send_ended")


@dataclass(slots=True)
class RequestReceived:
    """A stream began. `headers` in order, raw bytes; `too_large`: the list was beyond
    `header_list_bytes_max` and is empty (the stream is to be refused with a status)."""

    stream: Stream
    headers: Headers
    ended: bool
    too_large: bool = False


@dataclass(slots=True)
class DataReceived:
    """Data of a stream, without padding. Its padding has been given back already; `data` counts against the
    stream's receive window until `give_back`. The connection's window is replenished by the Connection."""

    stream: Stream
    data: bytes
    ended: bool


@dataclass(slots=True)
class TrailersReceived:
    """A request's trailers: the peer has ended the stream."""

    stream: Stream


@dataclass(slots=True)
class StreamReset:
    """A stream ended early: by RST_STREAM of the peer, or by a stream error of the peer's that we answered."""

    stream: Stream
    code: int
    by_peer: bool


@dataclass(slots=True)
class WindowOpened:
    """There may be room to send again: on `stream`, or for None on the whole connection (a connection
    WINDOW_UPDATE, or a SETTINGS that changed windows)."""

    stream: Stream | None


@dataclass(slots=True)
class PingAcknowledged:
    """The peer answered our PING."""

    data: bytes


@dataclass(slots=True)
class GoAwayReceived:
    """The peer is leaving: it opens no further stream; open ones go on."""

    code: int


@dataclass(slots=True)
class ConnectionFailed:
    """A connection error: GOAWAY with this code is in the output, nothing more will be read. The message is
    for our log; it never quotes what the peer sent."""

    code: int
    message: str


Event = (
    RequestReceived
    | DataReceived
    | TrailersReceived
    | StreamReset
    | WindowOpened
    | PingAcknowledged
    | GoAwayReceived
    | ConnectionFailed
)


class Connection:
    """A server's side of one connection. Its SETTINGS are in the output from the start.

    Args:
        settings: The limits.
        clock: Seconds, monotonic; for token buckets and PING strikes alone.

    Attributes:
        streams: Open and half-closed streams, by number.
        has_input: Whether a whole frame that was received waits for `events`.
        spent: What the last call of `events` cost, in units of its budget.
        failed: Whether a connection error ended it.
        preface_received: Whether the peer's preface and first SETTINGS have come.
        frame_bytes_max: Bytes of data in one DATA frame: the peer's MAX_FRAME_SIZE, at most 16,384.
        peer_header_list_bytes_max: The peer's MAX_HEADER_LIST_SIZE; None: it did not say.
        output_bytes: How many bytes `take_output` would return.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None: ...

    # --- bytes in
    def receive(self, data: bytes) -> None:
        """Take bytes from the socket. Parses nothing."""

    def events(self, budget: int) -> list[Any]:
        """Parse frames until the input or `budget` is spent: one unit for each frame, and one more for each
        KiB of header block."""

    # --- calls in
    def send_headers(self, stream: Stream, block: bytes, *, end: bool = False) -> None:
        """Send a prepared header block (no dynamic table; the Connection puts a table size update of 0 before
        the first and before the first after each SETTINGS of the peer), split into CONTINUATION if long."""

    def room(self, stream: Stream) -> int:
        """How many bytes of data may be sent on the stream now; 0 or less: none."""

    def send_data(self, stream: Stream, data: bytes, *, end: bool = False) -> None:
        """Send one DATA frame; at most `room(stream)` and `frame_bytes_max` bytes."""

    def give_back(self, stream: Stream, size: int) -> None:
        """Let the peer send so many bytes more on the stream (WINDOW_UPDATE); nothing if it is over."""

    def reset(self, stream: Stream, code: int) -> None:
        """End the stream with RST_STREAM; nothing if it is closed."""

    def ping(self, data: bytes) -> None:
        """Send PING with 8 bytes."""

    def go_away(self, code: int = 0, debug: bytes = b"", *, last: bool = True) -> None:
        """Send GOAWAY. `last=False`: the first of a graceful shutdown, 2^31-1, and new streams are still
        taken; else the true last stream, and streams above it are ignored (their blocks still decoded)."""

    def take_output(self) -> bytes:
        """Return what is to be written, joined, and forget it."""
