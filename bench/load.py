"""A load client that is cheap: HTTP/2 by hand, over one blocking socket.

A gRPC client in Python costs as much a message as the server that it is to measure, and so would measure
itself. This one knows just enough of HTTP/2 (RFC 9113) to speak to a gRPC server over loopback: requests are
framed once, before the clock starts; of what comes, frames are cut apart and answers counted.

Closed loop: each stream sends its next message when its last one is answered whole.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from itertools import cycle

from cellstream.v1.prediction_pb2 import PredictResponse

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK, END_STREAM, END_HEADERS, PADDED = 1, 1, 4, 8
INITIAL_WINDOW_SIZE = 4
WINDOW_MAX = 2**31 - 1
FRAME_BYTES_MAX = 16_384

_FRAME = struct.Struct(">BHBBI")  # length in 8 and 16 bits, kind, flags, stream
_SETTING = struct.Struct(">HI")


class LoadClient:
    """Streams over one connection, opened and answered once.

    Args:
        port: Of a gRPC server on this machine.
        path: The method, "/package.Service/Method".
        openings: For each stream, its first message.
        messages: For each stream, what it sends then, over and over.
        items: How many items (opened, results) answer one message, the first one too.

    Attributes:
        sent: How many messages each stream has sent, without the first.
        last: For each stream, the last response message that came.

    Raises:
        ConnectionError: The server ended a stream or the connection, or sent something unforeseen.
    """

    def __init__(
        self, port: int, path: str, openings: Sequence[bytes], messages: Sequence[Sequence[bytes]], items: int
    ) -> None:
        self._items = items
        self._streams = [2 * place + 1 for place in range(len(openings))]  # a client's streams are odd
        self._frames = {
            stream: cycle([_message(stream, message) for message in its_messages])
            for stream, its_messages in zip(self._streams, messages, strict=True)
        }
        self._owed = dict.fromkeys(self._streams, items)
        self._parts = dict.fromkeys(self._streams, b"")  # of an answer that is not whole yet
        self._stream_window = 65_535
        self._windows = dict.fromkeys((0, *self._streams), 65_535)  # what may be sent; 0 is the connection
        self._left = b""
        self._answered: list[int] = []
        self.sent = dict.fromkeys(self._streams, 0)
        self.last: dict[int, PredictResponse] = {}

        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Windows as wide as they go: a bench does not live long enough to fill them.
        hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(
            SETTINGS, 0, 0, _SETTING.pack(INITIAL_WINDOW_SIZE, WINDOW_MAX)
        )
        hello += _frame(WINDOW_UPDATE, 0, 0, (WINDOW_MAX - 65_535).to_bytes(4, "big"))
        self._socket.sendall(hello)
        for stream, opening in zip(self._streams, openings, strict=True):
            self._socket.sendall(_frame(HEADERS, END_HEADERS, stream, _headers(path, port)))
            self._send({stream: _message(stream, opening)})
        self._await_all()

    def close(self) -> None:
        """Ends the connection, and with it its streams."""
        self._socket.close()

    def run(self, seconds: float) -> tuple[int, float, list[float]]:
        """Keeps every stream busy for so long, then waits for what is under way.

        Returns:
            How many items were answered, in how many seconds, and each message's latency in seconds.
        """
        messages_before = sum(self.sent.values())
        latencies: list[float] = []
        began = now = time.perf_counter()
        sent_at = dict.fromkeys(self._streams, began)
        self._next(self._streams)
        while now - began < seconds:
            self._receive()
            now = time.perf_counter()
            for stream in self._answered:
                latencies.append(now - sent_at[stream])
                sent_at[stream] = now
            self._next(self._answered)
        self._await_all()
        taken = time.perf_counter() - began
        return (sum(self.sent.values()) - messages_before) * self._items, taken, latencies

    # ------------------------------------------------------------ sending

    def _next(self, streams: Sequence[int]) -> None:
        """Sends the next message of each of these streams."""
        for stream in streams:
            self._owed[stream] = self._items
            self.sent[stream] += 1
        self._send({stream: next(self._frames[stream]) for stream in streams})
        self._answered = []

    def _send(self, frames: dict[int, bytes]) -> None:
        for stream, frame in frames.items():
            size = len(frame) - _FRAME.size
            self._windows[stream] -= size
            self._windows[0] -= size
            if self._windows[stream] < 0 or self._windows[0] < 0:
                raise ConnectionError("the server's window is full; in a closed loop it never should be")
        self._socket.sendall(b"".join(frames.values()))

    # ------------------------------------------------------------ receiving

    def _await_all(self) -> None:
        """Waits until every stream has its answer."""
        while any(self._owed.values()):
            self._receive()
        self._answered = []

    def _receive(self) -> None:
        """Takes what has come, at least something."""
        received = self._socket.recv(1 << 18)
        if not received:
            raise ConnectionError("the server closed the connection")
        data = self._left + received
        at = 0
        while len(data) - at >= _FRAME.size:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, at)
            begin = at + _FRAME.size
            end = begin + (high << 16 | low)
            if end > len(data):
                break
            if kind == DATA:
                self._take(stream, data[begin:end])
            else:
                self._obey(kind, flags, stream, data[begin:end])
            at = end
        self._left = data[at:]

    def _take(self, stream: int, payload: bytes) -> None:
        """Counts what a DATA frame answers. A message is a byte (0: not compressed), 4 of length, itself."""
        data = self._parts[stream] + payload
        while len(data) >= 5 and len(data) >= (end := 5 + int.from_bytes(data[1:5], "big")):
            response = PredictResponse.FromString(data[5:end])
            results = response.results
            if response.events or (results and results[-1].HasField("error")):
                raise ConnectionError(f"the server refused: {response}")
            self.last[stream] = response
            self._owed[stream] -= len(results) + len(response.opened)
            if not self._owed[stream]:
                self._answered.append(stream)
            data = data[end:]
        self._parts[stream] = data

    def _obey(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Does what HTTP/2 asks of a client."""
        if kind == WINDOW_UPDATE:
            if stream in self._windows:
                self._windows[stream] += int.from_bytes(payload, "big")
        elif kind == PING and not flags & ACK:
            self._socket.sendall(_frame(PING, ACK, 0, payload))
        elif kind == SETTINGS and not flags & ACK:
            settings = dict(_SETTING.iter_unpack(payload))
            wider = settings.get(INITIAL_WINDOW_SIZE, self._stream_window) - self._stream_window
            self._stream_window += wider
            for each in self._streams:
                self._windows[each] += wider
            self._socket.sendall(_frame(SETTINGS, ACK, 0, b""))
        elif kind in (RST_STREAM, GOAWAY) or (kind == HEADERS and flags & END_STREAM):
            raise ConnectionError(f"the server ended a stream (frame {kind}): {payload!r}")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _FRAME.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def _message(stream: int, message: bytes) -> bytes:
    """A gRPC message in a DATA frame."""
    payload = b"\0" + len(message).to_bytes(4, "big") + message
    assert len(payload) <= FRAME_BYTES_MAX, "a message of the load has one frame"
    return _frame(DATA, 0, stream, payload)


def _headers(path: str, port: int) -> bytes:
    """A request's headers, each a literal that enters no table (RFC 7541, 6.2.2)."""
    block = b""
    for name, value in (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", f"127.0.0.1:{port}"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ):
        assert len(value) < 127, "a longer one needs another form of length"
        block += bytes((0, len(name))) + name.encode() + bytes((len(value),)) + value.encode()
    return block
