"""Honest sessions, each over its own connection, in ping-pong, every answer compared bit for bit.

Run as a process. Reads from standard input, a line a window: `seconds 4` looks so long, `answers 30` until
each session was answered so often. Prints for each window what was measured. Tokens and answers come from a
file, computed beforehand by the oracle. A session that reaches the end of its tokens is reset, and begins
them anew.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
import sys
import time
from pathlib import Path
from typing import cast

import numpy as np
import uvloop
from numpy.typing import NDArray

from cellstream.v1 import prediction_pb2 as pb
from trials.attack import frames
from trials.oracle import Oracle

PREDICT = "/cellstream.v1.PredictionService/Predict"
STREAM = 1
OPEN_SECONDS_MAX = 30.0


def write_reference(path: Path, oracle: Oracle, sessions: int, tokens: int, seed: int = 7) -> None:
    """Compute what so many sessions are answered for so many random tokens each, one at a time.

    The file has, for each session and step, the token, the likeliest next one and its log-probability.
    """
    random = np.random.default_rng(seed)
    given = random.integers(0, 256, (sessions, tokens), dtype=np.int32)
    top_ids = np.zeros((sessions, tokens), np.int32)
    log_probabilities = np.zeros((sessions, tokens), np.float32)
    for session in range(sessions):
        answers = oracle.answers(bytes([token]) for token in given[session])
        top_ids[session] = [answer.top_id for answer in answers]
        log_probabilities[session] = [answer.log_probability for answer in answers]
    np.savez(path, tokens=given, top_ids=top_ids, log_probabilities=log_probabilities)


class Session(asyncio.Protocol):
    """One session over one connection.

    Args:
        tokens: What it feeds, one a message.
        top_ids: What it must be answered.
        log_probabilities: Those of the answers.
    """

    def __init__(
        self,
        tokens: NDArray[np.int32],
        top_ids: NDArray[np.int32],
        log_probabilities: NDArray[np.float32],
    ) -> None:
        self._tokens = tokens.tolist()
        self._top_ids = top_ids.tolist()
        self._log_probabilities = log_probabilities.tolist()
        self._buffer = bytearray()
        self._body = bytearray()
        self._step = 0
        self._sent = 0.0
        self._room = {0: 65_535, STREAM: 65_535}
        self._transport: asyncio.Transport | None = None
        self.running = True
        self.opened = asyncio.Event()
        self.waits: list[float] = []
        self.wrong: list[str] = []
        self.answered = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the stream and its session."""
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        opening = pb.PredictRequest(opens=[pb.Open(handle=0, answer=pb.Answer(top_k=1))])
        transport.write(
            frames.PREFACE
            + frames.settings(window=frames.WINDOW_MAX)
            + frames.window_update(0, frames.WINDOW_MAX - 65_535)
            + frames.headers(STREAM, frames.block(PREDICT))
        )
        self._send(opening)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note it: no server ends an honest connection."""
        if self.running:
            self.wrong.append(f"the connection was lost: {exc}")
        self.opened.set()
        self.answered.set()

    def feed(self) -> None:
        """Send the next token."""
        feed = pb.Feed(handle=0, tokens=pb.Tokens(ids=[self._tokens[self._step]]))
        request = pb.PredictRequest(feeds=[feed])
        if self._step == 0:
            request.resets.append(pb.Reset(handle=0))
        self._sent = time.perf_counter()
        self._send(request)

    async def has_answers(self, count: int) -> None:
        """Wait until so many answers came in this window, or one was wrong."""
        while len(self.waits) < count and not self.wrong:
            self.answered.clear()
            await self.answered.wait()

    def waiting_since(self) -> float:
        """When the feed that has no answer yet was sent."""
        return self._sent

    def close(self) -> None:
        """End it."""
        self.running = False
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take the frames apart."""
        self._buffer += data
        while len(self._buffer) >= 9:
            size = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + size:
                return
            kind, flags = self._buffer[3], self._buffer[4]
            payload = bytes(self._buffer[9 : 9 + size])
            stream = int.from_bytes(self._buffer[5:9], "big")
            del self._buffer[: 9 + size]
            self._hear(kind, flags, stream, payload)

    def _hear(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.DATA:
            self._body += payload
            self._take_messages()
        elif kind in (frames.SETTINGS, frames.PING) and not flags & frames.ACK:
            assert self._transport is not None
            self._transport.write(
                frames.frame(kind, frames.ACK, payload=payload if kind == frames.PING else b"")
            )
        elif kind == frames.WINDOW_UPDATE:
            self._room[stream] += struct.unpack(">I", payload)[0]
        elif kind in (frames.GOAWAY, frames.RST_STREAM):
            self.wrong.append(f"frame {kind}: {payload!r}")
        if kind in (frames.DATA, frames.HEADERS) and flags & frames.END_STREAM:
            self.wrong.append(f"the stream was ended: {payload!r}")

    def _take_messages(self) -> None:
        while len(self._body) >= 5:
            size = int.from_bytes(self._body[1:5], "big")
            if len(self._body) < 5 + size:
                return
            response = pb.PredictResponse.FromString(bytes(self._body[5 : 5 + size]))
            del self._body[: 5 + size]
            if response.opened:
                self.opened.set()
            for result in response.results:
                self._compare(result)

    def _compare(self, result: pb.Result) -> None:
        self.waits.append(time.perf_counter() - self._sent)
        step, found = self._step, result.predictions
        expected = (step + 1, [self._top_ids[step]], [self._log_probabilities[step]])
        answer = (result.position, list(found.top_ids), list(found.top_log_probabilities))
        if answer != expected:
            self.wrong.append(f"step {step}: {answer}, not {expected} {result.error.message}")
        self._step = (step + 1) % len(self._tokens)
        self.answered.set()
        if self.running:
            self.feed()

    def _send(self, request: pb.PredictRequest) -> None:
        body = frames.grpc_message(request.SerializeToString())
        for stream in self._room:
            self._room[stream] -= len(body)
            if self._room[stream] < 0:
                self.wrong.append(f"the window of {stream} was not given back")
        assert self._transport is not None
        self._transport.write(frames.data(STREAM, body))


def _measured(sessions: list[Session], seconds: float) -> dict[str, object]:
    """What a window gave; a feed without an answer counts with its age."""
    now = time.perf_counter()
    answered = sum(len(session.waits) for session in sessions)
    waits = [wait for session in sessions for wait in session.waits]
    waits += [now - session.waiting_since() for session in sessions]
    p50, p99 = np.percentile(waits, [50, 99])
    return {
        "rate": answered / seconds,
        "p50_ms": 1000 * float(p50),
        "p99_ms": 1000 * float(p99),
        "max_ms": 1000 * max(waits),
        "answers": answered,
        "answers_least": min(len(session.waits) for session in sessions),
        "wrong": [line for session in sessions for line in session.wrong][:5],
    }


async def _main(port: int, reference: Path, authority: str) -> None:
    loop = asyncio.get_running_loop()
    context = ssl.create_default_context(cafile=authority) if authority else None
    if context:
        context.set_alpn_protocols(["h2"])
    given = np.load(reference)
    sessions = []
    for arrays in zip(given["tokens"], given["top_ids"], given["log_probabilities"], strict=True):
        _, session = await loop.create_connection(
            lambda arrays=arrays: Session(*arrays),
            "127.0.0.1",
            port,
            ssl=context,
        )
        sessions.append(session)
    async with asyncio.timeout(OPEN_SECONDS_MAX):
        for session in sessions:
            await session.opened.wait()
    for session in sessions:
        session.feed()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps({"sessions": len(sessions)}), flush=True)
    while line := await reader.readline():
        for session in sessions:
            session.waits.clear()
        began = time.perf_counter()
        kind, number = line.split()
        if kind == b"seconds":
            await asyncio.sleep(float(number))
        else:
            await asyncio.gather(*(session.has_answers(int(number)) for session in sessions))
        print(json.dumps(_measured(sessions, time.perf_counter() - began)), flush=True)
    for session in sessions:
        session.close()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""))
