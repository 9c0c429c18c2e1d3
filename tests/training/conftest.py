"""A text and a recipe of a second."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from cellstream.cells.threads import threads_set

RECIPE = """
name = "tale"
seed = 3

[data]
text = "tale.txt"

[model]
cell = "lstm"
layers = 2
hidden_size = 16
embedding_size = 8
dropout = 0.1

[training]
tokens = 12_800
batch_rows = 8
window = 16
learning_rate = 2e-2
precision = "float32"
threads = 1
evaluations = 4
"""

TALE = "Once upon a time there was a king. " * 500


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make tiny updates slow where other tests share the cores."""
    with threads_set(1):
        yield


@pytest.fixture(scope="session")
def write_recipe() -> Callable[[Path], Path]:
    """Writes the recipe, beside its text, into a folder."""

    def write(folder: Path) -> Path:
        (folder / "tale.txt").write_text(TALE, encoding="utf-8")
        path = folder / "tale.toml"
        path.write_text(RECIPE, encoding="utf-8")
        return path

    return write


@pytest.fixture
def recipe_path(tmp_path: Path, write_recipe: Callable[[Path], Path]) -> Path:
    """The recipe, beside its text."""
    return write_recipe(tmp_path)


@pytest.fixture
def console() -> Console:
    """A console that is no terminal; what it was told is in `console.file.getvalue()`."""
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def ticking_clock() -> Callable[[float], Callable[[], float]]:
    """Make clocks that go forward by a fixed step at each look."""

    def make(step_seconds: float) -> Callable[[], float]:
        now = 0.0

        def clock() -> float:
            nonlocal now
            now += step_seconds
            return now

        return clock

    return make
