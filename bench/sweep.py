"""How cost grows: with sessions, streams, feeds a message, idle sessions, layers and units.

A panel is one axis; its lines are measured in rounds, so that a noisy minute touches all of them alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import processes
from bench.engine import EngineLoad
from bench.idle import idle_sessions, room_for
from bench.measure import Plan, Run, Side
from bench.rows import SEED, Bench, bare
from bench.traffic import Traffic
from cellstream.repository import ModelVersion, Repository
from cellstream.settings import Settings
from cellstream.testing import write_model

Lines = dict[str, dict[int, Side]]
"""By a line's name and its place on the axis, what is measured there."""


@dataclass(frozen=True, slots=True)
class Range:
    """What is swept: the places on each axis, from quick ones in tests to those of the docs."""

    sessions: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    streams: tuple[int, ...] = (1, 4, 16, 64, 256)
    feeds: tuple[int, ...] = (1, 4, 16, 64, 256)
    idle: tuple[int, ...] = (0, 1_000, 10_000, 100_000)
    layers: tuple[int, ...] = (1, 2, 3, 4)
    units: tuple[int, ...] = (64, 128, 256, 512)


@contextmanager
def _sessions(bench: Bench, places: Range) -> Iterator[Lines]:
    """One token of every session a step, closed loop."""
    version, most = bench.version(), Settings().batch_rows_max
    yield {
        "engine": {each: _loop(version, each) for each in places.sessions},
        "bare ONNX Runtime": {each: bare(version, min(each, most), 1).run for each in places.sessions},
    }


@contextmanager
def _streams(bench: Bench, places: Range) -> Iterator[Lines]:
    """One token a message, ping-pong."""
    with ExitStack() as stack:
        server = stack.enter_context(processes.service(bench.models()))
        echo = stack.enter_context(processes.echo())

        def line(of: processes.Server, *, is_echo: bool) -> dict[int, Side]:
            return {
                each: stack.enter_context(Traffic(of, streams=each, feeds=1, seed=SEED, echo=is_echo)).run
                for each in places.streams
            }

        yield {"service": line(server, is_echo=False), "bare gRPC echo": line(echo, is_echo=True)}


@contextmanager
def _feeds(bench: Bench, places: Range) -> Iterator[Lines]:
    """One stream, and its message feeds so many sessions."""
    with ExitStack() as stack:
        server = stack.enter_context(processes.service(bench.models()))
        yield {
            f"service, {streams} stream{'s' if streams > 1 else ''}": {
                each: stack.enter_context(Traffic(server, streams=streams, feeds=each, seed=SEED)).run
                for each in places.feeds
            }
            for streams in (1, 8)
        }


@contextmanager
def _idle(bench: Bench, places: Range) -> Iterator[Lines]:
    """1 stream × 64 feeds, beside sessions that are held and not fed."""
    with ExitStack() as stack:

        def side(idle: int) -> Side:
            server = stack.enter_context(processes.service(bench.models(), **room_for(idle)))
            stack.enter_context(idle_sessions(server, idle, seed=SEED))
            return stack.enter_context(Traffic(server, streams=1, feeds=64, seed=SEED)).run

        yield {"service, 1 stream × 64 feeds": {idle: side(idle) for idle in places.idle}}


@contextmanager
def _layers(bench: Bench, places: Range) -> Iterator[Lines]:
    """64 sessions with tokens waiting, layers of 256 units (or the bench's)."""
    yield _models({each: (each, bench.hidden_size) for each in places.layers}, bench.directory)


@contextmanager
def _units(bench: Bench, places: Range) -> Iterator[Lines]:
    """64 sessions with tokens waiting, two layers."""
    yield _models({each: (2, each) for each in places.units}, bench.directory)


def _models(sizes: dict[int, tuple[int, int]], directory: Path) -> Lines:
    """The engine and its floor on a model of each size, by (layers, units)."""
    lines: Lines = {"engine": {}, "bare ONNX Runtime": {}}
    for place, (layers, units) in sizes.items():
        models = directory / f"{layers}x{units}"
        if not models.exists():
            write_model(models, name="bench", layers=layers, hidden_size=units, embedding_size=64, seed=SEED)
        (version,) = Repository(models).load_all()
        load = EngineLoad(version, sessions=64, feed_tokens=1024, seed=SEED)
        call = load.engine.turn()
        assert call is not None, "everybody waits"
        lines["engine"][place] = load.run
        lines["bare ONNX Runtime"][place] = bare(version, call.rows, call.steps).run
    return lines


def _loop(version: ModelVersion, sessions: int) -> Side:
    return EngineLoad(version, sessions=sessions, feed_tokens=1, seed=SEED).run


PANELS = {
    "sessions": ("sessions that step together, one token each", _sessions),
    "streams": ("streams, one token a message", _streams),
    "feeds": ("feeds in a message", _feeds),
    "idle": ("idle sessions beside 64 busy ones", _idle),
    "layers": ("layers of 256 units, 64 sessions", _layers),
    "units": ("units of each of 2 layers, 64 sessions", _units),
}


def sweep(bench: Bench, places: Range, say: Any = print) -> dict[str, Any]:
    """Measures every panel.

    Returns:
        For each panel its `axis`, and for each of its lines, by place, the runs there.
    """
    found: dict[str, Any] = {}
    for name, (axis, lines_of) in PANELS.items():
        say(f"... {axis}", flush=True)
        with lines_of(bench, places) as lines:
            found[name] = {"axis": axis, "lines": _measure(lines, bench.plan)}
    return found


def _measure(lines: Lines, plan: Plan) -> dict[str, dict[str, list[dict[str, Any]]]]:
    sides = [(name, place, side) for name, line in lines.items() for place, side in line.items()]
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {
        name: {str(place): [] for place in line} for name, line in lines.items()
    }
    for _, _, side in sides:
        side(plan.warm_up_seconds)
    for _ in range(plan.pairs):
        for name, place, side in sides:
            run: Run = side(plan.seconds)
            runs[name][str(place)].append(run.to_json())
    return runs
