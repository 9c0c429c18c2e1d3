"""One connection in memory: `h2` is the client, our `http2.py` and `grpc.py` the server; time is manual."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
from tests.transport.grpc_service import Log, make_service

from cellstream.settings import Settings
from cellstream.transport.call import Peer
from cellstream.transport.grpc import GrpcConnection, Totals
from cellstream.transport.http2 import Connection

HEADERS = {":method": "POST", ":scheme": "http", ":authority": "test", "content-type": "application/grpc"}
ANY_BUDGET = 1 << 30


def framed(*messages: bytes, packed: int = 0) -> bytes:
    """Return messages as gRPC frames them (PROTOCOL-HTTP2.md, Length-Prefixed-Message)."""
    return b"".join(struct.pack(">BI", packed, len(message)) + message for message in messages)


@dataclass
class Answer:
    """What came on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    is_ended: bool = False
    reset: int | None = None

    @property
    def messages(self) -> list[bytes]:
        """Whole messages, without prefixes; packed ones have their prefix's first byte in `flags`."""
        return [message for _, message in self.frames]

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        """Flag and message, of each that is whole."""
        found, start = [], 0
        while len(self.data) - start >= 5:
            flag, size = struct.unpack_from(">BI", self.data, start)
            if len(self.data) - start - 5 < size:
                break
            found.append((flag, self.data[start + 5 : start + 5 + size]))
            start += 5 + size
        return found

    @property
    def last(self) -> dict[str, str]:
        """The headers that hold the status: the trailers, or those of a trailers-only answer."""
        return self.trailers or self.headers

    @property
    def status(self) -> int:
        """`grpc-status`."""
        return int(self.last["grpc-status"])

    @property
    def text(self) -> str:
        """`grpc-message`, as it is on the wire."""
        return self.last.get("grpc-message", "")


class Clock:
    """Time that a test moves, with timers."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[ManualTimer] = []

    def __call__(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> ManualTimer:
        timer = ManualTimer(self, when, callback)
        self.timers.append(timer)
        return timer

    def move(self, seconds: float) -> None:
        """Let time pass, and call what is due, in order."""
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer.when <= end]:
            timer = min(due, key=lambda each: each.when)
            self.timers.remove(timer)
            self.now = max(self.now, timer.when)
            timer.callback()
        self.now = end


@dataclass(eq=False)
class ManualTimer:
    """A timer of `Clock`."""

    clock: Clock
    when: float
    callback: Callable[[], None]

    def cancel(self) -> None:
        if self in self.clock.timers:
            self.clock.timers.remove(self)


class Memory:
    """A client and a server that share no socket.

    Args:
        window: The client's INITIAL_WINDOW_SIZE, if not HTTP/2's own.
        header_list_bytes_max: The client's MAX_HEADER_LIST_SIZE.
        server: Another connection to the same server.
        **settings: Of the server.
    """

    def __init__(
        self,
        *,
        window: int | None = None,
        header_list_bytes_max: int | None = None,
        server: Memory | None = None,
        **settings: Any,
    ) -> None:
        self.settings = Settings(**settings)
        self.clock = Clock() if server is None else server.clock
        self.log: Log
        if server is None:
            service, self.log = make_service()
            self.totals = Totals(self.settings, service, self.clock, self.clock.call_at)
        else:
            self.log, self.totals = server.log, server.totals
        self.woken = 0
        self.notices: list[Any] = []
        self.http2 = Connection(self.settings, self.clock)
        self.grpc = GrpcConnection(self.http2, self.totals, Peer("memory"), self._wake, self.notices.append)
        self.client = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="latin-1")
        )
        codes = h2.settings.SettingCodes
        told = {codes.ENABLE_PUSH: 0}
        if window is not None:
            told[codes.INITIAL_WINDOW_SIZE] = window
        if header_list_bytes_max is not None:
            told[codes.MAX_HEADER_LIST_SIZE] = header_list_bytes_max
        self.client.local_settings = h2.settings.Settings(client=True, initial_values=told)
        self.client.initiate_connection()
        self.answers: dict[int, Answer] = {}
        self.order: list[tuple[int, int]] = []  # (stream, size) of each DATA frame that came
        self.acknowledges = True
        self.goaway: int | None = None
        self.exchange()

    def _wake(self) -> None:
        self.woken += 1

    def exchange(self, budget: int = ANY_BUDGET) -> None:
        """Carry bytes both ways until nobody has any more to say."""
        while True:
            self.http2.receive(self.client.data_to_send())
            self.grpc.process(budget)
            self.grpc.pull(1 << 30)
            output = self.http2.take_output()
            self.read(output)
            if not output and not self.grpc.has_input:
                return

    def read(self, output: bytes) -> None:
        """Let the client read."""
        for event in self.client.receive_data(output):
            stream = getattr(event, "stream_id", None)
            answer = self.answers.setdefault(stream, Answer()) if stream else Answer()
            if isinstance(event, h2.events.ResponseReceived):
                answer.headers = dict(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                answer.data += event.data
                self.order.append((stream, len(event.data)))
                if self.acknowledges:
                    self.client.acknowledge_received_data(event.flow_controlled_length, stream)
            elif isinstance(event, h2.events.TrailersReceived):
                answer.trailers = dict(event.headers)
            elif isinstance(event, h2.events.StreamEnded):
                answer.is_ended = True
            elif isinstance(event, h2.events.StreamReset):
                answer.reset = int(event.error_code)
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.goaway = int(event.error_code)

    def open(
        self,
        path: str = "/test.Test/Echo",
        *,
        end: bool = False,
        raw: Iterable[tuple[Any, Any]] = (),
        **headers: str,
    ) -> int:
        """Begin a call; underscores in names of headers stand for dashes. It returns the stream's number."""
        stream = self.client.get_next_available_stream_id()
        named = HEADERS | {":path": path} | {name.replace("_", "-"): text for name, text in headers.items()}
        listed = [(name, text) for name, text in named.items() if text is not None]
        listed.sort(key=lambda header: not header[0].startswith(":"))
        self.client.send_headers(stream, [*listed, *raw], end_stream=end)
        self.answers[stream] = Answer()
        return stream

    def send(self, stream: int, data: bytes = b"", *, end: bool = False) -> None:
        """Send DATA, in as many frames as it takes; all must fit into the windows."""
        while len(data) > 16_384:
            self.client.send_data(stream, data[:16_384])
            data = data[16_384:]
        self.client.send_data(stream, data, end_stream=end)

    def send_all(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send DATA as the windows open."""
        while data:
            room = min(self.client.local_flow_control_window(stream), 16_384, len(data))
            assert room > 0, "the window never opens"
            part, data = data[:room], data[room:]
            self.client.send_data(stream, part, end_stream=end and not data)
            self.exchange()

    def call(self, path: str, *messages: bytes, **headers: str) -> Answer:
        """Make a whole call."""
        stream = self.open(path, **headers)
        self.send(stream, framed(*messages), end=True)
        self.exchange()
        return self.answers[stream]

    def window(self, stream: int) -> int:
        """How many bytes the client may still send on a stream."""
        return self.client.local_flow_control_window(stream)
