"""The pages' server as programs meet it: over real sockets, on asyncio's loop and on uvloop's."""

import asyncio
import gzip
import http.client
import io
import logging
import queue
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop

from cellstream.settings import Settings
from cellstream.transport.http1 import Page, PageServer

LARGE = bytes(range(256)) * 65_536  # 16 MiB: more than any socket's buffers take


class Running:
    """A server on a loop and a thread of its own; tests talk to it as any program would.

    Attributes:
        asked: The paths and queries asked for, in order, each put when its page is made.
        gate: What the page `/gate` waits for, and the whole loop with it.
        faults: What was told to the loop's exception handler.
    """

    def __init__(
        self, new_loop: Callable[[], asyncio.AbstractEventLoop], sockets: list[socket.socket], **settings: Any
    ) -> None:
        self.asked: queue.Queue[str] = queue.Queue()
        self.gate = threading.Event()
        self.faults: list[dict[str, Any]] = []
        self.loop = new_loop()
        self.loop.set_exception_handler(lambda loop, context: self.faults.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.sockets = sockets
        self.server = PageServer(Settings(**settings), self._pages(), sockets)
        self.run(self.server.start())

    def _pages(self) -> Mapping[str, Callable[[str, Mapping[str, str]], Page]]:
        def make(path: str, body: bytes, status: int = 200) -> Callable[[str, Mapping[str, str]], Page]:
            def page(query: str, headers: Mapping[str, str]) -> Page:
                self.asked.put(f"{path}?{query}" if query else path)
                told = f"{query} {headers.get('x', '')}".encode() if path == "/echo" else body
                return Page(status, "text/plain", told)

            return page

        def gate(query: str, headers: Mapping[str, str]) -> Page:
            self.asked.put("/gate")
            self.gate.wait(30)
            return Page(200, "text/plain", b"")

        def broken(query: str, headers: Mapping[str, str]) -> Page:
            raise RuntimeError("the page is broken")

        return {
            "/echo": make("/echo", b""),
            "/away": make("/away", b"DRAINING\n", 503),
            "/long": make("/long", b"all the same " * 1000),
            "/large": make("/large", LARGE),
            "/gate": gate,
            "/broken": broken,
        }

    def run(self, coroutine: Any) -> Any:
        """The result of a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def connect(self) -> socket.socket:
        """A new connection."""
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=30)

    def client(self) -> http.client.HTTPConnection:
        """Python's own client."""
        return http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)

    def stop(self) -> None:
        """Close the server, then its loop."""
        self.run(self.server.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        self.loop.close()


def bound(port: int = 0) -> socket.socket:
    """A socket of this machine, on any free port unless told, not listening."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made


Start = Callable[..., Running]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts a server with these settings; at the end it is closed, and nothing was told to its loop."""
    started: list[Running] = []

    def start(sockets: list[socket.socket] | None = None, **settings: Any) -> Running:
        started.append(Running(request.param, sockets or [bound()], **settings))
        return started[-1]

    yield start
    for running in started:
        running.stop()
        assert running.faults == []
        assert repr(running.server) == f"<PageServer on port {running.server.port}: 0 connections>"


def get(target: str, *headers: str, version: str = "1.1") -> bytes:
    """A GET as bytes."""
    return "\r\n".join((f"GET {target} HTTP/{version}", "Host: here", *headers, "", "")).encode()


def read_all(connection: socket.socket) -> bytes:
    """All that comes until the server closes; a reset is an end too."""
    received = b""
    try:
        while more := connection.recv(65_536):
            received += more
    except ConnectionResetError:
        pass
    return received


class Pipelined(io.BufferedReader):
    """A connection with several answers at once; Python's own client would lose what it read ahead."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(socket.SocketIO(connection, "r"))

    def makefile(self, mode: str) -> io.BufferedReader:
        """Itself, for every answer."""
        return self

    def close(self) -> None:
        """Nothing; called at the end of each answer."""


def read_answer(
    connection: socket.socket | Pipelined, method: str = "GET"
) -> tuple[int, bytes, dict[str, str]]:
    """One answer, parsed by Python's own client: status, body, headers by lower-case name."""
    answer = http.client.HTTPResponse(connection, method=method)  # type: ignore[arg-type]
    answer.begin()
    body = answer.read()
    return answer.status, body, {name.lower(): value for name, value in answer.getheaders()}


# ---------------------------------------------------------------- answers


def test_pages_one_after_the_other_on_one_connection(start: Start) -> None:
    """A scraper keeps its connection for days."""
    client = start().client()
    for number in range(3):
        client.request("GET", f"/echo?{number}", headers={"X": "seen"})
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (200, f"{number} seen".encode())
        assert (answer.getheader("Content-Type"), answer.getheader("Connection")) == ("text/plain", None)
        assert client.sock is not None
    client.close()


def test_head_is_get_without_a_body(start: Start) -> None:
    """RFC 9110, section 9.3.2; load balancers ask so whether a server is there."""
    running = start()
    with running.connect() as connection:
        answers = []
        for method in ("GET", "HEAD"):
            connection.sendall(get("/long").replace(b"GET", method.encode()))
            answers.append(read_answer(connection, method))
    (_, body, headers), (status, nothing, same) = answers
    assert (status, nothing) == (200, b"")
    assert {**headers, "date": ""} == {**same, "date": ""}
    assert int(same["content-length"]) == len(body)


def test_the_status_is_the_pages_own(start: Start) -> None:
    """`/healthz` of a server that is going away."""
    with start().connect() as connection:
        connection.sendall(get("/away"))
        assert read_answer(connection)[:2] == (503, b"DRAINING\n")


def test_other_paths_and_methods_are_refused_and_the_connection_stays(start: Start) -> None:
    """A wrong path in a scraper's configuration should be seen, not work by accident."""
    with start().connect() as connection:
        connection.sendall(get("/"))
        status, body, _ = read_answer(connection)
        assert status == 404
        assert b"/echo" in body
        for method in (b"POST", b"OPTIONS", b"PATCH"):
            connection.sendall(method + get("/echo", "Content-Length: 5")[3:] + b"hello")
            status, _, headers = read_answer(connection)
            assert (status, headers["allow"]) == (405, "GET, HEAD")
        connection.sendall(get("/echo?1"))
        assert read_answer(connection)[0] == 200


def test_a_page_that_raises_is_a_500_and_logged(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    """One broken page must not take the others with it; why it broke is for the log only."""
    with start().connect() as connection:
        connection.sendall(get("/broken"))
        status, body, _ = read_answer(connection)
        assert status == 500
        assert b"the page is broken" not in body
        connection.sendall(get("/echo"))
        assert read_answer(connection)[0] == 200
    assert "the page is broken" in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("version", "headers", "stays"),
    [
        ("1.1", (), True),
        ("1.1", ("Connection: close",), False),
        ("1.0", (), False),
        ("1.0", ("Connection: keep-alive",), True),
    ],
)
def test_a_connection_stays_as_both_sides_said(
    start: Start, version: str, headers: tuple[str, ...], stays: bool
) -> None:
    """RFC 9112, section 9.3."""
    with start().connect() as connection:
        connection.sendall(get("/echo?1", *headers, version=version))
        told = read_answer(connection)[2].get("connection")
        if stays:
            assert told == (None if version == "1.1" else "keep-alive")
            connection.sendall(get("/echo?2", *headers, version=version))
            assert read_answer(connection)[0] == 200
        else:
            assert told == "close"
            assert read_all(connection) == b""


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("", False),
        ("gzip;q=0", False),
        ("gzip; q=0.0", False),
        ("identity", False),
    ],
)
def test_a_long_page_is_packed_for_who_takes_it(start: Start, accepted: str, packed: bool) -> None:
    """Prometheus does; a page of metrics is much the same word again and again."""
    with start().connect() as connection:
        connection.sendall(get("/long", f"Accept-Encoding: {accepted}"))
        _, body, headers = read_answer(connection)
        assert headers.get("content-encoding") == ("gzip" if packed else None)
        assert headers["vary"] == "Accept-Encoding"
        assert (gzip.decompress(body) if packed else body) == b"all the same " * 1000


def test_a_client_that_half_closes_gets_all_answers(start: Start) -> None:
    """As `nc` does at the end of its input."""
    with start().connect() as connection:
        connection.sendall(get("/echo?1") + get("/echo?2"))
        connection.shutdown(socket.SHUT_WR)
        received = read_all(connection)
    assert [body.partition(b"\r\n\r\n")[2] for body in received.split(b"HTTP/1.1 200 OK")[1:]] == [
        b"1 ",
        b"2 ",
    ]


def test_a_unix_socket_and_two_addresses(start: Start, tmp_path: Path) -> None:
    """`metrics_host` may be a path, or a name with two addresses; all are served by one server."""
    path = str(tmp_path / "socket")
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(path)
    running = start([bound(), unix])
    with socket.socket(socket.AF_UNIX) as connection, running.connect() as other:
        connection.connect(path)
        for each in (connection, other):
            each.sendall(get("/echo?1"))
            assert read_answer(each)[0] == 200


CURL = shutil.which("curl")


@pytest.mark.skipif(CURL is None, reason="curl is not installed")
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--http1.0",),
        ("--compressed",),
        ("--http2",),
        ("-H", "Connection: close"),
        ("--haproxy-protocol",),
    ],
)
def test_curl_is_content(start: Start, options: tuple[str, ...]) -> None:
    """Twice on one connection where it may; its `--http2` asks to upgrade, which we ignore as we may."""
    running = start()
    url = f"http://127.0.0.1:{running.server.port}/long"
    told = subprocess.run(
        [str(CURL), "-sS", "--fail", *options, url, url], capture_output=True, check=False, timeout=60
    )
    if options == ("--haproxy-protocol",):  # bytes before the request that are not HTTP
        assert b"400" in told.stderr
        return
    assert (told.returncode, told.stderr) == (0, b"")
    assert told.stdout == b"all the same " * 2000


# ---------------------------------------------------------------- order and bounds


def test_pipelined_requests_are_answered_in_order(start: Start) -> None:
    """RFC 9112, section 9.3.2; a wrong request among them ends it, after the answers before it."""
    with start().connect() as connection:
        connection.sendall(b"".join(get(f"/echo?{n}") for n in range(500)) + b"what\r\n\r\n" + get("/echo"))
        answers = Pipelined(connection)
        bodies = [read_answer(answers)[1] for _ in range(500)]
        assert bodies == [f"{n} ".encode() for n in range(500)]
        status, _, headers = read_answer(answers)
        assert (status, headers["connection"]) == (400, "close")
        assert answers.read() == b""


def test_other_connections_have_their_turn_between_pipelined_requests(start: Start) -> None:
    """One answer a turn: who asks hundreds of times at once keeps nobody waiting for all of them."""
    running = start()
    with running.connect() as greedy, running.connect() as modest:
        modest.sendall(get("/echo?first"))
        read_answer(modest)
        greedy.sendall(get("/gate") + b"".join(get(f"/echo?{n}") for n in range(300)))
        assert [running.asked.get(timeout=30) for _ in range(2)] == ["/echo?first", "/gate"]
        modest.sendall(get("/echo?modest"))
        running.gate.set()
        assert read_answer(modest)[0] == 200
        answers = Pipelined(greedy)
        bodies = [read_answer(answers)[1] for _ in range(301)]
        assert bodies == [b"", *(f"{n} ".encode() for n in range(300))]
        # The loop reads sockets between two answers; one or two of the other's may come first.
        assert "/echo?modest" in [running.asked.get(timeout=30) for _ in range(4)]


def test_a_client_that_does_not_read_is_not_served_on_and_then_closed(start: Start) -> None:
    """Otherwise each unread page stays in our memory, and its connection for ever."""
    running = start(metrics_request_seconds=0.2)
    with running.connect() as connection:
        connection.sendall(get("/large") * 100)
        with running.connect() as other:  # the stalled one harms nobody
            other.sendall(get("/echo"))
            assert read_answer(other)[0] == 200
        wait_until_empty(running)
        assert len(read_all(connection)) < len(LARGE)
    assert [running.asked.get_nowait() for _ in range(2)] == ["/large", "/echo"]
    assert running.asked.empty()


def wait_until_empty(running: Running) -> None:
    """Return once the server has no connection."""
    running.run(running.server.empty.wait())


def test_a_large_page_arrives_whole_at_a_reader(start: Start) -> None:
    """In many parts, with a close behind it."""
    with start().connect() as connection:
        connection.sendall(get("/large", "Connection: close"))
        assert read_answer(connection)[1] == LARGE


@pytest.mark.parametrize(
    ("sent", "status"), [(b"", None), (b"G", 408), (get("/echo")[:-1], 408), (get("/echo")[:-2], 408)]
)
def test_a_request_that_does_not_end_is_given_up(start: Start, sent: bytes, status: int | None) -> None:
    """A port scanner, or a client whose network is gone; who said nothing is told nothing."""
    with start(metrics_request_seconds=0.1).connect() as connection:
        connection.sendall(sent)
        received = read_all(connection)
    assert received.startswith(f"HTTP/1.1 {status} ".encode() if status else b"")
    assert bool(received) == bool(status)


@pytest.mark.parametrize("served_before", [False, True])
def test_a_byte_at_a_time_gives_no_more_time(start: Start, served_before: bool) -> None:
    """Slowloris: each byte came before any limit on silence. The limit is on the whole request."""
    with start(metrics_request_seconds=0.3).connect() as connection:
        if served_before:
            connection.sendall(get("/echo"))
            read_answer(connection)
        connection.sendall(get("/echo")[:-2])
        connection.settimeout(0.02)
        while True:  # ends with the server's answer, or by pytest's own limit
            try:
                received = connection.recv(100)
                break
            except TimeoutError:
                connection.sendall(b"a")
    assert received.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_does_not_come_is_given_up(start: Start) -> None:
    """It is discarded, and its time limited like a head's."""
    with start(metrics_request_seconds=0.1).connect() as connection:
        connection.sendall(get("/echo", "Content-Length: 5") + b"hell")
        answers = Pipelined(connection)
        assert [read_answer(answers)[0] for _ in range(2)] == [200, 408]
        assert answers.read() == b""


def test_an_idle_connection_is_closed_after_its_own_limit(start: Start) -> None:
    """Between two scrapes there may be a minute; the limit of a request does not count there."""
    running = start(metrics_request_seconds=30.0, metrics_idle_seconds=0.1)
    with running.connect() as connection:
        connection.sendall(get("/echo"))
        assert read_answer(connection)[0] == 200
        assert read_all(connection) == b""


def test_silent_connections_make_room_for_one_that_asks(start: Start) -> None:
    """Whoever fills the bound with silence keeps no scraper out; the longest silent goes first."""
    running = start(metrics_connections_max=3)
    with running.connect() as first, running.connect() as second, running.connect() as third:
        for silent in (first, second, third):  # accepted, and idle in this order
            silent.sendall(get("/echo"))
            read_answer(silent)
        first.sendall(get("/echo"))
        read_answer(first)  # so the second is silent longest
        with running.connect() as scraper:
            scraper.sendall(get("/echo"))
            assert read_answer(scraper)[0] == 200
            assert read_all(second) == b""
            for kept in (first, third):
                kept.sendall(get("/echo"))
                assert read_answer(kept)[0] == 200


def test_where_all_are_being_answered_a_further_one_is_refused(start: Start) -> None:
    """The bound is one: a connection costs a file descriptor and its buffers."""
    running = start(metrics_connections_max=1)
    with running.connect() as busy:
        busy.sendall(get("/large"))
        running.asked.get(timeout=30)
        with running.connect() as further:
            assert read_all(further) == b""
        assert read_answer(busy)[1] == LARGE


def test_headers_beyond_the_setting_are_refused(start: Start) -> None:
    """RFC 6585, section 5."""
    with start(metrics_head_bytes_max=200).connect() as connection:
        connection.sendall(get("/echo", "A: " + "b" * 200))
        assert read_answer(connection)[0] == 431
        assert read_all(connection) == b""


def test_a_refusal_arrives_though_the_client_sends_on(start: Start) -> None:
    """Closing on unread input resets the connection, and the answer is lost: so input is discarded first."""
    with start().connect() as connection:
        connection.sendall(get("/echo", "Content-Length: 500000") + bytes(500_000))
        assert read_answer(connection)[0] == 413
        assert read_all(connection) == b""


def test_who_sends_without_end_after_a_refusal_is_cut_off(start: Start) -> None:
    """The courtesy has a bound."""
    with start().connect() as connection:
        connection.sendall(b"what\r\n\r\n")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(bytes(1 << 30))


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET", get("/echo"), get("/large") * 3, get("/gate"), get("/gate", "Connection: close")],
    ids=["silent", "begun", "answered", "answering", "asked", "asked once"],
)
def test_a_reset_is_silent(
    start: Start, sent: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A scraper that times out resets; a traceback for each would fill the log."""
    running = start()
    with caplog.at_level(logging.WARNING):
        connection = running.connect()
        connection.sendall(sent)
        if sent.endswith(b"\r\n"):
            running.asked.get(timeout=30)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        running.gate.set()  # so `/gate` is answered to who has gone already
        wait_until_empty(running)
        with running.connect() as other:
            other.sendall(get("/echo"))
            assert read_answer(other)[0] == 200
    assert "".join(capfd.readouterr()) + caplog.text == ""


# ---------------------------------------------------------------- closing


def test_closing_frees_the_port_and_ends_idle_connections(start: Start) -> None:
    """A restarted server must find its port free."""
    running = start()
    with running.connect() as connection:
        connection.sendall(get("/echo"))
        read_answer(connection)
        running.run(running.server.close())
        assert read_all(connection) == b""
    with pytest.raises(ConnectionRefusedError):
        running.connect()
    bound(running.server.port).close()


def test_closing_lets_an_answer_go_out(start: Start) -> None:
    """The last scrape of a server that goes away is the one that tells how it went."""
    running = start()
    with running.connect() as connection:
        connection.sendall(get("/large"))
        running.asked.get(timeout=30)
        closing = asyncio.run_coroutine_threadsafe(running.server.close(), running.loop)
        assert read_answer(connection)[1] == LARGE
        assert read_all(connection) == b""
        closing.result(30)


def test_closing_does_not_wait_for_a_client_that_does_not_read(start: Start) -> None:
    """It is dropped after a moment; the test's end would otherwise be pytest's limit."""
    running = start(metrics_request_seconds=1000.0)
    with running.connect() as connection:
        connection.sendall(get("/large"))
        running.asked.get(timeout=30)
        running.run(running.server.close())
        assert len(read_all(connection)) < len(LARGE)
