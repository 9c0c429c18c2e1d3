"""A run's history on disk as it grows: `log.jsonl` for programs, and event files for TensorBoard.

Both are written anew from the history when a run goes on, so each measurement is there once.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Self

from cellstream.training.board import Board
from cellstream.training.history import Evaluation, History, Point


class Journal:
    """Writes a run's history.

    Args:
        directory: Of the run: `log.jsonl` and `tensorboard/` are there.
        history: Of the run; it grows by what is added.

    Raises:
        OSError: The disk is full, or not ours; so with every method.
    """

    def __init__(self, directory: Path, history: History) -> None:
        self._history = history
        self._path = directory / "log.jsonl"
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(map(_line, history.validation)), encoding="utf-8")
        partial.replace(self._path)
        self._board = Board(directory / "tensorboard", history)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._board.close()

    def add_point(self, point: Point) -> None:
        """Write a stretch of training."""
        self._history.training.append(point)
        self._board.add_point(point)

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Write a measurement."""
        self._history.validation.append(evaluation)
        with self._path.open("a", encoding="utf-8") as log:
            log.write(_line(evaluation))
        self._board.add_evaluation(evaluation)


def _line(evaluation: Evaluation) -> str:
    values = {
        "tokens_seen": evaluation.tokens,
        "seconds": evaluation.seconds,
        "validation_bits_per_character": evaluation.bits,
        "training_bits_per_character": evaluation.training_bits,
        "sample": evaluation.sample,
    }
    return json.dumps(values, ensure_ascii=False) + "\n"
