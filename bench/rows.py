"""The rows of the bench: what is measured, against what, and the goal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import processes
from bench.bare import Bare
from bench.engine import EngineLoad
from bench.measure import Side
from bench.traffic import traffic
from cellstream.repository import ModelVersion, Repository

SEED = 20_261_124


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        name: What `--only` takes.
        what: What is measured.
        against: Its floor.
        goal: The least ratio that the design asks for.
        sides: Given the directory of a model, both of them, ready to run.
    """

    name: str
    what: str
    against: str
    goal: float
    sides: Callable[[Path], AbstractContextManager[tuple[Side, Side]]]


def _engine(sessions: int, feed_tokens: int) -> Callable[[Path], AbstractContextManager[tuple[Side, Side]]]:
    @contextmanager
    def sides(models: Path) -> Iterator[tuple[Side, Side]]:
        version = _version(models)
        load = EngineLoad(version, sessions=sessions, feed_tokens=feed_tokens, seed=SEED)
        call = load.engine.turn()
        assert call is not None, "everybody waits"
        yield load.run, _bare(version, call.rows, call.steps).run

    return sides


def _service(streams: int, feeds: int) -> Callable[[Path], AbstractContextManager[tuple[Side, Side]]]:
    @contextmanager
    def sides(models: Path) -> Iterator[tuple[Side, Side]]:
        bare = _bare(_version(models), 64, 1)
        with (
            processes.service(models) as server,
            traffic(server, streams=streams, feeds=feeds, seed=SEED) as ours,
        ):
            yield ours.run, bare.run

    return sides


def _ping_pong(streams: int) -> Callable[[Path], AbstractContextManager[tuple[Side, Side]]]:
    @contextmanager
    def sides(models: Path) -> Iterator[tuple[Side, Side]]:
        with (
            processes.service(models) as server,
            processes.echo() as echo,
            traffic(server, streams=streams, feeds=1, seed=SEED) as ours,
            traffic(echo, streams=streams, feeds=1, seed=SEED, echo=True) as bare,
        ):
            yield ours.run, bare.run

    return sides


ORT = "bare ONNX Runtime, same graph and call, state in place"
ORT_64 = "bare ONNX Runtime at B = 64, state in place"

ROWS = (
    Row("engine-64", "engine, 64 sessions with tokens waiting", ORT, 0.90, _engine(64, 1024)),
    Row("engine-256", "engine, 256 sessions with tokens waiting", ORT, 0.90, _engine(256, 1024)),
    Row("engine-loop", "engine, closed loop, 64 sessions x 1 token", ORT, 0.80, _engine(64, 1)),
    Row("service-8x64", "service, 8 streams x 64 feeds a message", ORT_64, 0.75, _service(8, 64)),
    Row("service-1x64", "service, 1 stream x 64 feeds a message", ORT_64, 0.60, _service(1, 64)),
    Row(
        "service-64x1", "service, 64 streams x 1 token, ping-pong", "bare grpc.aio echo", 0.75, _ping_pong(64)
    ),
)


def _version(models: Path) -> ModelVersion:
    (version,) = Repository(models).load_all()
    return version


def _bare(version: ModelVersion, rows: int, steps: int) -> Bare:
    vocabulary = version.manifest.input.vocabulary_size
    return Bare(version, np.random.default_rng(SEED).integers(0, vocabulary, (steps, rows)))
