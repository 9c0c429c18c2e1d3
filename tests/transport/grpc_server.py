"""A listener with the test service, in a thread with its own event loop, and raw clients of it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import h2.config
import h2.connection
import h2.events
import uvloop
from tests.transport.grpc_memory import HEADERS, Answer
from tests.transport.grpc_service import Log, make_service

from cellstream.settings import Settings
from cellstream.transport.listener import Listener
from cellstream.transport.sockets import bind

T = TypeVar("T")

PATIENCE_SECONDS = 20.0
"""After this a test fails that waits; none waits so long."""

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


class Server:
    """A running listener; a context that drains it.

    Args:
        loop: `uvloop` or `asyncio`.
        **settings: Of the server; `port` is any free one.
    """

    def __init__(self, loop: str = "uvloop", **settings: Any) -> None:
        self.settings = Settings(port=0, **settings)
        service, self.log = make_service()
        self.listener = Listener(self.settings, service, bind(self.settings.host, 0))
        self._new_loop = LOOPS[loop]
        self._started = threading.Event()
        self._changed = threading.Condition()
        self.log.on_change.append(self._notify)
        self._thread = threading.Thread(target=self._run)
        self._loop: asyncio.AbstractEventLoop
        self._is_drained = False

    @property
    def target(self) -> str:
        """The address, for grpcio."""
        host = self.settings.host
        return host if host.startswith("unix:") else f"{host}:{self.listener.port}"

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self._new_loop) as runner:
            self._loop = runner.get_loop()
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stopped = asyncio.Event()
        await self.listener.start()
        self._started.set()
        await self._stopped.wait()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(PATIENCE_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_drained:
            self.start_drain(0).result(PATIENCE_SECONDS)
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()

    def start_drain(self, seconds: float) -> Any:
        """Begin to drain; the result is a future of this thread's kind."""
        self._is_drained = True
        return asyncio.run_coroutine_threadsafe(self.listener.drain(seconds), self._loop)

    def call(self, what: Callable[[], T]) -> T:
        """Call something on the server's loop."""

        async def run() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(PATIENCE_SECONDS)

    def heard(self, is_so: Callable[[Log], object]) -> None:
        """Wait until the handlers heard something."""
        with self._changed:
            assert self._changed.wait_for(lambda: is_so(self.log), PATIENCE_SECONDS), self.log

    def until(self, is_so: Callable[[], object]) -> None:
        """Let the loop turn until something is so; for what nobody is told of."""

        async def turn() -> None:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not is_so():  # noqa: ASYNC110 - nobody is told of it
                    await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(turn(), self._loop).result(2 * PATIENCE_SECONDS)

    @property
    def ended(self) -> dict[str, int]:
        """What the listener ended, by cause; without those that there were none of."""
        return self.call(lambda: {cause: count for cause, count in self.listener.ended.items() if count})

    def connect(self) -> socket.socket:
        """Return a connected socket."""
        host = self.settings.host
        if host.startswith("unix:"):
            made = socket.socket(socket.AF_UNIX)
            made.settimeout(PATIENCE_SECONDS)
            made.connect(host.removeprefix("unix:"))
            return made
        return socket.create_connection((host, self.listener.port), PATIENCE_SECONDS)

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Return a client that has greeted."""
        with self.connect() as connected:
            yield Client(connected)

    @contextmanager
    def client_tls(self, context: ssl.SSLContext) -> Iterator[Client]:
        """Return a client that has greeted under TLS."""
        with context.wrap_socket(self.connect(), server_hostname="localhost") as connected:
            yield Client(connected)


class Client:
    """`h2` on a blocking socket.

    Args:
        connected: The socket.
        acknowledges: Whether it gives back windows as it reads.
    """

    def __init__(self, connected: socket.socket, *, acknowledges: bool = True) -> None:
        self.socket = connected
        self.http2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="latin-1")
        )
        self.http2.initiate_connection()
        self.acknowledges = acknowledges
        self.answers: dict[int, Answer] = {}
        self.goaways: list[h2.events.ConnectionTerminated] = []
        self.pings: list[bytes] = []
        self.is_closed = False
        self._unread = b""
        self.flush()

    def flush(self) -> None:
        """Send what there is."""
        self.socket.sendall(self.http2.data_to_send())

    def open(self, path: str = "/test.Test/Echo", data: bytes = b"", *, end: bool = False) -> int:
        """Begin a call and send data."""
        stream = self.http2.get_next_available_stream_id()
        named = HEADERS | {":path": path}
        self.http2.send_headers(stream, sorted(named.items(), key=lambda each: not each[0].startswith(":")))
        self.answers[stream] = Answer()
        if data or end:
            self.http2.send_data(stream, data, end_stream=end)
        self.flush()
        return stream

    def send(self, stream: int, data: bytes = b"", *, end: bool = False) -> None:
        """Send data."""
        self.http2.send_data(stream, data, end_stream=end)
        self.flush()

    def read(self) -> bool:
        """Read once; return whether anything came."""
        data = self.socket.recv(65_536)
        if not data:
            self.is_closed = True
            return False
        self._unread += data
        while len(self._unread) >= 9 and len(self._unread) >= (end := 9 + int.from_bytes(self._unread[:3])):
            frame, self._unread = self._unread[:end], self._unread[end:]
            for event in self.http2.receive_data(frame):
                self._take(event)
        self.flush()
        return True

    def until(self, is_so: Callable[[], object]) -> None:
        """Read until something is so."""
        while not is_so():
            assert self.read(), "the connection was closed"

    def until_closed(self) -> None:
        """Read to the end."""
        while not self.is_closed and self.read():
            pass

    def _take(self, event: Any) -> None:
        stream = getattr(event, "stream_id", None)
        answer = self.answers.setdefault(stream, Answer()) if stream else Answer()
        match event:
            case h2.events.ResponseReceived():
                answer.headers = dict(event.headers)
            case h2.events.DataReceived():
                answer.data += event.data
                if self.acknowledges:
                    self.http2.acknowledge_received_data(event.flow_controlled_length, stream)
            case h2.events.TrailersReceived():
                answer.trailers = dict(event.headers)
            case h2.events.StreamEnded():
                answer.is_ended = True
            case h2.events.StreamReset():
                answer.reset = int(event.error_code)
            case h2.events.ConnectionTerminated():
                self.goaways.append(event)
                # h2 takes the first for the end of everything, but RFC 9113, section 6.8, does not.
                self.http2.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN
            case h2.events.PingReceived():
                self.pings.append(event.ping_data)
