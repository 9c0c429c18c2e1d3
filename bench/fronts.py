"""The transports beside the service before them: the same loads on every side, in rounds of one run.

In a round each side has its turn at one load, and the next round begins with another side, so that a noisy
minute touches all of them. What counts is the ratio to the first side within a round: today's transports
to the service before. Bare ONNX Runtime and an echo on grpc.aio stand beside them: the graph without a
service, and a service without the graph.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench import before, processes
from bench.measure import Run, Side
from bench.opening import connection_bytes, refused_at_once, stream_bytes
from bench.processes import Server
from bench.rows import SEED, Bench, bare
from bench.traffic import Traffic, UnaryTraffic
from cellstream.v1 import session_pb2

SIDES = ("before", "native", "grpcio", "echo", "bare")
"""What can be measured; ratios are to the first that is chosen."""

SERVICES = ("before", "native", "grpcio")

BATCH_ROWS = 64
"""Rows of a call of bare ONNX Runtime, at most: beyond them a token costs no less."""

NAMED = "bench-"
"""What the session's name begins with that `GetSession` asks for."""

STREAM_CONNECTIONS = 60
"""Over which idle streams are spread: 200 on each are what the grpcio transport takes."""

SMALL_HIDDEN_SIZE = 16
"""Units of a layer for the gauges: the memory of the states must not hide the streams'."""

REFUSED_SAMPLES = 3

ROOM = {"slots_max": 32_768, "streams_max": 16_384}
"""For all sessions of the gauges, which may not be gone when the next are opened."""


@dataclass(frozen=True, slots=True)
class Load:
    """Streams × feeds of one token a message, ping-pong.

    Attributes:
        name: What `--only` takes.
        streams: How many.
        connections: Over how many connections.
        feeds: Sessions of a stream, all fed by one message.
        goals: By the name of a figure, the greatest ratio to the service before.
    """

    name: str
    streams: int
    connections: int
    feeds: int
    goals: Mapping[str, float]

    @property
    def what(self) -> str:
        """What is measured."""
        streams = _count(self.streams, "stream")
        sent = f"{self.feeds} feeds joined" if self.feeds > 1 else "1 token"
        return f"{streams} × {sent}, {_count(self.connections, 'connection')}"

    @contextmanager
    def sides(self, bench: Bench, servers: Mapping[str, Server]) -> Iterator[dict[str, Side]]:
        """Yield what each side runs."""
        with ExitStack() as stack:
            sides: dict[str, Side] = {}
            for name, server in servers.items():
                load = Traffic(
                    server,
                    streams=self.streams,
                    feeds=self.feeds,
                    seed=SEED,
                    echo=name == "echo",
                    connections=self.connections,
                )
                sides[name] = stack.enter_context(load).run
            rows = min(self.streams * self.feeds, BATCH_ROWS)
            yield {**sides, "bare": bare(bench.version(), rows, 1).run}


@dataclass(frozen=True, slots=True)
class Calls:
    """Unary calls of `GetSession`.

    Attributes:
        name: What `--only` takes.
        calls: How many are under way.
        connections: Over how many connections.
        goals: As a load's.
    """

    name: str
    calls: int
    connections: int
    goals: Mapping[str, float]

    @property
    def what(self) -> str:
        """What is measured."""
        return f"GetSession, {self.calls} at a time, {_count(self.connections, 'connection')}"

    @contextmanager
    def sides(self, bench: Bench, servers: Mapping[str, Server]) -> Iterator[dict[str, Side]]:
        """Yield what each side runs; the echo and ONNX Runtime have no such call."""
        request = session_pb2.GetSessionRequest(session_id=f"{NAMED}0").SerializeToString()
        with ExitStack() as stack:
            sides: dict[str, Side] = {}
            for name in SERVICES:
                if (server := servers.get(name)) is None:
                    continue
                stack.enter_context(Traffic(server, streams=1, feeds=1, seed=SEED, names=NAMED))
                calls = UnaryTraffic(
                    server,
                    path="/cellstream.v1.SessionService/GetSession",
                    message=request,
                    calls=self.calls,
                    connections=self.connections,
                )
                sides[name] = stack.enter_context(calls).run
            yield sides


@dataclass(frozen=True, slots=True)
class Gauge:
    """A number of each service by itself.

    Attributes:
        name: What `--only` takes.
        what: What is measured.
        unit: Of the number.
        goal: The most that the design allows; None: it asks for none.
        values: Measures it a few times on a server of the bench's model.
    """

    name: str
    what: str
    unit: str
    goal: float | None
    values: Callable[[Bench, Server], list[float]]


def _refused(bench: Bench, server: Server) -> list[float]:
    return [refused_at_once(server, bench.opened_streams, 64) for _ in range(REFUSED_SAMPLES)]


def _stream_bytes(bench: Bench, server: Server) -> list[float]:
    state_bytes = sum(4 * int(np.prod(state.shape)) for state in bench.version().manifest.states)
    return stream_bytes(server, bench.idle_streams, STREAM_CONNECTIONS, state_bytes)


def _connection_bytes(bench: Bench, server: Server) -> list[float]:
    return connection_bytes(server, bench.idle_streams // 4)


LOADS = (
    Load("1x1", 1, 1, 1, {"cpu_microseconds": 0.55, "p50_ms": 0.57}),
    Load("16x1", 16, 16, 1, {"cpu_microseconds": 0.48}),
    Load("64x1-64", 64, 64, 1, {"cpu_microseconds": 0.48, "p50_ms": 0.55}),
    Load("64x1-8", 64, 8, 1, {"cpu_microseconds": 0.43}),
    Load("512x1", 512, 512, 1, {}),
    Load("1x64", 1, 1, 64, {}),
    Load("8x64", 8, 8, 64, {}),
    Calls("unary-1", 1, 1, {}),
    Calls("unary-64", 64, 8, {}),
)

GAUGES = (
    Gauge("stream-bytes", "an idle stream with a session, its state not counted", "B", 4096, _stream_bytes),
    Gauge("connection-bytes", "a connection without a stream", "B", None, _connection_bytes),
    Gauge("opened-at-once", "refused, of streams opened at once over 64 connections", "", 0, _refused),
)

NAMES = tuple(row.name for row in (*LOADS, *GAUGES))


def compare(
    bench: Bench, sides: Sequence[str], only: Sequence[str] = (), say: Any = print
) -> dict[str, dict[str, Any]]:
    """Measure every load and gauge.

    Args:
        bench: On what, how long and how often.
        sides: Which of `SIDES`.
        only: What the names of rows begin with; empty: all.
        say: Told of each row, as `print` is.

    Returns:
        In `loads`, by name: `what`, `goals`, and the runs of each side in `sides`, one a round. In `gauges`:
        `what`, `unit`, `goal`, and the values of each service in `sides`.
    """
    _allow_open_files()
    asked = {name for name in NAMES if not only or name.startswith(tuple(only))}
    found: dict[str, dict[str, Any]] = {"loads": {}, "gauges": {}}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(_server(bench, name)) for name in sides if name != "bare"}
        for load in (each for each in LOADS if each.name in asked):
            say(f"... {load.what}", flush=True)
            with load.sides(bench, servers) as able:
                runs = _rounds({name: able[name] for name in sides if name in able}, bench)
            found["loads"][load.name] = {"what": load.what, "goals": load.goals, "sides": runs}
    small = replace(bench, directory=bench.directory / "small", hidden_size=SMALL_HIDDEN_SIZE)
    for gauge in (each for each in GAUGES if each.name in asked):
        say(f"... {gauge.what}", flush=True)
        values = {}
        for name in filter(SERVICES.__contains__, sides):
            with _server(small, name, **ROOM) as server:
                values[name] = gauge.values(small, server)
        found["gauges"][gauge.name] = {
            "what": gauge.what, "unit": gauge.unit, "goal": gauge.goal, "sides": values,
        }  # fmt: skip
    return found


def _rounds(sides: Mapping[str, Side], bench: Bench) -> dict[str, list[dict[str, Any]]]:
    """Run every side once a round; the side that begins changes from round to round."""
    plan = bench.plan
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for side in sides.values():
        side(plan.warm_up_seconds)
    order = list(sides)
    for _ in range(plan.pairs):
        for name in order:
            run: Run = sides[name](plan.seconds)
            runs[name].append(run.to_json())
        order = [*order[1:], order[0]]
    return runs


def _server(bench: Bench, name: str, **settings: object) -> AbstractContextManager[Server]:
    if name == "echo":
        return processes.echo()
    if name == "before":
        return processes.installed_service(before.python(), bench.models(), **settings)
    return processes.service(bench.models(), transport=name, **settings)


def _allow_open_files() -> None:
    """Raise the limit of open files as far as it goes, for us and our servers: connections are thousands."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"
