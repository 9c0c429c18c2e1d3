"""A client that writes its frames by hand, good and bad, and reads ours with hyperframe."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from hyperframe.frame import Frame, GoAwayFrame, RstStreamFrame

from cellstream.settings import Settings
from cellstream.transport.http2 import (
    Connection,
    DataReceived,
    RequestReceived,
    Stream,
    TrailersReceived,
    WindowOpened,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, section 3.4

# RFC 9113, section 6: kinds, and section 7: codes; written out here so that a wrong number of ours is found.
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED = 0, 1, 3, 5
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 6, 7, 8, 9, 11
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITISED = 1, 1, 4, 8, 32

# RFC 7541, appendix A: :method POST is 3, :scheme http 6, :path / 4, and :authority 1 takes a literal.
REQUEST = bytes([0x83, 0x86, 0x84, 0x01, 1]) + b"a"
TRAILERS = b"\x00\x01t\x01v"
STATUS_200 = b"\x88"
ANY_BUDGET = 1 << 30


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return a frame, whatever is in it (section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream_id) + payload


def headers(stream_id: int, block: bytes = REQUEST, *, end: bool = False, done: bool = True) -> bytes:
    """Return HEADERS."""
    return frame(HEADERS, (END_STREAM if end else 0) | (END_HEADERS if done else 0), stream_id, block)


def data(stream_id: int, content: bytes = b"", *, end: bool = False) -> bytes:
    """Return DATA."""
    return frame(DATA, END_STREAM if end else 0, stream_id, content)


def rst_stream(stream_id: int, code: int = CANCEL) -> bytes:
    """Return RST_STREAM."""
    return frame(RST_STREAM, 0, stream_id, struct.pack(">I", code))


def window_update(stream_id: int, size: int) -> bytes:
    """Return WINDOW_UPDATE."""
    return frame(WINDOW_UPDATE, 0, stream_id, struct.pack(">I", size))


def priority(stream_id: int, on: int = 0, weight: int = 15) -> bytes:
    """Return PRIORITY."""
    return frame(PRIORITY, 0, stream_id, struct.pack(">IB", on, weight))


def settings(*entries: tuple[int, int]) -> bytes:
    """Return SETTINGS."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *entry) for entry in entries))


def ping(content: bytes = b"12345678", flags: int = 0) -> bytes:
    """Return PING."""
    return frame(PING, flags, 0, content)


SETTINGS_ACK = frame(SETTINGS, ACK, 0)


def field(name: bytes, value: bytes) -> bytes:
    """Return a literal without indexing (RFC 7541, section 6.2.2), each part below 127 bytes."""
    assert len(name) < 127
    assert len(value) < 127
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a header block of literals."""
    return b"".join(field(name, value) for name, value in fields)


def parse(output: bytes) -> list[Frame]:
    """Return the frames that we sent, as hyperframe reads them."""
    frames = []
    while output:
        parsed, length = Frame.parse_frame_header(memoryview(output[:9]))
        parsed.parse_body(memoryview(output[9 : 9 + length]))
        frames.append(parsed)
        output = output[9 + length :]
    return frames


def plain(events: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Return events as plain values that can be compared: a stream is its number."""
    return [
        (
            type(event).__name__,
            *(
                value.id if isinstance(value, Stream) else value
                for value in (getattr(event, name) for name in event.__dataclass_fields__)
            ),
        )
        for event in events
    ]


class RawClient:
    """A connection, the time, and what came out of it.

    Args:
        greet: Whether preface, SETTINGS and their acknowledgement have been exchanged.
        answers: Whether requests are answered once they have ended, as far as windows allow.
        **limits: Settings of the server.
    """

    ANSWER = b"hello"

    def __init__(self, *, greet: bool = True, answers: bool = False, **limits: Any) -> None:
        self.now = 0.0
        self.connection = Connection(Settings(**limits), lambda: self.now)
        self.events: list[Any] = []
        self.frames: list[Frame] = []
        self._answers = answers
        self._unsent: dict[int, bytes] = {}
        if greet:
            self.send(PREFACE, settings(), SETTINGS_ACK)
            self.events.clear()
            self.frames.clear()

    def send(self, *parts: bytes) -> list[Any]:
        """Send bytes; return the new events."""
        self.connection.receive(b"".join(parts))
        events = self.connection.events(ANY_BUDGET)
        self.events += events
        if self._answers:
            self._answer(events)
        self.collect()
        return events

    def collect(self) -> list[Frame]:
        """Return the frames that are new in the output."""
        frames = parse(self.connection.take_output())
        self.frames += frames
        return frames

    def open(self, stream_id: int = 1, *, end: bool = False) -> Stream:
        """Open a stream and return it."""
        (event,) = self.send(headers(stream_id, end=end))
        assert isinstance(event, RequestReceived)
        return event.stream

    def sent(self, kind: type[Frame]) -> list[Any]:
        """Return the frames of a kind that came out."""
        return [each for each in self.frames if isinstance(each, kind)]

    @property
    def failure(self) -> tuple[str, int] | None:
        """What was wrong, as the client hears it: ("connection", code), ("stream", code), or None."""
        for goaway in self.sent(GoAwayFrame):
            return ("connection", goaway.error_code)
        for reset in self.sent(RstStreamFrame):
            return ("stream", reset.error_code)
        return None

    def _answer(self, events: list[Any]) -> None:
        for event in events:
            if (
                isinstance(event, RequestReceived | DataReceived | TrailersReceived)
                and event.stream.receive_ended
            ):
                self.connection.send_headers(event.stream, STATUS_200)
                self._unsent[event.stream.id] = self.ANSWER
            if isinstance(event, RequestReceived | DataReceived | TrailersReceived | WindowOpened):
                self._push()

    def _push(self) -> None:
        for stream_id, content in list(self._unsent.items()):
            stream = self.connection.streams.get(stream_id)
            if stream is None:
                del self._unsent[stream_id]
                continue
            room = max(0, self.connection.room(stream))
            if not room:
                continue
            self.connection.send_data(stream, content[:room], end=len(content) <= room)
            self._unsent[stream_id] = content[room:]
