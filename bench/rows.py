"""The rows of the bench: what is measured, against what, and the goal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench import processes
from bench.bare import Bare
from bench.engine import EngineLoad
from bench.idle import held_bytes, idle_sessions, kept_bytes, room_for
from bench.measure import Plan, Side, compare
from bench.traffic import Traffic
from cellstream.errors import RecipeInvalid
from cellstream.repository import ModelVersion, Repository
from cellstream.repository.manifest import WeightsDtype
from cellstream.testing import write_model

SEED = 20_261_124


@dataclass(frozen=True, slots=True)
class Bench:
    """What all rows are measured on.

    Attributes:
        directory: Where models are written.
        hidden_size: Units of each of their two layers.
        idle_sessions: How many sessions are idle, where some are.
        plan: How long and how often.
        opened_streams: How many streams are opened at once, where some are.
        idle_streams: How many streams are idle, where some are.
    """

    directory: Path
    hidden_size: int
    idle_sessions: int
    plan: Plan
    opened_streams: int = 5000
    idle_streams: int = 12_000

    def models(self, weights_dtype: WeightsDtype = "float32") -> Path:
        """A directory with the model, random weights over 256 tokens."""
        models = self.directory / weights_dtype
        if not models.exists():
            write_model(
                models,
                name="bench",
                hidden_size=self.hidden_size,
                embedding_size=64,
                weights_dtype=weights_dtype,
                seed=SEED,
            )
        return models

    def version(self, weights_dtype: WeightsDtype = "float32") -> ModelVersion:
        """The model."""
        (version,) = Repository(self.models(weights_dtype)).load_all()
        return version


class Unavailable(Exception):
    """This machine cannot run a row; the message says why."""


Sides = Callable[[Bench], AbstractContextManager[tuple[Side, Side]]]


@dataclass(frozen=True, slots=True)
class Row:
    """Two sides in turn: what counts is the ratio of their tokens per second.

    Attributes:
        name: What `--only` takes.
        what: What is measured.
        against: Its floor.
        goal: The least ratio that the design asks for; None: it asks for none.
        sides: Both of them, ready to run.
    """

    name: str
    what: str
    against: str
    goal: float | None
    sides: Sides

    def measure(self, bench: Bench) -> dict[str, Any]:
        """What `compare` returns."""
        with self.sides(bench) as (ours, floor):
            return compare(ours, floor, bench.plan)


@dataclass(frozen=True, slots=True)
class Gauge:
    """A number by itself.

    Attributes:
        name: What `--only` takes.
        what: What is measured.
        against: What it is counted from.
        goal: The most that the design allows.
        unit: Of the number.
        values: Measures it a few times.
    """

    name: str
    what: str
    against: str
    goal: float
    unit: str
    values: Callable[[Bench], list[float]]

    def measure(self, bench: Bench) -> dict[str, Any]:
        """The values and their median."""
        values = self.values(bench)
        return {"median": float(np.median(values)), "values": values, "unit": self.unit}


def bare(version: ModelVersion, rows: int, steps: int) -> Bare:
    """The floor: ONNX Runtime with so many rows and steps a call."""
    vocabulary = version.manifest.input.vocabulary_size
    return Bare(version, np.random.default_rng(SEED).integers(0, vocabulary, (steps, rows)))


def _engine(sessions: int, feed_tokens: int) -> Sides:
    @contextmanager
    def sides(bench: Bench) -> Iterator[tuple[Side, Side]]:
        version = bench.version()
        load = EngineLoad(version, sessions=sessions, feed_tokens=feed_tokens, seed=SEED)
        call = load.engine.turn()
        assert call is not None, "everybody waits"
        yield load.run, bare(version, call.rows, call.steps).run

    return sides


def _fast(sessions: int) -> Sides:
    @contextmanager
    def sides(bench: Bench) -> Iterator[tuple[Side, Side]]:
        def load(numerics: Literal["exact", "fast"]) -> Side:
            version = bench.version()
            return EngineLoad(version, sessions=sessions, feed_tokens=1024, seed=SEED, numerics=numerics).run

        yield load("fast"), load("exact")

    return sides


def _int8(sessions: int) -> Sides:
    @contextmanager
    def sides(bench: Bench) -> Iterator[tuple[Side, Side]]:
        def load(weights_dtype: WeightsDtype) -> Side:
            version = bench.version(weights_dtype)
            return EngineLoad(version, sessions=sessions, feed_tokens=1024, seed=SEED).run

        yield load("int8"), load("float32")

    return sides


def _service(streams: int, feeds: int) -> Sides:
    @contextmanager
    def sides(bench: Bench) -> Iterator[tuple[Side, Side]]:
        floor = bare(bench.version(), 64, 1)
        with (
            processes.service(bench.models()) as server,
            Traffic(server, streams=streams, feeds=feeds, seed=SEED) as ours,
        ):
            yield ours.run, floor.run

    return sides


@contextmanager
def _ping_pong(bench: Bench) -> Iterator[tuple[Side, Side]]:
    with (
        processes.service(bench.models()) as server,
        processes.echo() as echo,
        Traffic(server, streams=64, feeds=1, seed=SEED) as ours,
        Traffic(echo, streams=64, feeds=1, seed=SEED, echo=True) as floor,
    ):
        yield ours.run, floor.run


@contextmanager
def _beside_idle(bench: Bench) -> Iterator[tuple[Side, Side]]:
    with (
        processes.service(bench.models(), **room_for(bench.idle_sessions)) as crowded,
        processes.service(bench.models()) as empty,
        idle_sessions(crowded, bench.idle_sessions, seed=SEED),
        Traffic(crowded, streams=1, feeds=64, seed=SEED) as ours,
        Traffic(empty, streams=1, feeds=64, seed=SEED) as floor,
    ):
        yield ours.run, floor.run


def _idle(bytes_of: Callable[..., list[float]]) -> Callable[[Bench], list[float]]:
    def values(bench: Bench) -> list[float]:
        states = bench.version().manifest.states
        state_bytes = sum(4 * int(np.prod(state.shape)) for state in states)
        with processes.service(bench.models(), **room_for(bench.idle_sessions)) as server:
            return bytes_of(server, bench.idle_sessions, state_bytes, seed=SEED)

    return values


@contextmanager
def _precisions(bench: Bench) -> Iterator[tuple[Side, Side]]:
    from bench.training import TrainingLoad  # here: PyTorch takes seconds to import

    def load(precision: Literal["float32", "bfloat16"]) -> Side:
        return TrainingLoad(hidden_size=bench.hidden_size, precision=precision, seed=SEED).run

    try:
        ours = load("bfloat16")
    except RecipeInvalid as error:
        raise Unavailable(error.message) from None
    yield ours, load("float32")


ORT = "bare ONNX Runtime, same graph and call, state in place"
ORT_64 = "bare ONNX Runtime at B = 64, state in place"
STATE = "its raw state"
EXACT = "the same in exact numerics"
FLOAT32 = "the same in float32"

ROWS: tuple[Row | Gauge, ...] = (
    Row("engine-64", "engine, 64 sessions with tokens waiting", ORT, 0.90, _engine(64, 1024)),
    Row("engine-256", "engine, 256 sessions with tokens waiting", ORT, 0.90, _engine(256, 1024)),
    Row("engine-loop", "engine, closed loop, 64 sessions × 1 token", ORT, 0.80, _engine(64, 1)),
    Row("service-8x64", "service, 8 streams × 64 feeds a message", ORT_64, 0.75, _service(8, 64)),
    Row("service-1x64", "service, 1 stream × 64 feeds a message", ORT_64, 0.60, _service(1, 64)),
    Row("service-64x1", "service, 64 streams × 1 token, ping-pong", "bare grpc.aio echo", 0.75, _ping_pong),
    Gauge("idle-kept", "an idle session with a name, its stream gone", STATE, 512, "B", _idle(kept_bytes)),
    Gauge("idle-held", "an idle session that a stream holds", STATE, 512, "B", _idle(held_bytes)),
    Row(
        "idle-step",
        "service, 1 stream × 64 feeds, beside idle sessions",
        "the same without them",
        1 / 1.05,
        _beside_idle,
    ),
    Row("fast-1", "engine in fast numerics, long feeds of 1 session", EXACT, None, _fast(1)),
    Row("fast-8", "engine in fast numerics, long feeds of 8 sessions", EXACT, None, _fast(8)),
    Row("fast-64", "engine in fast numerics, long feeds of 64 sessions", EXACT, None, _fast(64)),
    Row("int8-1", "engine, weights in 8 bits, 1 session with tokens waiting", FLOAT32, None, _int8(1)),
    Row("int8-64", "engine, weights in 8 bits, 64 sessions with tokens waiting", FLOAT32, None, _int8(64)),
    Row(
        "train-bf16",
        "training in bfloat16, 64 windows of 64 tokens, one thread",
        "float32",
        None,
        _precisions,
    ),
)
