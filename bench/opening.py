"""Streams and connections opened by hand: many at once, then left alone; what they weigh and who is refused.

It speaks as much HTTP/2 as that takes. It ignores how many streams a server says it takes, as a client does
that has not read it yet, because all its streams leave before the first byte comes back.
"""

from __future__ import annotations

import selectors
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

import hpack

from bench.idle import SAMPLES, resident_bytes
from bench.processes import Server
from cellstream.v1 import prediction_pb2 as pb

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM = ACK = 1
END_HEADERS = 4
PREFIX_BYTES = 5
"""Before a gRPC message: 0 for "not compressed", and its size."""

SILENCE_SECONDS = 30.0
"""Without a byte for so long, what has not been answered never will be."""

REQUEST_HEADERS = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/cellstream.v1.PredictionService/Predict"),
    (":authority", "127.0.0.1"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)
OPENING = pb.PredictRequest(opens=[pb.Open(handle=0, answer=pb.Answer(top_k=1))]).SerializeToString()
"""What each stream opens with: one session without a name."""


class RawConnection:
    """A connection whose streams each open one session.

    Args:
        server: To whom.

    Attributes:
        socket: Its socket.
        waiting: Streams that have heard nothing, by number.
        opened: How many have their session.
        refused: How many were refused, in whatever way.
        is_ready: Whether the server has answered what was sent to it first.
        is_closed: Whether the server has closed it.
    """

    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port))
        self.waiting: set[int] = set()
        self.opened = self.refused = 0
        self.is_ready = self.is_closed = False
        self._next_stream = 1
        self._headers = hpack.Encoder()
        self._unread = b""
        self._replies: dict[int, bytes] = {}
        self.socket.sendall(PREFACE + _frame(SETTINGS, 0, 0) + _frame(PING, 0, 0, b"opening!"))

    def open(self, streams: int) -> None:
        """Open so many streams by one write."""
        sent = []
        for _ in range(streams):
            number, self._next_stream = self._next_stream, self._next_stream + 2
            self.waiting.add(number)
            message = struct.pack(">BI", 0, len(OPENING)) + OPENING
            sent += [
                _frame(HEADERS, END_HEADERS, number, self._headers.encode(REQUEST_HEADERS)),
                _frame(DATA, 0, number, message),
            ]
        self.socket.sendall(b"".join(sent))

    def read(self) -> None:
        """Take what has come."""
        try:
            received = self.socket.recv(1 << 16)
        except ConnectionError:
            received = b""
        if not received:
            self.is_closed = True
            self._refuse(self.waiting)
        self._unread += received
        while len(self._unread) >= 9:
            end = 9 + int.from_bytes(self._unread[:3])
            if len(self._unread) < end:
                return
            kind, flags, stream = struct.unpack(">BBI", self._unread[3:9])
            frame, self._unread = self._unread[9:end], self._unread[end:]
            self._take(kind, flags, stream, frame)

    def close(self) -> None:
        """End all of its streams with it."""
        self.socket.close()

    def _take(self, kind: int, flags: int, stream: int, frame: bytes) -> None:
        if kind == DATA:
            self._take_reply(stream, frame)
        if kind == RST_STREAM or (kind in (HEADERS, DATA) and flags & END_STREAM):
            self._refuse({stream})
        elif kind == GOAWAY:
            self._refuse({each for each in self.waiting if each > int.from_bytes(frame[:4])})
        elif kind == SETTINGS and not flags & ACK:
            self.socket.sendall(_frame(SETTINGS, ACK, 0))
        elif kind == PING and flags & ACK:
            self.is_ready = True
        elif kind == PING:
            self.socket.sendall(_frame(PING, ACK, 0, frame))

    def _take_reply(self, stream: int, part: bytes) -> None:
        reply = self._replies[stream] = self._replies.get(stream, b"") + part
        if len(reply) < PREFIX_BYTES or len(reply) < PREFIX_BYTES + int.from_bytes(reply[1:5]):
            return
        del self._replies[stream]
        (told,) = pb.PredictResponse.FromString(reply[PREFIX_BYTES:]).opened
        if told.HasField("error"):
            self._refuse({stream})
        elif stream in self.waiting:
            self.waiting.remove(stream)
            self.opened += 1

    def _refuse(self, streams: set[int]) -> None:
        gone = self.waiting & streams
        self.refused += len(gone)
        self.waiting -= gone


class RawConnections:
    """Some of them, read together; a context that closes them.

    Args:
        server: To whom.
        count: How many.
    """

    def __init__(self, server: Server, count: int) -> None:
        self._connections = [RawConnection(server) for _ in range(count)]
        self._selector = selectors.DefaultSelector()
        for connection in self._connections:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self._read_until(lambda connection: connection.is_ready)

    def open(self, streams: int) -> tuple[int, int]:
        """Open so many streams, spread over the connections, at once.

        Returns:
            How many have opened and how many were refused, in whatever way: by a reset, a status, a
            session's error, the connection's end, or silence.
        """
        opened, refused = self._counts()
        each, rest = divmod(streams, len(self._connections))
        for place, connection in enumerate(self._connections):
            connection.open(each + (place < rest))
        self._read_until(lambda connection: not connection.waiting)
        now_opened, now_refused = self._counts()
        silent = sum(len(connection.waiting) for connection in self._connections)
        assert now_opened - opened + now_refused - refused + silent == streams, "a stream was not counted"
        return now_opened - opened, now_refused - refused + silent

    def __enter__(self) -> Self:
        """They are open since they were made."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close them all."""
        self._selector.close()
        for connection in self._connections:
            connection.close()

    def _counts(self) -> tuple[int, int]:
        opened = sum(each.opened for each in self._connections)
        return opened, sum(each.refused for each in self._connections)

    def _read_until(self, is_done: Callable[[RawConnection], bool]) -> None:
        while not all(is_done(each) or each.is_closed for each in self._connections):
            ready = self._selector.select(SILENCE_SECONDS)
            if not ready:
                return
            for key, _ in ready:
                key.data.read()
                if key.data.is_closed:
                    self._selector.unregister(key.data.socket)


def refused_at_once(server: Server, streams: int, connections: int) -> int:
    """Return how many of so many streams, opened at once over so many connections, are refused."""
    with RawConnections(server, connections) as opening:
        return opening.open(streams)[1]


def stream_bytes(server: Server, streams: int, connections: int, state_bytes: int) -> list[float]:
    """Return the bytes of an idle stream with one session, without its state, for parts of so many streams.

    The first part is not counted: the server's own memory grows with it.
    """
    part = streams // (SAMPLES + 1)
    grown = []
    with RawConnections(server, connections) as idle:
        for _ in range(SAMPLES + 1):
            before = resident_bytes(server.pid)
            opened, _ = idle.open(part)
            assert opened == part, "a stream was refused"
            grown.append((resident_bytes(server.pid) - before) / part - state_bytes)
    return grown[1:]


def connection_bytes(server: Server, connections: int) -> list[float]:
    """Return the bytes of a connection without a stream, for parts of so many; the first is not counted."""
    part = connections // (SAMPLES + 1)
    grown = []
    with ExitStack() as stack:
        for _ in range(SAMPLES + 1):
            before = resident_bytes(server.pid)
            stack.enter_context(RawConnections(server, part))
            grown.append((resident_bytes(server.pid) - before) / part)
    return grown[1:]


def _frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(content) << 8 | kind, flags, stream) + content
