"""One conversation made of fuzzed bytes, and what must hold however it goes.

The bytes are a program: each operation is one of theirs and takes its arguments from what follows. Most
operations say a frame that is sound but for one thing, because random bytes alone never get beyond the
preface. Some move time, let the server write, or let handlers apply what they have received.

What must hold, after every operation:

- No exception escapes from what the listener calls.
- All that is sent parses as frames (by hyperframe), each as large as HTTP/2 allows without being asked.
- No more DATA is sent than windows allow. `Ledger` reads both directions as frames and knows no more.
- No more is given back than was received, neither of a stream nor of the connection.
- A turn takes no more units and writes no more bytes than its bounds.
- Streams, unstarted calls and unfinished messages stay within theirs.
- A handler hears `closed` once and nothing after it; at the end every one has heard it and nothing is held.
"""

from __future__ import annotations

import gzip
import struct
from collections import Counter
from collections.abc import Callable

from hyperframe.frame import DataFrame, Frame, SettingsFrame, WindowUpdateFrame

from cellstream.errors import MessageTooLarge
from cellstream.settings import Settings
from cellstream.transport.call import OK, Call, Code, Method, Peer, Service, Status, Why
from cellstream.transport.grpc import GrpcConnection, Totals
from cellstream.transport.http2 import Connection
from trials.attack import frames

OPERATIONS_MAX = 200
"""Of a conversation: a longer one finds no more, and slows the search."""
TURN_UNITS = 32
OVERSPENT_UNITS_MAX = 16
"""What the last frame of a turn may cost: its header block and list, or its message, unpacked, in KiB."""
WRITE_BYTES = 4096
OUTPUT_BYTES_MAX = WRITE_BYTES + 2 * frames.FRAME_BYTES_MAX
"""A frame beyond what was asked for, and what input is answered by itself: resets, windows, trailers."""
FRAME_HEADER_BYTES = 9
STREAM_METHOD, UNARY_METHOD, BROKEN_METHOD = "/test/Stream", "/test/Unary", "/test/Broken"

SETTINGS = Settings(
    message_bytes_max=4096,
    stream_window_bytes=2048,
    buffered_bytes_max=32_768,
    connection_bytes_max=16_384,
    header_list_bytes_max=1024,
    header_block_bytes_max=2048,
    connection_streams_max=16,
    unstarted_calls_max=8,
    resets_burst=16,
    control_frames_burst=64,
)
"""All limits so small that a conversation reaches them."""


class Source:
    """Numbers and bytes taken from the fuzzed bytes; zeros once they are used up.

    Args:
        data: The fuzzed bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether all is used up."""
        return self._at >= len(self._data)

    def byte(self) -> int:
        """The next byte."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def number(self) -> int:
        """A number of 32 bits; small ones are frequent."""
        size = self.byte() % 5
        return int.from_bytes(self.take(size), "big")

    def take(self, size: int) -> bytes:
        """The next so many bytes."""
        self._at += size
        return self._data[self._at - size : self._at].ljust(size, b"\0")

    def piece(self) -> bytes:
        """Some bytes, up to 255."""
        return self.take(self.byte())


class _BrokenHandler(Exception):
    """What a handler of BROKEN_METHOD raises."""


class FuzzedHandler:
    """Answers every message with its bytes, or many times over, and applies what it is told when told to."""

    def __init__(self, call: Call, world: World, *, broken: bool = False) -> None:
        self._call = call
        self._world = world
        self._broken = broken
        self._output: list[bytes] = []
        self._has_ended = False
        self.unapplied = 0
        self.why: Why | None = None
        world.handlers.append(self)

    def received(self, message: bytes) -> None:
        """Take a message."""
        assert self.why is None, "a message after closed"
        if self._broken:
            raise _BrokenHandler("a mistake of the handler")
        self.unapplied += len(message)
        self._output.append(message * (1 + len(message) % 3))
        self._call.ready()

    def half_closed(self) -> None:
        """End once the output is sent."""
        assert self.why is None, "half_closed after closed"
        self._call.end(OK)

    def next_message(self) -> bytes | None:
        """The next answer."""
        assert self.why is None, "next_message after closed"
        return self._output.pop(0) if self._output else None

    def closed(self, why: Why) -> None:
        """Note why."""
        assert self.why is None, "closed twice"
        self.why = why

    def apply(self, size: int) -> None:
        """Say that so much is applied, never more than there is."""
        size = min(size, self.unapplied)
        self.unapplied -= size
        self._call.consumed(size)

    def end(self, code: int) -> None:
        """End the call."""
        self._call.end(Status(Code(code % 17), "ändern %\n", b"details"))


class Ledger:
    """What both sides have said, read as frames, and what follows from it for windows.

    It reads the client's bytes as far as they are frames at all. Beyond the first error the server reads
    nothing, so what is counted is at least what the server may use.
    """

    def __init__(self) -> None:
        self._said = bytearray()
        self._heard = bytearray()
        self._skip = len(frames.PREFACE)
        self.client_opened: Counter[int] = Counter()
        self.client_sent: Counter[int] = Counter()
        self.initial_window = frames.WINDOW
        self.server_sent: Counter[int] = Counter()
        self.server_opened: Counter[int] = Counter()

    def say(self, data: bytes) -> None:
        """Count what the client says."""
        self._said += data
        if self._skip:
            if len(self._said) < self._skip:
                return
            del self._said[: self._skip]
            self._skip = 0
        while len(self._said) >= FRAME_HEADER_BYTES:
            size = int.from_bytes(self._said[:3], "big")
            if len(self._said) < FRAME_HEADER_BYTES + size:
                return
            kind, stream = self._said[3], int.from_bytes(self._said[5:9], "big") & frames.WINDOW_MAX
            payload = bytes(self._said[FRAME_HEADER_BYTES : FRAME_HEADER_BYTES + size])
            del self._said[: FRAME_HEADER_BYTES + size]
            self._count(kind, stream, payload)

    def _count(self, kind: int, stream: int, payload: bytes) -> None:
        if kind == frames.WINDOW_UPDATE and len(payload) == 4:
            self.client_opened[stream] += struct.unpack(">I", payload)[0] & frames.WINDOW_MAX
        elif kind == frames.SETTINGS and len(payload) % 6 == 0:
            for number, value in struct.iter_unpack(">HI", payload):
                if number == frames.INITIAL_WINDOW_SIZE:
                    self.initial_window = max(self.initial_window, value)
        elif kind == frames.DATA:
            self.client_sent[stream] += len(payload)
            self.client_sent[0] += len(payload)

    def hear(self, data: bytes) -> None:
        """Parse what the server says, and check what follows from it."""
        self._heard += data
        while self._heard:
            assert len(self._heard) >= FRAME_HEADER_BYTES, "a piece of a frame was sent"
            parsed, size = Frame.parse_frame_header(memoryview(bytes(self._heard[:FRAME_HEADER_BYTES])))
            assert size <= frames.FRAME_BYTES_MAX
            end = FRAME_HEADER_BYTES + size
            assert len(self._heard) >= end, "a piece of a frame was sent"
            parsed.parse_body(memoryview(bytes(self._heard[FRAME_HEADER_BYTES:end])))
            del self._heard[:end]
            self._check(parsed)

    def _check(self, parsed: Frame) -> None:
        stream = parsed.stream_id
        if isinstance(parsed, DataFrame):
            for number in (0, stream):
                self.server_sent[number] += len(parsed.data)
            assert self.server_sent[0] <= frames.WINDOW + self.client_opened[0], "the connection's window"
            room = self.initial_window + self.client_opened[stream]
            assert self.server_sent[stream] <= room, "a stream's window"
        elif isinstance(parsed, WindowUpdateFrame):
            assert parsed.window_increment > 0
            self.server_opened[stream] += parsed.window_increment
            # The first one opens the connection's window as far as it goes.
            most = frames.WINDOW_MAX - frames.WINDOW if stream == 0 else 0
            assert self.server_opened[stream] <= most + self.client_sent[stream], "more than was received"
        elif isinstance(parsed, SettingsFrame):
            assert "ACK" in parsed.flags or parsed.settings


class World:
    """A connection in memory with its handlers, and time that is moved.

    Args:
        now: Where its clock begins, in seconds.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.handlers: list[FuzzedHandler] = []
        self.ledger = Ledger()
        self.streams_opened = 0
        self._timers: list[_Timer] = []
        methods = {
            STREAM_METHOD: Method(lambda call: FuzzedHandler(call, self)),
            UNARY_METHOD: Method(lambda call: FuzzedHandler(call, self), one_request=True),
            BROKEN_METHOD: Method(lambda call: FuzzedHandler(call, self, broken=True)),
        }
        service = Service(methods, lambda error: Status(Code.INTERNAL, _own(error)))
        self.totals = Totals(SETTINGS, service, self.clock, self.call_at)
        self.http2 = Connection(SETTINGS, self.clock)
        self.grpc = GrpcConnection(
            self.http2, self.totals, Peer("fuzz"), wake=lambda: None, notice=lambda event: None
        )

    def clock(self) -> float:
        """The time."""
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> _Timer:
        """Have something called when the time is moved there."""
        timer = _Timer(self._timers, when, callback)
        self._timers.append(timer)
        return timer

    def move(self, seconds: float) -> None:
        """Move the time on, and call what is due."""
        self.now += seconds
        for timer in sorted((each for each in self._timers if each.when <= self.now), key=lambda it: it.when):
            if timer in self._timers:
                self._timers.remove(timer)
                timer.callback()

    def say(self, data: bytes) -> None:
        """Have the server receive bytes, as the listener does."""
        self.ledger.say(data)
        self.http2.receive(data)
        self.turn()

    def turn(self) -> None:
        """One turn: input within a budget, then output."""
        spent = self.grpc.process(TURN_UNITS)
        assert spent <= TURN_UNITS + OVERSPENT_UNITS_MAX, f"a turn took {spent} units"
        self.write()

    def write(self) -> None:
        """Let the server write, and check what it wrote."""
        self.grpc.pull(WRITE_BYTES)
        output = self.http2.take_output()
        assert len(output) <= OUTPUT_BYTES_MAX, f"a turn wrote {len(output)} bytes"
        self.ledger.hear(output)

    def check(self) -> None:
        """Raise AssertionError if a bound does not hold."""
        calls = len(self.grpc.calls)
        assert len(self.http2.streams) <= SETTINGS.connection_streams_max
        assert calls == self.totals.calls <= SETTINGS.connection_streams_max
        assert len(self.totals.unstarted) <= SETTINGS.unstarted_calls_max
        unfinished = self.totals.unfinished.size_bytes
        assert 0 <= unfinished <= 2 * SETTINGS.buffered_bytes_max + SETTINGS.message_bytes_max
        if not self.http2.failed:
            for stream in self.http2.streams.values():
                assert 0 <= stream.owed_bytes <= stream.held_bytes <= frames.WINDOW

    def lose(self) -> None:
        """Lose the connection, and check that nothing is left of it."""
        self.grpc.lose()
        while self.grpc.close_lost(3):
            self.grpc.pull(WRITE_BYTES)
        assert all(handler.why is not None for handler in self.handlers), "a handler never heard of its end"
        assert self.totals.calls == 0
        assert self.totals.unfinished.size_bytes == 0
        assert not self.totals.unstarted


class _Timer:
    def __init__(self, timers: list[_Timer], when: float, callback: Callable[[], None]) -> None:
        self._timers = timers
        self.when = when
        self.callback = callback

    def cancel(self) -> None:
        """Forget it."""
        if self in self._timers:
            self._timers.remove(self)


def _own(error: Exception) -> str:
    """The text of what is foreseen; anything else escapes, for the fuzzer to see."""
    if isinstance(error, _BrokenHandler | MessageTooLarge):
        return str(error)
    raise error


# ------------------------------------------------------------------------------------------- operations

Operation = Callable[[World, Source], None]


RARE = 8
"""Below it a byte asks for what mostly ends the connection: a conversation must get somewhere first."""


def _stream(world: World, source: Source) -> int:
    """A stream's number: mostly one that was opened lately and lives."""
    byte = source.byte()
    if byte < RARE:
        return source.number() & frames.WINDOW_MAX
    if byte >= 2 * RARE:
        living = [number for number, stream in world.http2.streams.items() if not stream.receive_ended]
        if not living:
            _headers(world, source)
            living = [max(1, 2 * world.streams_opened - 1)]
        return living[byte % len(living)]
    return 2 * (byte % max(1, world.streams_opened)) + 1


def _new_stream(world: World, source: Source) -> int:
    """A stream's number for HEADERS: mostly the next one."""
    if source.byte() < 2 * RARE:
        return _stream(world, source)
    world.streams_opened += 1
    return 2 * world.streams_opened - 1


_PATHS = (STREAM_METHOD, STREAM_METHOD, UNARY_METHOD, BROKEN_METHOD, "/test/Unknown")
_SOUND_FIELDS = (
    (b"grpc-encoding", b"gzip"),
    (b"grpc-encoding", b"gzip"),
    (b"grpc-accept-encoding", b"gzip"),
    (b"grpc-timeout", b"5S"),
    (b"x-text-bin", b"AP8"),
    (b"x-text", b"two, three"),
)
_FIELDS = (
    (b"grpc-timeout", b"\xff"),
    (b"x-latin", b"\xfc"),
    (b"content-length", b"3"),
    (b"content-type", b"application/grpc-web"),
    (b":path", b"/again"),
    (b"connection", b"close"),
    (b"X-Upper", b"1"),
    (b"te", b"gzip"),
)


def _block(source: Source) -> bytes:
    """A header block: a call's, with some fields more, and at times bytes that are none."""
    path = _PATHS[source.byte() % len(_PATHS)]
    fields = _FIELDS if source.byte() < 2 * RARE else _SOUND_FIELDS
    more = [fields[source.byte() % len(fields)] for _ in range(source.byte() % 3)]
    block = frames.block(path, *more)
    choice = source.byte()
    if choice < RARE // 2:
        return block + source.piece()
    if choice < RARE:
        return block[: source.byte()]
    if choice < 4 * RARE:
        return block + frames.literal(b"x-kept", source.piece(), first=0x40)
    if choice < 4 * RARE + 2:
        return block + b"\xbe" * source.byte()
    return block


def _headers(world: World, source: Source) -> None:
    flags = frames.END_HEADERS | (source.byte() < RARE)
    world.say(frames.headers(_new_stream(world, source), _block(source), flags))


def _parted_headers(world: World, source: Source) -> None:
    stream, block = _new_stream(world, source), _block(source)
    cut = source.byte() % (len(block) + 1)
    last = 0 if source.byte() < RARE else frames.END_HEADERS
    world.say(frames.frame(frames.HEADERS, 0, stream, block[:cut]))
    world.say(frames.frame(frames.CONTINUATION, last, stream, block[cut:]))


def _message(world: World, source: Source) -> None:
    stream, message = _stream(world, source), source.piece() * (1 + source.byte() % 20)
    choice = source.byte() % 8
    body = frames.grpc_message(message, packed=choice == 1)
    if choice == 2:
        body = frames.grpc_message(gzip.compress(message, 1), packed=True)
    elif choice == 3:
        body = frames.grpc_message(gzip.compress(bytes(source.number() % 100_000), 1), packed=True)
    elif choice == 4:
        body = body[:-1]
    world.say(frames.data(stream, body, end=source.byte() < 4 * RARE))


def _data(world: World, source: Source) -> None:
    if source.byte() >= 4 * RARE:
        world.say(frames.data(_stream(world, source), b""))
        return
    flags = source.byte() & 0x9 if source.byte() < 2 * RARE else 0
    world.say(frames.frame(frames.DATA, flags, _stream(world, source), source.piece()))


def _any_frame(world: World, source: Source) -> None:
    if source.byte() >= 4 * RARE:
        return
    stream = source.number() if source.byte() & 1 else _stream(world, source)
    world.say(frames.frame(source.byte() % 12, source.byte(), stream, source.piece()))


def _window_update(world: World, source: Source) -> None:
    stream = 0 if source.byte() & 1 else _stream(world, source)
    size = source.number() if source.byte() < RARE else 1 + source.byte() * 16
    world.say(frames.window_update(stream, size))


_SOUND_SETTINGS = (
    (1, 0),
    (1, 4096),
    (2, 0),
    (4, 0),
    (4, 100),
    (4, 65_535),
    (4, 1 << 20),
    (5, 16_384),
    (6, 200),
    (99, 1),
)


def _settings(world: World, source: Source) -> None:
    if source.byte() < RARE:
        pairs = [(source.byte() % 8, source.number()) for _ in range(source.byte() % 4)]
    else:
        pairs = [_SOUND_SETTINGS[source.byte() % len(_SOUND_SETTINGS)] for _ in range(source.byte() % 4)]
    payload = b"".join(struct.pack(">HI", number, value) for number, value in pairs)
    world.say(frames.frame(frames.SETTINGS, 0 if pairs else source.byte() & frames.ACK, 0, payload))


def _reset(world: World, source: Source) -> None:
    world.say(frames.reset(_stream(world, source), source.byte() % 16))


def _ping(world: World, source: Source) -> None:
    world.say(frames.frame(frames.PING, source.byte() & frames.ACK, 0, source.take(8)))


def _bytes(world: World, source: Source) -> None:
    if source.byte() < 2 * RARE:
        world.say(source.piece())


def _apply(world: World, source: Source) -> None:
    open_ones = [handler for handler in world.handlers if handler.why is None]
    if open_ones:
        open_ones[source.byte() % len(open_ones)].apply(source.number())


def _end(world: World, source: Source) -> None:
    open_ones = [handler for handler in world.handlers if handler.why is None]
    if open_ones:
        open_ones[source.byte() % len(open_ones)].end(source.byte())


def _move(world: World, source: Source) -> None:
    world.move(source.byte() / 4)
    world.grpc.end_stalled(world.now)


def _go_away(world: World, source: Source) -> None:
    if source.byte() < RARE:
        world.http2.go_away(last=bool(source.byte() & 1))


def _turn(world: World, source: Source) -> None:
    world.turn()


OPERATIONS: tuple[Operation, ...] = (
    *(_headers, _headers, _message, _message, _message, _data, _any_frame, _window_update, _settings),
    *(_reset, _ping, _bytes, _apply, _apply, _end, _move, _turn, _parted_headers, _go_away),
)


def converse(data: bytes) -> World:
    """Hold the conversation that these bytes describe, and check everything on the way.

    Raises:
        AssertionError: Something does not hold.
        Exception: Something escaped that must not.
    """
    source, world = Source(data), World()
    if source.byte() % 16:  # else the preface is fuzzed, too
        world.say(frames.PREFACE + frames.settings())
    for _ in range(OPERATIONS_MAX):
        if source.is_empty:
            break
        OPERATIONS[source.byte() % len(OPERATIONS)](world, source)
        world.check()
    for _ in range(4):
        world.turn()
    world.check()
    world.lose()
    return world


def run_once(data: bytes) -> None:
    """Hold a conversation; the shape of a fuzzer's target."""
    converse(data)
