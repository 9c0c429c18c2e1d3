"""Small models with random weights, of every cell and kind of input."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from cellstream.cells import StackConfig
from cellstream.cells.checkpoint import Weights
from cellstream.export.building import build

KINDS = tuple(itertools.product(("rnn", "lstm", "gru"), ("tokens", "values")))


def _config(cell: str, kind: str, **sizes: int) -> StackConfig:
    values: dict[str, Any] = {
        "cell": cell,
        "input": kind,
        "layers": 3,
        "hidden_size": 10,
        "embedding_size": 6,
        "vocabulary_size" if kind == "tokens" else "features": 7,
    }
    return StackConfig(**(values | sizes))


@pytest.fixture(scope="session", params=KINDS, ids="-".join)
def config(request: pytest.FixtureRequest) -> StackConfig:
    """Three layers of each cell, for each kind of input; odd sizes, so that no two axes can be mixed up."""
    return _config(*request.param)


@pytest.fixture(scope="session", params=[kind for kind in KINDS if kind[0] != "rnn"], ids="-".join)
def gated(request: pytest.FixtureRequest) -> StackConfig:
    """Those of them that have gates to show."""
    return _config(*request.param)


@pytest.fixture(scope="session")
def lstm() -> StackConfig:
    """One model where the cell is not what matters."""
    return _config("lstm", "tokens")


@pytest.fixture(scope="session")
def random_weights() -> Callable[..., Weights]:
    """Makes weights that move every gate well away from its middle, and amplify little."""

    def make(config: StackConfig, seed: int = 0) -> Weights:
        random = np.random.default_rng(seed)
        return {
            name: random.normal(0, 0.4, shape).astype(np.float32)
            for name, shape in config.weight_shapes().items()
        }

    return make


@pytest.fixture
def built(random_weights: Callable[..., Weights], tmp_path: Path) -> Callable[[StackConfig], Path]:
    """Writes the graphs of a model with random weights; the folder they are in."""

    def build_into_folder(config: StackConfig) -> Path:
        build(config, random_weights(config)).write(tmp_path)
        return tmp_path

    return build_into_folder


@pytest.fixture(scope="session")
def run_graph() -> Callable[..., dict[str, np.ndarray]]:
    """Runs a graph of a folder as ONNX Runtime does by default; all its outputs by name."""

    def run(file: Path, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, given), strict=True))

    return run
