"""A real server in your test: a free port, models that are made in milliseconds, time that you move.

    async with running_server(write_model(tmp_path)) as server:
        async with Client(server.target) as client:
            ...

`write_model` needs `cellstream[train]`'s onnx, but not torch.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellstream.api import Server
from cellstream.cells.config import CellKind, InputKind, StackConfig
from cellstream.repository.manifest import WeightsDtype
from cellstream.settings import Settings
from cellstream.text import ByteTokenizer, CharacterTokenizer


class ManualClock:
    """A clock that stands still until it is moved.

    Args:
        now: Seconds.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time, in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        assert seconds >= 0, "time does not go back"
        self.now += seconds

    def __repr__(self) -> str:
        return f"<ManualClock {self.now:g} s>"


@dataclass(frozen=True)
class RunningServer:
    """A server in this process.

    Attributes:
        target: `host:port` for a client.
        metrics_port: Where /metrics is, on the same host.
        server: It.
    """

    target: str
    metrics_port: int
    server: Server

    def sweep(self) -> None:
        """Look for what has expired or waited too long, now: for a clock that you have just moved."""
        self.server.sweep()


@asynccontextmanager
async def running_server(
    models: Path, *, clock: ManualClock | None = None, **settings: Any
) -> AsyncIterator[RunningServer]:
    """Serve `models` on free ports of this machine until the block is left.

    Args:
        models: Directory of <name>/<version>/ folders.
        clock: Moves only when you move it; None: the real one.
        **settings: Any of `cellstream.settings.Settings`.

    Raises:
        SetupError: The server cannot be started.
    """
    given: dict[str, Any] = {"port": 0, "metrics_port": 0, "drain_seconds": 2.0, "slots_max": 64, **settings}
    server = await Server.start(
        Settings(models=models, **given), clock=time.perf_counter if clock is None else clock
    )
    try:
        yield RunningServer(f"{server.host}:{server.port}", server.metrics_port, server)
    finally:
        await server.stop()


def write_model(
    models: Path,
    *,
    name: str = "tiny",
    version: int = 1,
    cell: CellKind = "lstm",
    input: InputKind = "tokens",
    layers: int = 2,
    hidden_size: int = 16,
    embedding_size: int = 8,
    vocabulary_size: int = 256,
    features: int = 3,
    weights_dtype: WeightsDtype = "float32",
    seed: int = 0,
) -> Path:
    """Write a version of a model with random weights; bytes are its tokens if it has 256.

    Returns:
        `models`, so that it can be handed to `running_server`.
    """
    from cellstream.export.writing import write_version  # here: it needs onnx, which serving does not

    tokens = input == "tokens"
    config = StackConfig(
        cell=cell,
        layers=layers,
        hidden_size=hidden_size,
        input=input,
        embedding_size=embedding_size,
        vocabulary_size=vocabulary_size if tokens else None,
        features=None if tokens else features,
    )
    random = np.random.default_rng(seed)
    bound = 2.0 / hidden_size**0.5
    weights = {
        key: random.uniform(-bound, bound, shape).astype(np.float32)
        for key, shape in config.weight_shapes().items()
    }
    tokenizer = None
    if tokens:
        alphabet = "".join(chr(ord(" ") + place) for place in range(vocabulary_size))
        tokenizer = (ByteTokenizer() if vocabulary_size == 256 else CharacterTokenizer(alphabet)).to_json()
    write_version(
        models,
        config,
        weights,
        name=name,
        version=version,
        weights_dtype=weights_dtype,
        tokenizer_json=tokenizer,
    )
    return models
