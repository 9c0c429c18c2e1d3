"""A small HTTP/1.1 server for pages that a program reads: `/metrics`, `/healthz`.

Knows connections, their order and their time limits; `http1_requests` reads, the pages are given. It knows
nothing of what a page says. Everything runs on the event loop, so a page is made at once, and pages get at
most half of the loop's time. A connection is in one of four states:

    WAITING     no whole request has come; reading, under a time limit
    READY       a request waits for its turn; what comes behind it (pipelining) waits too
    WRITING     an answer is not yet taken by the kernel; under a time limit
    LINGERING   the last answer is sent; input is discarded for a moment, because closing on unread input
                resets TCP and can destroy that answer

A page that is a stream (server-sent events) would stay in WRITING, and write more at `resume_writing`.
"""

from __future__ import annotations

import asyncio
import enum
import gzip
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import cast

import structlog

from cellstream.settings import Settings
from cellstream.transport import sockets as addresses
from cellstream.transport.http1_requests import Request, RequestReader, RequestRefused

log = structlog.get_logger(__name__)

BACKLOG = 128
"""Connections that the kernel holds until they are accepted; Linux's limit was this for decades."""

LINGER_SECONDS = 1.0
"""How long input is discarded after the last answer: a few round trips around the world."""

LINGER_BYTES_MAX = 1 << 20
"""Bytes of input that are discarded so; who still sends is not reading our answer."""

GZIP_BYTES_MIN = 1400
"""Bodies from this size are compressed if the client allows; a smaller one fits into one packet."""

GZIP_LEVEL = 1
"""The event loop waits for it: a tenth of the time of the default level, for a page a sixth of its size."""

_ALLOWED = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Page:
    """One answer.

    Attributes:
        status: Of HTTP, 200 to 599.
        content_type: What the body is.
        body: May be empty.
        headers: More headers, name and value.
    """

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


Pages = Mapping[str, Callable[[str, Mapping[str, str]], Page]]
"""By path; called with the query string and the request's headers by lower-case name. Must return at once."""


class PageServer:
    """Serves pages on bound sockets.

    Args:
        settings: Of them, those that begin with `metrics_`.
        pages: What is served.
        sockets: Bound, not yet listening; the server owns and closes them.

    Attributes:
        port: The port of the first socket; 0 for a Unix socket.
        empty: Set while there is no connection.
    """

    def __init__(self, settings: Settings, pages: Pages, sockets: list[socket.socket]) -> None:
        self.settings = settings
        self._pages = pages
        self._sockets = sockets
        self._servers: list[asyncio.Server] = []
        self._connections: set[_Connection] = set()
        self._waiting: dict[_Connection, None] = {}  # in WAITING, the longest waiting first
        self._ready: dict[_Connection, None] = {}  # in READY, the first to be answered first
        self._turn: asyncio.Handle | None = None
        self.empty = asyncio.Event()
        self.empty.set()
        self.port = 0 if sockets[0].family == socket.AF_UNIX else int(sockets[0].getsockname()[1])

    def __repr__(self) -> str:
        return f"<PageServer on port {self.port}: {len(self._connections)} connections>"

    async def start(self) -> None:
        """Listen.

        Raises:
            PortInUse: A server that was started at the same time has the port.
        """
        loop = asyncio.get_running_loop()
        addresses.listen(self._sockets, "metrics_port")
        for listening in self._sockets:
            create = loop.create_unix_server if listening.family == socket.AF_UNIX else loop.create_server
            self._servers.append(await create(lambda: _Connection(self), sock=listening, backlog=BACKLOG))

    async def close(self) -> None:
        """Stop listening, let answers that are on their way go out within LINGER_SECONDS, and close."""
        for server in self._servers:
            server.close()
        for listening in self._sockets:
            listening.close()
        for connection in tuple(self._connections):
            connection.finish()
        try:
            await asyncio.wait_for(self.empty.wait(), LINGER_SECONDS)
        except TimeoutError:
            for connection in tuple(self._connections):
                connection.drop()
        if self._turn is not None:
            self._turn.cancel()

    # ------------------------------------------------------------ what connections tell

    def admit(self, connection: _Connection) -> bool:
        """Count a new connection; return False if there is no room.

        At the bound, the connection that has waited longest without a whole request makes room. So clients
        that connect and say nothing, or say it slowly, never keep out one that asks at once.
        """
        if len(self._connections) >= self.settings.metrics_connections_max:
            if not self._waiting:
                return False
            next(iter(self._waiting)).drop()
        self._connections.add(connection)
        self.empty.clear()
        return True

    def forget(self, connection: _Connection) -> None:
        """Count a connection no more."""
        self._connections.discard(connection)
        self._waiting.pop(connection, None)
        self._ready.pop(connection, None)
        if not self._connections:
            self.empty.set()

    def set_waiting(self, connection: _Connection, waiting: bool) -> None:
        """Note whether a connection waits for a whole request."""
        self._waiting.pop(connection, None)
        if waiting:
            self._waiting[connection] = None

    def enqueue(self, connection: _Connection) -> None:
        """Have a connection's request answered in its turn."""
        self._ready[connection] = None
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._answer_one)

    def make_page(self, request: Request) -> Page:
        """Make the answer to a request; a page that raises is a 500."""
        if request.method not in _ALLOWED:
            return make_error_page(405, "Only GET and HEAD are allowed.", (("Allow", ", ".join(_ALLOWED)),))
        make = self._pages.get(request.path)
        if make is None:
            return make_error_page(404, f"There are: {', '.join(self._pages)}.")
        try:
            return make(request.query, request.headers)
        except Exception:
            log.exception("page_failed", path=request.path)
            return make_error_page(500, "The server's log says more.")

    def _answer_one(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        connection = next(iter(self._ready), None)
        if connection is not None:
            del self._ready[connection]
            try:
                connection.answer()
            except Exception:
                log.exception("answer_failed")
                connection.drop()
        self._turn = None
        if self._ready:
            # Whoever asks for page after page gets at most half of the loop's time; feeds have the rest.
            self._turn = loop.call_later(loop.time() - began, self._answer_one)


class _State(enum.Enum):
    WAITING = enum.auto()
    READY = enum.auto()
    WRITING = enum.auto()
    LINGERING = enum.auto()
    CLOSED = enum.auto()


class _Connection(asyncio.Protocol):
    """One connection; see the module for its states."""

    def __init__(self, server: PageServer) -> None:
        self._server = server
        self._settings = server.settings
        self._reader = RequestReader(server.settings.metrics_head_bytes_max)
        self._state = _State.WAITING
        self._transport: asyncio.Transport
        self._request: Request | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._request_timed = False  # the timer runs for a request that has begun
        self._last = False  # after the answer that is being written, the connection ends
        self._half_closed = False
        self._writing_paused = False
        self._discarded_bytes = 0

    def __repr__(self) -> str:
        return f"<_Connection {self._state.name}: {self._reader!r}>"

    # ------------------------------------------------------------ what the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)  # so that `resume_writing` means: all is written
        if not self._server.admit(self):
            self.drop()
            return
        self._server.set_waiting(self, True)
        self._time_request()

    def data_received(self, data: bytes) -> None:
        if self._state is _State.LINGERING:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > LINGER_BYTES_MAX:
                self.drop()
        elif self._state is _State.WAITING:
            self._reader.feed(data)
            self._advance()
        elif self._state is not _State.CLOSED:
            self._reader.feed(data)  # requests that came before their turn: one read of them, no more
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._half_closed = True
        if self._state in (_State.WAITING, _State.LINGERING):
            self._close()
        return True  # what was asked before is still answered

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._state is _State.WRITING:
            self._written()

    def connection_lost(self, error: Exception | None) -> None:
        # A client that resets is no event of ours: nothing is lost but its answer.
        self._set_closed()

    # ------------------------------------------------------------ what the server tells

    def answer(self) -> None:
        """Answer the request whose turn it is."""
        request, self._request = self._request, None
        assert request is not None
        self._last = self._last or not request.keep_alive
        self._write(compress(self._server.make_page(request), request.headers), request)

    def finish(self) -> None:
        """End the connection once the answer that it waits for is written."""
        self._last = True
        if self._state is _State.WAITING:
            self._close()

    def drop(self) -> None:
        """End the connection now."""
        self._set_closed()
        self._transport.abort()

    # ------------------------------------------------------------ the way through the states

    def _advance(self) -> None:
        """In WAITING: go on to READY if a request is whole, or see to it that one comes in time."""
        try:
            self._request = self._reader.next_request()
        except RequestRefused as refused:
            self._refuse(refused.status, refused.why)
            return
        if self._request is not None:
            self._state = _State.READY
            self._set_timer(None)
            self._server.set_waiting(self, False)
            self._server.enqueue(self)
        elif self._half_closed:
            self._close()
        elif self._reader.in_request:
            self._time_request()
        else:
            self._request_timed = False
            self._set_timer(self._settings.metrics_idle_seconds)

    def _refuse(self, status: int, why: str) -> None:
        self._last = True
        self._server.set_waiting(self, False)
        self._write(make_error_page(status, why), None)

    def _write(self, page: Page, request: Request | None) -> None:
        self._state = _State.WRITING
        self._set_timer(self._settings.metrics_request_seconds)
        self._transport.write(render_page(page, request, last=self._last))
        if not self._writing_paused and self._state is _State.WRITING:
            self._written()

    def _written(self) -> None:
        self._set_timer(None)
        if self._last:
            self._linger()
            return
        self._state = _State.WAITING
        self._request_timed = False
        self._server.set_waiting(self, True)
        self._advance()
        if self._state is _State.WAITING:
            self._transport.resume_reading()

    def _linger(self) -> None:
        if self._half_closed:
            self._close()
            return
        self._state = _State.LINGERING
        self._set_timer(LINGER_SECONDS)
        self._transport.resume_reading()
        try:
            self._transport.write_eof()
        except OSError:  # the client has gone; asyncio, unlike uvloop, says so here
            self.drop()

    def _close(self) -> None:
        self._set_closed()
        self._transport.close()

    def _set_closed(self) -> None:
        self._state = _State.CLOSED
        self._set_timer(None)
        self._server.forget(self)

    # ------------------------------------------------------------ time

    def _time_request(self) -> None:
        """Limit the time until a request is whole, from its first byte or the connection's beginning."""
        if not self._request_timed:
            self._set_timer(self._settings.metrics_request_seconds)
            self._request_timed = True

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = (
            None if seconds is None else asyncio.get_running_loop().call_later(seconds, self._time_out)
        )

    def _time_out(self) -> None:
        if self._state is _State.WAITING and self._reader.in_request:
            self._refuse(408, "The request took too long.")
        elif self._state is _State.WAITING:
            self._close()
        else:
            self.drop()  # who does not read its answer gets no further one


def make_error_page(status: int, why: str, headers: tuple[tuple[str, str], ...] = ()) -> Page:
    """Make the page that says in plain text why there is no other."""
    text = f"{status} {HTTPStatus(status).phrase}. {why}\n"
    return Page(status, "text/plain; charset=utf-8", text.encode(), headers)


def compress(page: Page, headers: Mapping[str, str]) -> Page:
    """Compress a page's body if it is large and the request's headers allow gzip."""
    if len(page.body) < GZIP_BYTES_MIN:
        return page
    more = (*page.headers, ("Vary", "Accept-Encoding"))
    if not _takes_gzip(headers.get("accept-encoding", "")):
        return Page(page.status, page.content_type, page.body, more)
    body = gzip.compress(page.body, GZIP_LEVEL, mtime=0)
    return Page(page.status, page.content_type, body, (*more, ("Content-Encoding", "gzip")))


def _takes_gzip(accept_encoding: str) -> bool:
    """Read Accept-Encoding: `gzip` in any case, and not with a weight of 0 (RFC 9110, section 12.5.3)."""
    for offered in accept_encoding.lower().split(","):
        coding, _, weight = offered.replace(" ", "").partition(";")
        if coding == "gzip":
            return weight.partition("=")[2].strip("0.") != "" or not weight
    return False


def render_page(page: Page, request: Request | None, *, last: bool) -> bytes:
    """Write out an answer: the status line, the headers and, unless HEAD asked, the body.

    Args:
        page: What to answer.
        request: What was asked; None: it could not be read.
        last: Whether the connection ends after it.
    """
    headers = [
        ("Date", formatdate(usegmt=True)),
        ("Content-Type", page.content_type),
        ("Content-Length", str(len(page.body))),
        ("Cache-Control", "no-store"),
        *page.headers,
    ]
    if last:
        headers.append(("Connection", "close"))
    elif request is not None and request.minor == 0:
        headers.append(("Connection", "keep-alive"))
    lines = [f"HTTP/1.1 {page.status} {HTTPStatus(page.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    head = "\r\n".join((*lines, "", "")).encode("latin-1")
    return head if request is not None and request.method == "HEAD" else head + page.body
