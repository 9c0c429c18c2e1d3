"""HTTP/2 as bytes, sound or not: what an attacker says is written by hand (RFC 9113, RFC 7541).

`RawConnection` says what it is told to, and counts what it hears. It follows no rule that it is not made to.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from ssl import SSLContext
from typing import cast

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 6, 7, 8, 9
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
CANCEL = 8
INITIAL_WINDOW_SIZE = 4
"""The number of that setting."""
WINDOW = 65_535
"""A stream's window, and a connection's, at the beginning."""
WINDOW_MAX = (1 << 31) - 1
FRAME_BYTES_MAX = 16_384
ERRORS = (
    *("NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT"),
    *("STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR"),
    *("ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"),
)
"""RFC 9113, section 7, by number."""


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Any frame, sound or not."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(**values: int) -> bytes:
    """A SETTINGS frame; `window` is the initial window."""
    numbers = {"window": INITIAL_WINDOW_SIZE}
    return frame(
        SETTINGS, payload=b"".join(struct.pack(">HI", numbers[name], at) for name, at in values.items())
    )


def window_update(stream: int, size: int) -> bytes:
    """Room for so many bytes more; 0 is an error."""
    return frame(WINDOW_UPDATE, stream=stream, payload=struct.pack(">I", size))


def reset(stream: int, code: int = CANCEL) -> bytes:
    """RST_STREAM."""
    return frame(RST_STREAM, stream=stream, payload=struct.pack(">I", code))


def _integer(value: int, prefix_bits: int, first: int = 0) -> bytes:
    """An integer as HPACK writes it (RFC 7541, 5.1)."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes([first | value])
    found, value = bytearray([first | most]), value - most
    while value >= 128:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def literal(name: bytes, value: bytes, first: int = 0) -> bytes:
    """A header field, neither packed nor indexed; with `first` 0x40 it enters the dynamic table."""
    return bytes([first]) + _integer(len(name), 7) + name + _integer(len(value), 7) + value


def block(path: str, *more: tuple[bytes, bytes]) -> bytes:
    """The header block of a gRPC call."""
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *more,
    )
    return b"".join(literal(name, value) for name, value in fields)


def headers(stream: int, header_block: bytes, flags: int = END_HEADERS) -> bytes:
    """HEADERS, and CONTINUATION where the block is larger than a frame."""
    pieces = [header_block[at : at + FRAME_BYTES_MAX] for at in range(0, len(header_block), FRAME_BYTES_MAX)]
    last = len(pieces) - 1
    return b"".join(
        frame(
            CONTINUATION if number else HEADERS,
            (flags & END_HEADERS if number == last else 0) | (flags & END_STREAM if not number else 0),
            stream,
            piece,
        )
        for number, piece in enumerate(pieces)
    )


def grpc_message(message: bytes, *, packed: bool = False) -> bytes:
    """A message behind gRPC's five bytes."""
    return struct.pack(">BI", packed, len(message)) + message


def data(stream: int, body: bytes, *, end: bool = False) -> bytes:
    """DATA frames of a body."""
    pieces = [body[at : at + FRAME_BYTES_MAX] for at in range(0, len(body), FRAME_BYTES_MAX)] or [b""]
    last = len(pieces) - 1
    return b"".join(
        frame(DATA, END_STREAM if end and number == last else 0, stream, piece)
        for number, piece in enumerate(pieces)
    )


class RawConnection(asyncio.Protocol):
    """A connection to the server that counts what it hears.

    Args:
        heard: What is counted, shared by all connections of an attack: `GOAWAY ENHANCE_YOUR_CALM`,
            `RST_STREAM CANCEL`, `grpc-status 8`, `http 415`, `closed`.
        opening: What it says at once.
        acknowledges: Whether it answers SETTINGS and PING, as every honest client does.
    """

    def __init__(self, heard: Counter[str], opening: bytes, *, acknowledges: bool = True) -> None:
        self._heard = heard
        self._opening = opening
        self._acknowledges = acknowledges
        self._buffer = bytearray()
        self._decoder = hpack.Decoder()
        self._writable = asyncio.Event()
        self._writable.set()
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # until it is made
        self.closed = asyncio.Event()
        self.windows: Counter[int] = Counter()
        self.initial_window = WINDOW
        self.streams_begun = 0
        self.streams_ended: set[int] = set()
        self.data_bytes = 0
        self.told = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say the opening, before anything that the server says is answered."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        self.say(self._opening)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count that the server ended it, unless we did."""
        if not self.transport.is_closing() or exc:
            self._heard["reset" if exc else "closed"] += 1
        self.closed.set()
        self._writable.set()
        self.told.set()

    def eof_received(self) -> None:
        """Count the server's half-close; asyncio then closes."""
        self._heard["closed"] += 1

    def pause_writing(self) -> None:
        """Note that the server reads no further."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Note that it does again."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Take the frames apart."""
        self._buffer += data
        while len(self._buffer) >= 9:
            size = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + size:
                return
            kind, flags = self._buffer[3], self._buffer[4]
            stream = int.from_bytes(self._buffer[5:9], "big")
            payload = bytes(self._buffer[9 : 9 + size])
            del self._buffer[: 9 + size]
            self._hear(kind, flags, stream, payload)
            self.told.set()

    def _hear(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == GOAWAY:
            code, note = struct.unpack(">I", payload[4:8])[0], payload[8:].decode(errors="replace")
            self._heard[f"GOAWAY {ERRORS[code]}{' ' + note if note else ''}"] += 1
        elif kind == RST_STREAM:
            self._heard[f"RST_STREAM {ERRORS[struct.unpack('>I', payload)[0]]}"] += 1
            self.streams_ended.add(stream)
        elif kind == HEADERS:
            self._hear_headers(payload)
        elif kind == WINDOW_UPDATE:
            self.windows[stream] += struct.unpack(">I", payload)[0]
        elif kind == DATA:
            self.data_bytes += len(payload)
        elif kind in (SETTINGS, PING) and not flags & ACK:
            if kind == SETTINGS:
                self._take_settings(payload)
            if self._acknowledges:
                self.say(frame(kind, ACK, payload=payload if kind == PING else b""))
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            self.streams_ended.add(stream)

    def _take_settings(self, payload: bytes) -> None:
        """Take over what the server says of a stream's first window."""
        for number, value in struct.iter_unpack(">HI", payload):
            if number == INITIAL_WINDOW_SIZE:
                self.initial_window = value

    def _hear_headers(self, payload: bytes) -> None:
        for name, value in self._decoder.decode(payload, raw=True):
            if name == b"grpc-status":
                self._heard[f"grpc-status {value.decode()}"] += 1
            elif name == b":status" and value != b"200":
                self._heard[f"http {value.decode()}"] += 1

    def room(self, stream: int) -> int:
        """How many bytes of DATA the server takes now on this stream."""
        return min(WINDOW + self.windows[0], self.initial_window + self.windows[stream])

    def say(self, said: bytes) -> None:
        """Write it, if the connection is still there."""
        if not self.closed.is_set() and not self.transport.is_closing():
            self.transport.write(said)

    async def drain(self) -> bool:
        """Wait until the server reads; False if the connection is gone."""
        await self._writable.wait()
        return not self.closed.is_set() and not self.transport.is_closing()

    async def next_told(self) -> bool:
        """Wait for the next frame; False if the connection is gone."""
        self.told.clear()
        await self.told.wait()
        return not self.closed.is_set()


async def connect(
    port: int,
    heard: Counter[str],
    *,
    opening: bytes | None = None,
    tls: SSLContext | None = None,
    acknowledges: bool = True,
    reads: bool = True,
) -> RawConnection:
    """Open a connection.

    Args:
        port: On 127.0.0.1.
        heard: Counts what the server says.
        opening: What is said first; None: the preface and an empty SETTINGS.
        tls: Speaks TLS with it.
        acknowledges: Whether SETTINGS and PINGs are answered.
        reads: Whether anything is ever read from the socket.
    """
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: RawConnection(
            heard, PREFACE + settings() if opening is None else opening, acknowledges=acknowledges
        ),
        "127.0.0.1",
        port,
        ssl=tls,
    )
    if not reads:
        connection.transport.pause_reading()
    return connection
