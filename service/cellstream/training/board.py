"""A run as TensorBoard shows it: `tensorboard --logdir runs`.

Written without a thread, so that a full disk is met where it is met, and from the history at the beginning: a
run that was killed and goes on has each point once, whatever reads the file.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import RecordWriter
from torch.utils.tensorboard.summary import scalar, text

from cellstream.training.history import Evaluation, History, Point


class Board:
    """Writes the event file of a run; its steps are tokens.

    Args:
        directory: Where; event files that are there are replaced.
        history: What the run has seen already.

    Raises:
        OSError: The disk is full, or not ours; so with every method.
    """

    def __init__(self, directory: Path, history: History) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob("events.out.tfevents.*"):
            old.unlink()
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        # Unbuffered: one write an event, and nothing left to be written when the disk has become full.
        self._records = RecordWriter((directory / name).open("wb", buffering=0))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        for point in history.training:
            self.add_point(point)
        for evaluation in history.validation:
            self.add_evaluation(evaluation)

    def add_point(self, point: Point) -> None:
        """Show a stretch of training."""
        values = {
            "loss/training": point.loss,
            "bits_per_character/training": point.bits,
            "learning_rate": point.learning_rate,
            "gradient_norm": point.gradient_norm,
            "tokens_per_second": point.tokens_per_second,
        }
        for tag, value in values.items():
            self._add(point, scalar(tag, value))  # type: ignore[no-untyped-call]

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Show a measurement on the validation text, and what the model writes."""
        self._add(evaluation, scalar("bits_per_character/validation", evaluation.bits))  # type: ignore[no-untyped-call]
        # Four spaces a line: TensorBoard reads Markdown, and verses must keep their lines.
        verses = "\n".join(f"    {line}" for line in evaluation.sample.splitlines())
        self._add(evaluation, text("sample", verses))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _add(self, at: Point | Evaluation, summary: Summary) -> None:
        self._write(Event(wall_time=at.wall_time, step=at.tokens, summary=summary))

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
