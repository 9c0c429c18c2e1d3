"""Connections on sockets: accepts them, reads and writes them in turns, and ends them.

It knows asyncio's transports (uvloop's above all), time, and when a connection has to go. It does not know
frames (`http2.py`) or calls (`grpc.py`); of TLS it knows when to go on with a handshake.

Rules:

1. A *turn* is one visit of the event loop to its sockets. What was read is parsed and dispatched at once;
   what there is to write leaves at the turn's end, one `write` for each connection, or earlier by `flush`.
2. In a turn a connection has a budget (`connection_turn_frames_max`) and a time, and so have all together.
   One that has spent either is not read until its rest is dispatched, in later turns and after all others
   had theirs.
3. At most `WRITE_BUFFER_BYTES` stay in asyncio's transport and as many in HTTP/2; what handlers have beyond
   that stays with them. A peer that does not read what we have to say is not read either.
4. A connection leaves in order: a last GOAWAY, all that is unsent, half-close, then what still comes is
   discarded until the peer has closed too, for `LINGER_SECONDS` at most. To close with unread input would
   reset the connection, and that can destroy the last answers on their way.
5. An exception in a connection's callback ends this connection alone.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import structlog

from cellstream.errors import InternalError
from cellstream.settings import Settings
from cellstream.transport import sockets as addresses
from cellstream.transport.call import Code, Peer, Service, Status
from cellstream.transport.frames import Code as ErrorCode
from cellstream.transport.grpc import ENDS_TURN_MAX, GrpcConnection, Timer, Totals
from cellstream.transport.http2 import Connection, ConnectionFailed, Event, PingAcknowledged
from cellstream.transport.tls import Certificates, TlsFailed, TlsSession, is_wanted

log = structlog.get_logger(__name__)

WRITE_BUFFER_BYTES = 64 << 10
"""Bytes that wait in a transport before no more are pulled: enough to keep a fast socket busy for a turn."""

TURN_WRITES_MAX = 4
"""Writes of one connection in a turn, of `WRITE_BUFFER_BYTES` and a little more each, so that a client that
reads fast does not hold the loop."""

UNREAD_OUTPUT_BYTES_MAX = 64 << 10
"""Bytes of acknowledgements and the like that a peer may leave unread before it is not read. Against: PING
and SETTINGS floods whose answers nobody reads (CVE-2019-9512, -9515)."""

TURN_SHARE = 4
"""All connections together have so many times one connection's budget in a turn."""

TURN_PART = 2
"""All connections together have this part of a call's target (`step_milliseconds_max`) for their input in a
turn, so that health answers as soon while clients ask for much as while the model computes."""

CONNECTION_PART = 2
"""And one connection has this part of what all have."""

HANDSHAKE_BYTES_MAX = 64 << 10
"""Bytes of a handshake that were not dealt with yet; a client's certificates take a few KiB."""

LINGER_SECONDS = 1.0
"""How long a connection that we have half-closed may stay."""

LINGER_BYTES_MAX = 4 << 20
"""Bytes that are discarded meanwhile."""

GOAWAY_SECONDS = 1.0
"""How long the first GOAWAY may take to the peer and back before the last one is sent (RFC 9113, 6.8)."""

_DRAIN_PING = b"draining"
_ALIVE_PING = b"alive???"


ENDED_CAUSES = (
    "connections_max",
    "handshake",  # TLS's failed, or was not done in time
    "preface",  # did not come in time
    "keepalive",  # a PING was not answered
    "stalled",  # nothing that we wrote was taken
    "stalled_call",  # one call, not its connection: what it had to be sent was not read
    "calm_down",  # a flood
    "protocol_error",
    "tls",  # a fault after the handshake
    "mistake",  # of ours
)
"""Why we end a connection."""


class Listener:
    """A server's connections.

    Args:
        settings: The bounds, and the files of TLS.
        service: What is served.
        sockets: Bound by `sockets.bind`.

    Attributes:
        port: Where it listens; 0 for a Unix socket.
        ended: How many connections we ended, by one of `ENDED_CAUSES`.

    Raises:
        SettingsInvalid: A file of TLS is not right.
    """

    loop_turns = 1  # between two calls of an engine: each turn of the loop reads every socket

    def __init__(self, settings: Settings, service: Service, sockets: list[socket.socket]) -> None:
        self.settings = settings
        self.ended = Counter(dict.fromkeys(ENDED_CAUSES, 0))
        self.port = 0 if sockets[0].family == socket.AF_UNIX else int(sockets[0].getsockname()[1])
        self.certificates = Certificates(settings) if is_wanted(settings) else None
        self.budget = self._budget_max = TURN_SHARE * settings.connection_turn_frames_max
        self.seconds_left = self.turn_seconds = settings.step_milliseconds_max / 1000 / TURN_PART
        self._sockets = sockets
        self._servers: list[asyncio.Server] = []
        self._connections: set[_Connection] = set()
        self._active: list[_Connection] = []  # something happened to them in this turn
        self._waiting: deque[_Connection] = deque()  # their input was more than a turn's budget
        self._handshakes: deque[_Connection] = deque()  # bytes of theirs wait for their turn
        self._is_armed = False
        self._is_over = False  # no connection is taken any more
        self._changed: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self.totals = Totals(settings, service, self._now, self._call_at, time.perf_counter)

    def __repr__(self) -> str:
        return f"<Listener on port {self.port}: {self.connections} connections, {self.calls} calls>"

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    @property
    def calls(self) -> int:
        """How many calls are open."""
        return self.totals.calls

    @property
    def buffered_bytes(self) -> int:
        """Bytes of messages that are not whole, or not applied beyond their streams' windows."""
        return self.totals.unfinished.size_bytes + self.totals.unfinished.whole_bytes

    async def start(self) -> None:
        """Listen.

        Raises:
            PortInUse: A server that was started at the same time has the port.
        """
        self._loop = loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self.totals.on_idle = self._changed.set
        addresses.listen(self._sockets)
        for bound in self._sockets:
            create: Any = loop.create_unix_server if bound.family == socket.AF_UNIX else loop.create_server
            self._servers.append(
                await create(lambda: _Connection(self, loop), sock=bound, backlog=addresses.BACKLOG)
            )

    def flush(self) -> None:
        """Write what there is to write, now; for an engine that has just settled its results."""
        for connection in self._active:
            connection.flush()

    async def drain(self, seconds: float) -> None:
        """Serve until no call is open or the time is over, then end every connection.

        New connections and calls are taken meanwhile: their handlers say that the server is going away.

        Args:
            seconds: For calls. Afterwards a connection has `LINGER_SECONDS` to take its last bytes.
        """
        before = tuple(self._connections)
        for connection in before:
            connection.start_drain()
        end = self._loop.time() + seconds
        await self._wait(lambda: not self.calls and all(c.is_last_goaway_sent for c in before), end)
        self._is_over = True
        for server in self._servers:
            server.close()
        text = "the server went away before the call was over."
        await self._end_calls(Status(Code.UNAVAILABLE, text))
        await self._wait(lambda: not self._connections, self._loop.time() + 2 * LINGER_SECONDS)
        for connection in tuple(self._connections):
            connection.abort()
        await self._wait(lambda: not self._connections, self._loop.time() + LINGER_SECONDS)
        for bound in self._sockets:
            bound.close()

    async def _end_calls(self, status: Status) -> None:
        """End all calls and let their connections go, in slices."""
        left = ENDS_TURN_MAX
        for connection in tuple(self._connections):
            while ended := connection.end_calls(status, left):
                left -= ended
                if left <= 0:
                    await asyncio.sleep(0)
                    left = ENDS_TURN_MAX
            connection.leave()
            left = max(1, left - 1)

    async def _wait(self, is_done: Callable[[], bool], end: float) -> None:
        """Wait until it is done, or the time is over."""
        while not is_done():
            self._changed.clear()
            try:
                async with asyncio.timeout_at(end):
                    await self._changed.wait()
            except TimeoutError:
                return

    def _now(self) -> float:
        return self._loop.time()

    def _call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        return self._loop.call_at(when, callback)

    # ------------------------------------------------------------ told by connections

    def add(self, connection: _Connection) -> bool:
        """Take a new connection; return whether there is room for it."""
        if self._is_over:
            return False
        if len(self._connections) >= self.settings.connections_max:
            self.ended["connections_max"] += 1
            return False
        self._connections.add(connection)
        return True

    def discard(self, connection: _Connection) -> None:
        """Forget a connection that is closed."""
        self._connections.discard(connection)
        self._changed.set()

    def changed(self) -> None:
        """Note that a drain may have come further."""
        self._changed.set()

    def activate(self, connection: _Connection) -> None:
        """Have a connection's output written at the end of the turn."""
        self._active.append(connection)
        self.arm()

    def wait(self, connection: _Connection) -> None:
        """Have the rest of a connection's input dispatched in later turns."""
        self._waiting.append(connection)
        self.arm()

    def wait_for_handshake(self, connection: _Connection) -> None:
        """Have a connection's handshake go on when it is its turn."""
        self._handshakes.append(connection)
        self.arm()

    def arm(self) -> None:
        """Have the turn end, and the next one begin."""
        if not self._is_armed:
            self._is_armed = True
            self._loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._is_armed = False
        active, self._active = self._active, []
        for connection in active:
            connection.end_turn()
        self.budget = self._budget_max
        self.seconds_left = self.turn_seconds
        for _ in range(len(self._waiting)):
            if self.budget <= 0 or self.seconds_left <= 0:
                break
            self._waiting.popleft().go_on()
        for _ in range(min(self.settings.handshakes_turn_max, len(self._handshakes))):
            self._handshakes.popleft().go_on_with_handshake()
        if self._waiting or self._handshakes:
            self.arm()


class _Connection(asyncio.Protocol):
    """One connection: its transport, its TLS, its HTTP/2 and its calls.

    Attributes:
        is_last_goaway_sent: Whether no further stream is taken.
    """

    __slots__ = (
        "_budget",
        "_end_at",
        "_goaway_timer",
        "_grpc",
        "_heard_at",
        "_http2",
        "_is_active",
        "_is_closed",
        "_is_handshake_queued",
        "_is_leaving",
        "_is_lingering",
        "_is_reading",
        "_is_waiting",
        "_linger_bytes",
        "_listener",
        "_loop",
        "_ping_sent_at",
        "_seconds_left",
        "_timer",
        "_tls",
        "_transport",
        "_unwritten_bytes",
        "_write_paused_at",
        "is_last_goaway_sent",
    )

    _transport: asyncio.Transport
    _http2: Connection
    _grpc: GrpcConnection

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        self._listener = listener
        self._loop = loop
        self._tls: TlsSession | None = None
        self._budget = listener.settings.connection_turn_frames_max
        self._seconds_left = listener.turn_seconds / CONNECTION_PART
        self._is_active = False
        self._is_waiting = False
        self._is_handshake_queued = False
        self._is_reading = True
        self._is_leaving = False  # a last GOAWAY is in the output, and nothing more is dispatched
        self._is_lingering = False  # half-closed by us
        self._is_closed = True  # until it is made
        self._linger_bytes = 0
        self._write_paused_at: float | None = None  # or when it made progress last
        self._unwritten_bytes = 0
        self._ping_sent_at: float | None = None
        self._heard_at = loop.time()
        self._end_at: float | None = None  # when the handshake, the preface or the lingering is over
        self._timer: asyncio.TimerHandle | None = None
        self._goaway_timer: asyncio.TimerHandle | None = None
        self.is_last_goaway_sent = False

    def __repr__(self) -> str:
        return f"<_Connection: {'closed' if self._is_closed else repr(self._grpc)}>"

    # ------------------------------------------------------------ told by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or refuse at once."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's derives from nothing
        if not self._listener.add(self):
            self._transport.abort()
            return
        self._is_closed = False
        self._guard(self._begin)

    def data_received(self, data: bytes) -> None:
        """Dispatch what came, as far as the turn's budget allows."""
        if self._is_closed:
            return
        if self._is_leaving:
            self._discard(len(data))
            return
        try:
            self._heard_at = self._loop.time()
            if self._tls is not None:
                self._tls.receive(data)
                if not self._tls.is_ready:
                    self._queue_handshake()
                    return
                data = self._tls.read()
            self._http2.receive(data)
            if not self._is_waiting:
                self._dispatch()
            if self._tls is not None and self._tls.is_ended:
                self.abort()
        except Exception as error:
            self._break(error)

    def eof_received(self) -> bool:
        """Hear that the peer has closed; no client of gRPC does so and then reads on."""
        return False  # which closes the transport

    def pause_writing(self) -> None:
        """Hear that enough waits in the transport."""
        if self._write_paused_at is None:
            self._write_paused_at = self._loop.time()
            self._unwritten_bytes = self._transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        """Hear that there is room again."""
        self._write_paused_at = None
        self._wake()
        self._update_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell all handlers, in slices."""
        if self._is_closed:
            return
        self._is_closed = True
        for timer in (self._timer, self._goaway_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._goaway_timer = None
        self.is_last_goaway_sent = True
        self._grpc.lose()
        self._tell_lost()

    def _tell_lost(self) -> None:
        if self._grpc.close_lost(ENDS_TURN_MAX):
            self._loop.call_soon(self._tell_lost)
        elif self._is_closed:
            self._listener.discard(self)

    # ------------------------------------------------------------ beginning

    def _begin(self) -> None:
        listener = self._listener
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._http2 = Connection(listener.settings, self._loop.time)
        self._make_grpc(None)
        self._end_at = self._loop.time() + listener.settings.handshake_seconds
        if listener.certificates is not None:
            self._tls = TlsSession(listener.certificates.context())
        else:
            self._wake()  # our SETTINGS
        self._arm_timer(self._end_at)

    def _make_grpc(self, identity: str | None) -> None:
        peer = Peer(addresses.describe(self._transport.get_extra_info("peername")), identity)
        self._grpc = GrpcConnection(self._http2, self._listener.totals, peer, self._wake, self._take_notice)

    def _queue_handshake(self) -> None:
        assert self._tls is not None
        if self._tls.received_bytes > HANDSHAKE_BYTES_MAX:
            self.abort("handshake")
        elif not self._is_handshake_queued:
            self._is_handshake_queued = True
            self._listener.wait_for_handshake(self)

    def go_on_with_handshake(self) -> None:
        """Take the next step of TLS's handshake."""
        self._is_handshake_queued = False
        if not self._is_closed and not self._is_leaving:
            self._guard(self._shake_hands)

    def _shake_hands(self) -> None:
        tls = self._tls
        assert tls is not None
        is_done = tls.shake_hands()
        if is_done:
            self._make_grpc(tls.identity())
            self._end_at = self._loop.time() + self._listener.settings.handshake_seconds
            self._http2.receive(tls.read())
            self._dispatch()
        elif output := tls.write(b""):
            self._transport.write(output)

    # ------------------------------------------------------------ turns

    def _wake(self) -> None:
        """Have the output written at the end of the turn."""
        if not self._is_active:
            self._is_active = True
            self._listener.activate(self)

    def _dispatch(self) -> None:
        """Dispatch what was received within the budget and the time, and see to the rest."""
        listener = self._listener
        budget = min(self._budget, listener.budget)
        seconds = min(self._seconds_left, listener.seconds_left)
        if budget > 0 and seconds > 0 and not self._is_output_unread():
            start = time.perf_counter()
            spent = self._grpc.process(budget, start + seconds)
            spent_seconds = time.perf_counter() - start
            self._budget -= spent
            self._seconds_left -= spent_seconds
            listener.budget -= spent
            listener.seconds_left -= spent_seconds
        if not self._is_active:
            self._is_active = True
            listener.activate(self)
        if self._grpc.has_input and not self._is_leaving:
            self._is_waiting = True
            listener.wait(self)
            self._update_reading()
        elif self._write_paused_at is not None or not self._is_reading:
            self._update_reading()

    def go_on(self) -> None:
        """Dispatch more of what waits from earlier turns."""
        self._is_waiting = False
        if self._is_closed or self._is_leaving:
            return
        if self._is_output_unread():
            return  # until the peer has read: `resume_writing`
        self._guard(self._dispatch)

    def end_turn(self) -> None:
        """Write, and renew the budget."""
        self._is_active = False
        self._budget = self._listener.settings.connection_turn_frames_max
        self._seconds_left = self._listener.turn_seconds / CONNECTION_PART
        self.flush()
        if self._grpc.has_output and self._write_paused_at is None and not self._is_closed:
            self._wake()  # there was more than one turn may write

    def flush(self) -> None:
        """Write what there is, as long as the transport takes it."""
        if not self._is_closed:
            self._guard(self._flush)

    def _flush(self) -> None:
        if self._write_paused_at is not None or self._is_lingering:
            return
        if self._tls is not None and not self._tls.is_ready:
            return
        http2 = self._http2
        for _ in range(TURN_WRITES_MAX):
            self._grpc.pull(WRITE_BUFFER_BYTES)
            if not http2.output_bytes:
                break
            output = http2.take_output()
            self._transport.write(output if self._tls is None else self._tls.write(output))
            if self._write_paused_at is not None or not self._grpc.has_output:
                break
        if self._is_leaving and not http2.output_bytes and not self._grpc.has_output:
            self._linger()

    def _is_output_unread(self) -> bool:
        return self._write_paused_at is not None and self._http2.output_bytes > UNREAD_OUTPUT_BYTES_MAX

    def _update_reading(self) -> None:
        """Read exactly while what is read can be dispatched."""
        if self._is_closed or self._transport.is_closing():
            return
        unread = self._is_output_unread()
        if not unread and not self._is_waiting and self._grpc.has_input and not self._is_leaving:
            self._is_waiting = True
            self._listener.wait(self)
        wanted = self._is_leaving or not (self._is_waiting or unread)
        if wanted != self._is_reading:
            self._is_reading = wanted
            if wanted:
                self._heard_at = self._loop.time()  # its silence was ours
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # ------------------------------------------------------------ time

    def _arm_timer(self, when: float) -> None:
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        """Look whether the connection still lives; once in a while, and when that can change."""
        self._timer = None
        if not self._is_closed:
            self._guard(self._check)

    def _check(self) -> None:
        now = self._loop.time()
        if self._end_at is not None and self._http2.preface_received and not self._is_leaving:
            self._end_at = None
        if self._end_at is not None:
            if now >= self._end_at:
                self.abort("" if self._is_leaving else self._late_cause())
            else:
                self._arm_timer(self._end_at)
            return
        settings = self._listener.settings
        if self._is_stalled(now):
            self.abort("stalled")
            return
        count = self._grpc.end_stalled(now, ENDS_TURN_MAX)
        self._listener.ended["stalled_call"] += count
        when = self._check_alive(now)
        if when is not None:  # at once, if there may be more that stalled
            self._arm_timer(now if count == ENDS_TURN_MAX else min(when, now + settings.stall_seconds_max))

    def _is_stalled(self, now: float) -> bool:
        """Tell whether the peer has taken nothing of what waits in the transport for too long."""
        if self._write_paused_at is None:
            return False
        left = self._transport.get_write_buffer_size()
        if left < self._unwritten_bytes:
            self._write_paused_at = now
        self._unwritten_bytes = left
        return now - self._write_paused_at >= self._listener.settings.stall_seconds_max

    def _late_cause(self) -> str:
        return "preface" if self._tls is None or self._tls.is_ready else "handshake"

    def _check_alive(self, now: float) -> float | None:
        """Ping a silent peer, and end one that does not answer; return when to look again."""
        settings = self._listener.settings
        if not self._is_reading:
            self._heard_at = now  # the silence is ours
        if self._ping_sent_at is not None and self._heard_at >= self._ping_sent_at:
            self._ping_sent_at = None
        if self._ping_sent_at is not None:
            gone_at = self._ping_sent_at + settings.keepalive_timeout_seconds
            if now < gone_at:
                return gone_at
            self.abort("keepalive")
            return None
        if now - self._heard_at < settings.keepalive_seconds:
            return self._heard_at + settings.keepalive_seconds
        self._ping_sent_at = now
        self._http2.ping(_ALIVE_PING)
        self._wake()
        return now + settings.keepalive_timeout_seconds

    # ------------------------------------------------------------ leaving

    def _take_notice(self, event: Event) -> None:
        if isinstance(event, ConnectionFailed):
            calm = event.code == ErrorCode.ENHANCE_YOUR_CALM
            self._listener.ended["calm_down" if calm else "protocol_error"] += 1
            log.debug("connection_failed", code=event.code, why=event.message)
            self._stop_input()
            self._grpc.lose()
            self._tell_lost()
        elif isinstance(event, PingAcknowledged) and event.data == _DRAIN_PING:
            self._send_last_goaway()

    def start_drain(self) -> None:
        """Tell the peer to open no more streams; those under way are still taken."""
        if self._is_leaving or self._is_closed:
            return
        if self._tls is not None and not self._tls.is_ready:
            self.is_last_goaway_sent = True  # nothing was said yet, and nothing is lost
            return
        self._http2.go_away(last=False)
        self._http2.ping(_DRAIN_PING)
        self._wake()
        self._goaway_timer = self._loop.call_later(GOAWAY_SECONDS, self._send_last_goaway)

    def _send_last_goaway(self) -> None:
        if self.is_last_goaway_sent or self._is_closed:
            return
        self.is_last_goaway_sent = True
        self._http2.go_away()
        self._wake()
        self._listener.changed()

    def end_calls(self, status: Status, count: int) -> int:
        """End so many of the calls that are open, and take no more; return how many there were."""
        if self._is_closed:
            return 0
        if self._tls is None or self._tls.is_ready:
            self._send_last_goaway()
        ended = self._grpc.end_all(status, count)
        self._wake()
        return ended

    def leave(self) -> None:
        """Send what is unsent, and go."""
        if self._is_closed or self._is_leaving:
            return
        if self._tls is not None and not self._tls.is_ready:
            self.abort()
            return
        self._send_last_goaway()
        self._stop_input()

    def _stop_input(self) -> None:
        """Take no more input: what comes is discarded, and once all is written the connection lingers."""
        self._is_leaving = True
        self._end_at = self._loop.time() + LINGER_SECONDS
        if self._timer is not None:
            self._timer.cancel()
        self._arm_timer(self._end_at)
        self._wake()
        self._update_reading()

    def _linger(self) -> None:
        """Half-close; the peer closes when it has read all."""
        self._is_lingering = True
        if self._tls is not None and (last := self._tls.close()):  # or an alert, if the handshake failed
            self._transport.write(last)
        with suppress(OSError):  # the peer is gone already, and `connection_lost` is on its way
            self._transport.write_eof()

    def _discard(self, size: int) -> None:
        self._linger_bytes += size
        if self._linger_bytes > LINGER_BYTES_MAX:
            self.abort()

    def abort(self, cause: str = "") -> None:
        """Close at once; `connection_lost` follows."""
        if cause:
            self._listener.ended[cause] += 1
        self._is_leaving = self._is_lingering = True
        if not self._is_closed:
            self._transport.abort()

    # ------------------------------------------------------------ faults

    def _guard(self, what: Callable[[], None]) -> None:
        """Run a callback; whatever it raises ends this connection alone."""
        try:
            what()
        except Exception as error:
            self._break(error)

    def _break(self, error: Exception) -> None:
        if isinstance(error, TlsFailed):
            log.debug("tls_failed", why=str(error))
            self._listener.ended["tls" if self._tls is not None and self._tls.is_ready else "handshake"] += 1
            self._stop_input()
            self._linger()
            return
        log.error("connection_broken", error_id=InternalError.new_id(), exc_info=error)
        self.abort("mistake")
