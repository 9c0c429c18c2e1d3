"""Connections on real sockets and on fake transports: turns, bounds in time and number, and how they end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import h2.config
import h2.connection
import pytest
import structlog
from tests.transport.grpc_memory import HEADERS, framed
from tests.transport.grpc_server import LOOPS, Client, Server
from tests.transport.grpc_service import ASK, make_service

from cellstream.settings import Settings
from cellstream.transport.call import Code, Why
from cellstream.transport.grpc import ENDS_TURN_MAX
from cellstream.transport.listener import (
    LINGER_BYTES_MAX,
    TURN_SHARE,
    TURN_WRITES_MAX,
    UNREAD_OUTPUT_BYTES_MAX,
    Listener,
    _Connection,
)
from cellstream.transport.sockets import bind

NO_ERROR, PROTOCOL_ERROR, ENHANCE_YOUR_CALM = 0, 1, 11  # RFC 9113, section 7


@pytest.fixture(params=LOOPS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A running server with default settings, on each event loop."""
    with Server(request.param) as server:
        yield server


def read_to_end(connected: socket.socket) -> bytes:
    """Return all that comes until the server closes."""
    pieces = []
    while piece := connected.recv(65_536):
        pieces.append(piece)
    return b"".join(pieces)


class TestBeginning:
    """From accepting to the first call."""

    def test_a_call_is_served(self, server: Server) -> None:
        with server.client() as client:
            stream = client.open(data=framed(b"x"), end=True)
            client.until(lambda: client.answers[stream].is_ended)
            assert client.answers[stream].messages == [b"x"]
            assert server.listener.connections == 1
        server.until(lambda: server.listener.connections == 0)
        assert server.listener.calls == 0

    def test_small_writes_are_not_held_back(self, server: Server) -> None:
        """By Nagle's algorithm, which waits for acknowledgements that clients delay."""
        with server.client() as client:
            client.open(data=framed(b"x"))
            client.until(lambda: client.answers[1].messages)

            def no_delay() -> int:
                (connection,) = server.listener._connections
                found = connection._transport.get_extra_info("socket")
                return int(found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

            assert server.call(no_delay)

    @pytest.mark.parametrize("loop", LOOPS)
    def test_a_unix_socket_is_served_and_removed(self, loop: str, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with Server(loop, host=f"unix:{path}") as server:
            assert server.listener.port == 0
            with grpc.insecure_channel(server.target) as channel:
                assert channel.unary_unary("/test.Test/Unary")(b"x") == b"x"
            assert server.log.calls[0].peer.address == "unix:"
        assert not path.exists()

    def test_the_peer_is_who_connected(self, server: Server) -> None:
        with server.client() as client:
            client.open(data=framed(b"x"))
            client.until(lambda: client.answers[1].messages)
            host, port = client.socket.getsockname()
        assert server.log.calls[0].peer.address == f"{host}:{port}"
        assert server.log.calls[0].peer.identity is None

    @pytest.mark.parametrize("said", [b"", b"PRI * HTTP/2.0\r\n"])
    def test_a_slow_preface_ends_the_connection(self, said: bytes) -> None:
        """Slowloris."""
        with Server(handshake_seconds=0.1) as server, server.connect() as connected:
            connected.sendall(said)
            read_to_end(connected)
            assert server.ended == {"preface": 1}

    @pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", bytes(100)])
    def test_what_is_no_http2_hears_so_and_is_ended(self, server: Server, said: bytes) -> None:
        with server.connect() as connected:
            connected.sendall(said)
            told = read_to_end(connected)
        assert told[-17 + 3 :][:1] == b"\7" or b"\0\0\0\1" in told  # GOAWAY with PROTOCOL_ERROR
        assert server.ended == {"protocol_error": 1}

    def test_beyond_connections_max_a_connection_is_closed(self) -> None:
        with Server(connections_max=1) as server, server.client() as client:
            client.open(data=framed(b"x"))
            client.until(lambda: client.answers[1].messages)
            with server.connect() as refused, suppress(ConnectionResetError):
                assert refused.recv(1) == b""
            assert server.ended == {"connections_max": 1}
            client.send(1, framed(b"y"))
            client.until(lambda: len(client.answers[1].messages) == 2)

    def test_a_flood_is_told_to_calm_down(self) -> None:
        with Server(resets_burst=10, resets_per_second=0.001) as server, server.client() as client:
            for _ in range(20):
                stream = client.open()
                client.http2.reset_stream(stream)
            client.socket.sendall(client.http2.data_to_send())
            client.until(lambda: client.goaways)
            assert int(client.goaways[0].error_code) == ENHANCE_YOUR_CALM
            assert server.ended == {"calm_down": 1}


class TestLiving:
    """Silent peers, peers that do not read, and faults of ours."""

    def test_a_silent_peer_is_pinged_and_ended_without_an_answer(self) -> None:
        settings = {"handshake_seconds": 0.5, "keepalive_seconds": 0.1, "keepalive_timeout_seconds": 0.1}
        with Server(**settings) as server, server.connect() as connected:
            other = h2.connection.H2Connection()
            other.initiate_connection()
            connected.sendall(other.data_to_send())
            told = read_to_end(connected)
            assert b"\0\0\x08\x06\0\0\0\0\0" in told  # PING (RFC 9113, section 6.7)
            assert server.ended == {"keepalive": 1}

    def test_one_that_answers_stays(self) -> None:
        settings = {"handshake_seconds": 0.5, "keepalive_seconds": 0.05, "keepalive_timeout_seconds": 1}
        with Server(**settings) as server, server.client() as client:
            client.until(lambda: len(client.pings) == 2)
            assert server.ended == {}

    def test_handlers_of_a_lost_connection_hear_lost(self, server: Server) -> None:
        with server.client() as client:
            for _ in range(3):
                client.open("/test.Test/Silent", framed(b"x"))
            server.heard(lambda log: len(log.handlers) == 3)
        server.heard(lambda log: log.closed == [Why.LOST] * 3)
        server.until(lambda: server.listener.calls == 0)

    def test_a_peer_that_does_not_read_its_socket_is_ended(self) -> None:
        with Server(handshake_seconds=0.5, stall_seconds_max=0.2) as server, server.connect() as connected:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client = Client(connected)
            client.http2.increment_flow_control_window(1 << 30)
            stream = client.open("/test.Test/Endless", framed(ASK.pack(1, 100_000)))
            client.http2.increment_flow_control_window(1 << 30, stream)
            client.flush()
            server.heard(lambda log: log.closed == [Why.LOST])
            assert server.ended == {"stalled": 1}

    def test_a_stream_whose_window_stays_shut_is_reset(self) -> None:
        with Server(handshake_seconds=0.5, stall_seconds_max=0.2) as server, server.connect() as connected:
            client = Client(connected, acknowledges=False)
            stalled = client.open("/test.Test/Endless", framed(ASK.pack(1, 1000)))
            client.until(lambda: client.answers[stalled].reset is not None)
            assert server.log.closed == [Why.LOST]
            assert server.ended == {"stalled_call": 1}
            client.http2.increment_flow_control_window(100_000)
            other = client.open(data=framed(b"x"))
            client.until(lambda: client.answers[other].messages == [b"x"])

    def test_a_mistake_of_ours_ends_its_connection_alone(self, server: Server) -> None:
        with structlog.testing.capture_logs() as logs, server.client() as good, server.client() as bad:
            good.open(data=framed(b"x"))
            good.until(lambda: good.answers[1].messages)
            bad.open(data=framed(b"x"))
            bad.until(lambda: bad.answers[1].messages)

            def spoil() -> None:
                port = bad.socket.getsockname()[1]
                for connection in server.listener._connections:
                    if connection._grpc.peer.address.endswith(f":{port}"):
                        connection._http2 = None  # type: ignore[assignment]

            server.call(spoil)
            bad.send(1, framed(b"secret"))
            with pytest.raises((ConnectionResetError, AssertionError)):
                bad.until(lambda: False)
            good.send(1, framed(b"y"))
            good.until(lambda: len(good.answers[1].messages) == 2)
            assert server.ended == {"mistake": 1}
            (told,) = [event for event in logs if event["event"] == "connection_broken"]
            assert told["error_id"]


class TestDrain:
    """Going away in order."""

    def test_goaway_comes_in_two_steps_and_open_calls_go_on(self, server: Server) -> None:
        """RFC 9113, section 6.8."""
        with server.client() as client:
            stream = client.open(data=framed(b"1"))
            client.until(lambda: client.answers[stream].messages)
            drained = server.start_drain(20)
            client.until(lambda: len(client.goaways) == 2)  # h2 answers the PING between them
            assert [event.last_stream_id for event in client.goaways] == [2**31 - 1, stream]
            assert {int(event.error_code) for event in client.goaways} == {NO_ERROR}
            client.send(stream, framed(b"2"), end=True)
            client.until_closed()
            assert client.answers[stream].messages == [b"1", b"2"]
            assert client.answers[stream].status == 0
        drained.result(20)

    def test_the_second_step_does_not_wait_for_a_peer_that_is_silent(self, server: Server) -> None:
        with server.connect() as connected:
            other = h2.connection.H2Connection()
            other.initiate_connection()
            connected.sendall(other.data_to_send())
            assert connected.recv(65_536)
            drained = server.start_drain(20)
            told = read_to_end(connected)
            assert told.count(b"\x07\0\0\0\0\0") == 2  # GOAWAY
        drained.result(20)

    def test_an_idle_drain_is_over_at_once_and_the_port_is_free(self, server: Server) -> None:
        server.start_drain(20).result(20)
        with pytest.raises(ConnectionRefusedError):
            server.connect()

    def test_new_connections_are_served_until_the_calls_are_over(self, server: Server) -> None:
        with server.client() as first:
            stream = first.open(data=framed(b"x"))
            first.until(lambda: first.answers[stream].messages)
            drained = server.start_drain(20)
            first.until(lambda: first.goaways)
            with server.client() as second:
                late = second.open("/test.Test/Unary", framed(b"y"), end=True)
                second.until(lambda: second.answers[late].is_ended)
                assert second.answers[late].status == 0
            first.send(stream, end=True)
            first.until_closed()
        drained.result(20)

    def test_calls_that_are_open_at_the_end_hear_unavailable(self, server: Server) -> None:
        with server.client() as client:
            stream = client.open("/test.Test/Silent", framed(b"x"))
            server.heard(lambda log: log.handlers)
            drained = server.start_drain(0)
            client.until_closed()
            assert client.answers[stream].status == Code.UNAVAILABLE
            assert server.log.closed == [Why.LOST]
        drained.result(20)

    def test_last_answers_survive_input_that_nobody_reads(self, server: Server) -> None:
        """To close a socket with unread input resets it, and what was sent before may be lost."""
        with server.client() as client:
            stream = client.open(data=framed(b"x"))
            client.until(lambda: client.answers[stream].messages)
            drained = server.start_drain(0)
            while b"grpc-status" not in client.socket.recv(65_536, socket.MSG_PEEK):
                pass  # it came, and is not read
            for _ in range(8):
                client.socket.sendall(framed(bytes(1000)))  # no frames: it is not looked at any more
            client.until_closed()
            assert client.answers[stream].status == Code.UNAVAILABLE
        drained.result(20)

    def test_what_is_discarded_has_a_bound(self, server: Server) -> None:
        with server.connect() as connected, pytest.raises((ConnectionResetError, BrokenPipeError)):
            connected.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(20 * LINGER_BYTES_MAX))


# ---------------------------------------------------------------- turns, on fake transports


class FakeTransport:
    """A transport that keeps what is written, for tests of turns."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.is_reading = True
        self.is_aborted = False

    def get_extra_info(self, name: str) -> Any:
        return {"peername": ("127.0.0.1", 1)}.get(name)

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


class Turns:
    """A listener whose connections have fake transports."""

    def __init__(self, **settings: Any) -> None:
        service, self.log = make_service()
        self.listener = Listener(Settings(port=0, **settings), service, bind("127.0.0.1", 0))

    async def connect(self) -> tuple[_Connection, FakeTransport, h2.connection.H2Connection]:
        """Return a connection that has been greeted."""
        connection, transport = _Connection(self.listener, asyncio.get_running_loop()), FakeTransport()
        connection.connection_made(transport)  # type: ignore[arg-type]
        client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        client.initiate_connection()
        client.increment_flow_control_window(1 << 24)
        connection.data_received(client.data_to_send())
        await asyncio.sleep(0)
        client.receive_data(b"".join(transport.writes))
        connection.data_received(client.data_to_send())
        await asyncio.sleep(0)
        transport.writes.clear()
        return connection, transport, client


@pytest.fixture
async def turns(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """Make `Turns`, drained at the end; no turn takes any time, unless a test says so."""
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    made: list[tuple[Turns, list[_Connection]]] = []

    async def make(**settings: Any) -> Turns:
        turns = Turns(**settings)
        await turns.listener.start()
        made.append((turns, []))
        return turns

    yield make
    for each, _ in made:
        for connection in tuple(each.listener._connections):
            connection.connection_lost(None)
        await each.listener.drain(0)


def calls(
    client: h2.connection.H2Connection, count: int, path: str = "/test.Test/Echo", *, end: bool = False
) -> bytes:
    """Return the bytes of so many calls with one message each: two frames a call."""
    named = sorted((HEADERS | {":path": path}).items(), key=lambda each: not each[0].startswith(":"))
    for _ in range(count):
        stream = client.get_next_available_stream_id()
        client.send_headers(stream, named)
        client.send_data(stream, framed(b"x"), end_stream=end)
    return client.data_to_send()


class TestTurns:
    """What one visit of the loop reads and writes."""

    async def test_the_answers_of_a_turn_are_one_write(self, turns: Any) -> None:
        each = await turns()
        connection, transport, client = await each.connect()
        connection.data_received(calls(client, 20))
        assert transport.writes == []
        await asyncio.sleep(0)
        assert len(transport.writes) == 1
        assert transport.writes[0].count(framed(b"x")) == 20

    async def test_flush_writes_now(self, turns: Any) -> None:
        each = await turns()
        connection, transport, client = await each.connect()
        connection.data_received(calls(client, 1))
        each.listener.flush()
        assert len(transport.writes) == 1
        await asyncio.sleep(0)
        assert len(transport.writes) == 1

    async def test_a_connection_that_spent_its_budget_waits_unread(self, turns: Any) -> None:
        each = await turns(connection_turn_frames_max=20)
        busy, busy_transport, busy_client = await each.connect()
        other, other_transport, other_client = await each.connect()
        busy.data_received(calls(busy_client, 100))
        assert len(each.log.received) <= 10
        assert not busy_transport.is_reading
        other.data_received(calls(other_client, 1))
        assert len(each.log.received) <= 11
        await asyncio.sleep(0)
        assert b"".join(other_transport.writes).count(framed(b"x")) == 1
        while not busy_transport.is_reading:
            before = len(each.log.received)
            await asyncio.sleep(0)
            assert len(each.log.received) - before <= 10
        assert len(each.log.received) == 101

    async def test_all_connections_together_have_a_budget(self, turns: Any) -> None:
        each = await turns(connection_turn_frames_max=20)
        connected = [await each.connect() for _ in range(3 * TURN_SHARE)]
        for connection, _, client in connected:
            connection.data_received(calls(client, 10))
        assert len(each.log.received) <= 10 * TURN_SHARE
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(each.log.received) == 10 * len(connected)

    async def test_a_connection_has_its_share_of_a_turns_time_and_all_have_one(
        self, turns: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However few frames it sends: what a call costs has no price beforehand."""
        now = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: now)
        each = await turns(step_milliseconds_max=40)  # 20 ms for all in a turn, 10 ms for each

        def take_four_milliseconds() -> None:
            nonlocal now
            now += 0.004

        connected = [await each.connect() for _ in range(3)]
        each.log.on_change.append(take_four_milliseconds)  # when it is made, hears a message, and ends
        taken = []
        for connection, _, client in connected:
            before = len(each.log.received)
            connection.data_received(calls(client, 10, "/test.Test/Unary", end=True))
            taken.append(len(each.log.received) - before)
        assert taken == [1, 1, 0]
        assert [transport.is_reading for _, transport, _ in connected] == [False] * 3
        turns_taken = 0
        while not all(transport.is_reading for _, transport, _ in connected):
            before = len(each.log.received)
            await asyncio.sleep(0)
            assert len(each.log.received) - before <= 2
            turns_taken += 1
        assert len(each.log.received) == 30
        assert turns_taken >= 14

    async def test_a_drain_ends_calls_in_slices(self, turns: Any) -> None:
        each = await turns()
        connection, _, client = await each.connect()
        count = 2 * ENDS_TURN_MAX + 10
        connection.data_received(calls(client, count))
        for _ in range(count):
            await asyncio.sleep(0)
        assert len(each.log.received) == count
        draining = asyncio.ensure_future(each.listener.drain(0))
        ended = [0]
        while ended[-1] < count:
            await asyncio.sleep(0)
            ended.append(len(each.log.closed))
        connection.connection_lost(None)
        await draining
        assert max(after - before for before, after in pairwise(ended)) <= ENDS_TURN_MAX
        assert set(each.log.closed) == {Why.LOST}

    async def test_nothing_is_pulled_while_the_transport_is_full(self, turns: Any) -> None:
        each = await turns()
        connection, transport, client = await each.connect()
        connection.pause_writing()
        connection.data_received(calls(client, 3))
        await asyncio.sleep(0)
        assert transport.writes == []
        assert [len(handler.out) for handler in each.log.handlers] == [1, 1, 1]
        connection.resume_writing()
        await asyncio.sleep(0)
        assert len(transport.writes) == 1

    async def test_one_that_leaves_its_acknowledgements_unread_is_not_read(self, turns: Any) -> None:
        each = await turns()
        connection, transport, client = await each.connect()
        connection.pause_writing()
        while transport.is_reading:
            connection.data_received(calls(client, 50, "/test.Test/Nope"))
            assert connection._http2.output_bytes < 2 * UNREAD_OUTPUT_BYTES_MAX
        connection.resume_writing()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert transport.is_reading

    async def test_a_turn_writes_no_more_than_its_bound(self, turns: Any) -> None:
        each = await turns()
        connection, transport, client = await each.connect()
        named = sorted((HEADERS | {":path": "/test.Test/Endless"}).items(), key=lambda x: x[0][0] != ":")
        client.send_headers(1, named)
        client.send_data(1, framed(ASK.pack(1, 1000)))
        client.increment_flow_control_window(1 << 24, 1)
        connection.data_received(client.data_to_send())
        await asyncio.sleep(0)
        assert len(transport.writes) == TURN_WRITES_MAX
        first = sum(map(len, transport.writes))
        await asyncio.sleep(0)
        assert sum(map(len, transport.writes)) > first
        assert max(map(len, transport.writes)) <= (64 << 10) + 16_384 + 9
