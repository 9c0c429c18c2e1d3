"""One training run: what it has learned so far, the best of it, and what it goes on from when killed."""

from __future__ import annotations

import dataclasses
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellstream.cells.checkpoint import Checkpoint, Record, save_checkpoint
from cellstream.cells.stack import FusedStack, numpy_weights
from cellstream.errors import TrainingFailed
from cellstream.training.data import Splits, windows
from cellstream.training.display import Display
from cellstream.training.history import Evaluation, History, Point
from cellstream.training.interrupts import Interrupts
from cellstream.training.journal import Journal
from cellstream.training.learner import Learner
from cellstream.training.measure import bits_per_character
from cellstream.training.pace import Pace
from cellstream.training.recipe import Recipe
from cellstream.training.saves import Saves
from cellstream.training.schedule import Budget, Schedule
from cellstream.training.writing import write_sample

VALIDATION_ROWS = 16
"""Parts of the validation text that are read at the same time: a second instead of ten each time."""

MEASURED_STEPS_MIN = 512
"""Fewest tokens of such a part: what each loses by an empty state at its beginning must stay small."""

PROMPT_TOKENS = 200
"""Of the validation text, that samples go on from: whoever writes must know where it is."""

POINTS = 200
"""Points of the training curve in the report."""


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        updates: Windows learned from.
        tokens: Tokens learned from.
        seconds: Spent, in all processes that the run had.
        evaluated: Evaluations that are due no more.
        since_best: Evaluations since the best one.
        losses: Of the windows since the last point of the curve, in nats a token.
        norms: Of their gradients.
        stretch_seconds: What learning from them took.
        is_finished: Whether the best checkpoint has been measured and written up.
    """

    updates: int = 0
    tokens: int = 0
    seconds: float = 0.0
    evaluated: int = 0
    since_best: int = 0
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    stretch_seconds: float = 0.0
    is_finished: bool = False


class Run:
    """One run, at its beginning until `restore` is called.

    Args:
        recipe: What to do.
        splits: The texts.
        directory: Where checkpoint, saves and journal go.
        model: What learns, as it is before the first update.
        pace: How.
        identity: All that must be the same when the run goes on.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        recipe: Recipe,
        splits: Splits,
        directory: Path,
        *,
        model: FusedStack,
        pace: Pace,
        identity: dict[str, Any],
        clock: Callable[[], float],
    ) -> None:
        self.directory, self.checkpoint_directory = directory, directory / "checkpoint"
        self.pace, self.history, self.progress = pace, History(), Progress()
        self.best: Checkpoint | None = None
        self._recipe, self._splits, self._model, self._identity = recipe, splits, model, identity
        training = recipe.training
        self._learner = Learner(model, training, pace.precision)
        self._budget = Budget(training.tokens, training.minutes * 60 if training.minutes else None)
        self._schedule = Schedule(training.learning_rate, training.warmup_ratio, training.final_ratio)
        self._saves = Saves(directory / "saves")
        self._clock = clock
        self._begun = self._saved_at = clock()
        self._saved_tokens = 0

    def learn(self, display: Display, interrupts: Interrupts) -> None:
        """Learn until the budget or the patience is spent, keeping saves and the best checkpoint on disk.

        Raises:
            Stopped: `interrupts` has a wish; the run is saved as it stands.
            TrainingFailed: The loss or the weights are not finite.
            OSError: The disk is full, or not ours.
        """
        progress, training = self.progress, self._recipe.training
        if self.best is not None:
            # The disk may hold a better one of updates that a kill undid, and that are now made again.
            save_checkpoint(self.checkpoint_directory, self.best)
        self.save()
        read = windows(
            self._splits.training.ids,
            rows=training.batch_rows,
            window=training.window,
            seed=self._recipe.seed,
        )
        with Journal(self.directory, self.history) as journal, interrupts.held_back():
            # The order of reading follows from the seed: the place in it is the number of windows read.
            for window in islice(read, progress.updates, None):
                seconds = self._clock() - self._begun
                # However long the preparations took, one window is learned from.
                spent = self._budget.spent(progress.tokens, seconds) if progress.updates else 0.0
                if spent * training.evaluations >= progress.evaluated + 1:
                    progress.evaluated = int(spent * training.evaluations)
                    display.say(self._evaluate(journal, seconds))
                    self.save()
                if spent >= 1:
                    return
                if training.patience is not None and progress.since_best >= training.patience:
                    display.say(f"Stopped early: no better for {training.patience} evaluations.")
                    return
                begun = self._clock()
                rate = self._schedule.learning_rate(spent)
                update = self._learner.learn(window, rate)
                progress.updates += 1
                progress.tokens += window.inputs.size
                progress.losses.append(update.loss)
                progress.norms.append(update.gradient_norm)
                now = self._clock()
                progress.stretch_seconds += now - begun
                if spent * POINTS >= len(self.history.training):
                    point = self._point(now - self._begun, rate)
                    journal.add_point(point)
                    display.show(
                        spent=spent,
                        nats=point.loss,
                        bits=point.bits,
                        tokens=point.tokens,
                        seconds=point.seconds,
                    )
                if interrupts.wish is not None:
                    self.save()
                    raise interrupts.wish
                if now - self._saved_at >= training.save_minutes * 60:
                    self.save()

    def kept(self) -> str:
        """Say what is on disk."""
        if self.best is None:
            return "This run has kept no checkpoint yet."
        metrics = self.best.record.metrics
        return (
            f"The best checkpoint so far is at {self.checkpoint_directory}: token "
            f"{metrics['tokens_at_best']:,.0f}, {metrics['validation_bits_per_character']:.3f} bits per "
            "character on the validation text."
        )

    def way_on(self) -> str:
        """Say how one can go on."""
        return (
            f"--resume goes on from token {self._saved_tokens:,}; a recipe that has changed needs --restart, "
            "or another name."
        )

    def finish(self, checkpoint: Checkpoint, beside: Mapping[str, bytes]) -> None:
        """Keep the best checkpoint as it was measured and written up, and be done.

        Raises:
            OSError: The disk is full, or not ours; the checkpoint before is whole.
        """
        self.best = checkpoint
        save_checkpoint(self.checkpoint_directory, checkpoint, beside)
        self.progress.is_finished = True
        self.save()

    def save(self) -> None:
        """Put all that the run goes on from on disk.

        Raises:
            OSError: The disk is full, or not ours; the save before is whole.
        """
        self._saved_at = self._clock()
        if not self.progress.is_finished:
            self.progress.seconds = self._saved_at - self._begun
        best = self.best
        content = {
            "identity": self._identity,
            "pace": dataclasses.asdict(self.pace),
            "versions": _versions(),
            "progress": dataclasses.asdict(self.progress),
            "history": self.history.to_plain(),
            "learner": self._learner.saved(),
            "best": best
            and {
                "weights": {name: torch.from_numpy(weight) for name, weight in best.weights.items()},
                "record": dataclasses.asdict(best.record),
            },
            "dice": {"cpu": torch.get_rng_state(), "cuda": _cuda_dice()},
        }
        self._saves.write(self.progress.updates, content)
        self._saved_tokens = self.progress.tokens

    def restore(self, saved: dict[str, Any]) -> None:
        """Stand where a save stood; the inverse of `save`.

        Args:
            saved: As `Saves.read` gives it, of a run of the same identity.
        """
        self.progress = Progress(**saved["progress"])
        self.history = History.from_plain(saved["history"])
        self._learner.restore(saved["learner"])
        if saved["best"] is not None:
            self.best = Checkpoint(
                config=self._model.config,
                weights={name: weight.numpy() for name, weight in saved["best"]["weights"].items()},
                tokenizer=self._splits.tokenizer,
                record=Record(**saved["best"]["record"]),
            )
        torch.set_rng_state(saved["dice"]["cpu"])
        if saved["dice"]["cuda"]:
            torch.cuda.set_rng_state_all(saved["dice"]["cuda"])
        self._begun = self._clock() - self.progress.seconds

    def _point(self, seconds: float, learning_rate: float) -> Point:
        """Close a stretch of training."""
        progress = self.progress
        losses, norms = progress.losses, progress.norms
        loss = sum(losses) / len(losses)
        tokens = len(losses) * self._recipe.training.batch_rows * self._recipe.training.window
        point = Point(
            tokens=progress.tokens,
            seconds=seconds,
            wall_time=time.time(),
            loss=loss,
            bits=loss * self._splits.training.tokens_per_character / math.log(2),
            learning_rate=learning_rate,
            gradient_norm=sum(norms) / len(norms),
            tokens_per_second=tokens / progress.stretch_seconds,
        )
        progress.losses, progress.norms, progress.stretch_seconds = [], [], 0.0
        return point

    def _evaluate(self, journal: Journal, seconds: float) -> str:
        """Measure on the validation text; keep the checkpoint if it is the best so far; say how it is."""
        progress, validation = self.progress, self._splits.validation
        model = self._learner.kept_model
        rows = max(1, min(VALIDATION_ROWS, len(validation.ids) // MEASURED_STEPS_MIN))
        bits = bits_per_character(model, validation, rows)
        if not math.isfinite(bits):
            raise TrainingFailed(
                f"The validation text surprises the model by {bits} bits: its weights are lost."
            )
        training_bits = self.history.training[-1].bits
        sample = write_sample(model, self._splits.tokenizer, validation.ids[:PROMPT_TOKENS])
        journal.add_evaluation(Evaluation(progress.tokens, seconds, time.time(), bits, training_bits, sample))
        since = {"tokens_seen": float(progress.tokens), "seconds": seconds}
        best = self.best
        if best is not None and bits >= best.record.metrics["validation_bits_per_character"]:
            progress.since_best += 1
            self.best = replace(best, record=replace(best.record, metrics={**best.record.metrics, **since}))
            kept = ""
        else:
            progress.since_best = 0
            metrics = {
                "validation_bits_per_character": bits,
                "training_bits_per_character": training_bits,
                "tokens_at_best": float(progress.tokens),
                **since,
            }
            self.best = self._checkpoint(model, metrics)
            save_checkpoint(self.checkpoint_directory, self.best)
            kept = ", kept"
        return f"validation {bits:.3f} bits/character at token {progress.tokens:,}{kept}"

    def _checkpoint(self, model: FusedStack, metrics: dict[str, float]) -> Checkpoint:
        return Checkpoint(
            config=model.config,
            weights=numpy_weights(model),
            tokenizer=self._splits.tokenizer,
            record=Record(
                name=self._recipe.name,
                training_data_sha256=self._splits.training_sha256,
                metrics=metrics,
                versions=_versions(),
                precision=self.pace.precision,
            ),
        )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "numpy": np.__version__, "torch": str(torch.__version__)}


def _cuda_dice() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
