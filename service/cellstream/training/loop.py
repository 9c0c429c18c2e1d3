"""From a recipe to a checkpoint: learn, measure now and then, keep the best, measure it, write it up."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from cellstream.cells.checkpoint import Checkpoint, Record, save_checkpoint
from cellstream.cells.stack import FusedStack, load_weights, numpy_weights
from cellstream.errors import TrainingFailed
from cellstream.training.data import Splits, load_splits, windows
from cellstream.training.display import Display
from cellstream.training.learner import Learner
from cellstream.training.measure import bits_per_character, compressors_bits_per_character
from cellstream.training.pace import choose_pace, threads_set
from cellstream.training.recipe import Recipe, load_recipe
from cellstream.training.report import History, draw_report, write_card
from cellstream.training.schedule import Budget, Schedule

VALIDATION_ROWS = 16
"""Parts of the validation text that are read at the same time: a second instead of ten each time."""

MEASURED_STEPS_MIN = 512
"""Fewest tokens of such a part: what each loses by an empty state at its beginning must stay small."""

POINTS = 200
"""Points of the training curve in the report."""


def train(
    recipe_path: Path,
    *,
    runs_directory: Path = Path("runs"),
    console: Console | None = None,
    overrides: Mapping[str, object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Path:
    """Train what a recipe describes.

    Args:
        recipe_path: The TOML file.
        runs_directory: The checkpoint goes to `<runs_directory>/<name>/checkpoint`, the log beside it.
        console: Where progress is shown; None: standard output.
        overrides: Values that replace the recipe's, by dotted key: `{"training.minutes": 2}`.
        clock: Seconds that only go forward.

    Returns:
        The directory of the checkpoint, as `load_checkpoint` reads it, with `CARD.md` and `report.png`.

    Raises:
        RecipeInvalid: The recipe cannot be followed.
        TrainingFailed: The text cannot be had, the loss is not finite, or the disk is full; what was kept
            before is still whole.
        KeyboardInterrupt: The user stopped it; what was kept is named on the console.
    """
    console = console or Console()
    recipe = load_recipe(recipe_path, overrides)
    splits = load_splits(recipe.data, runs_directory)
    run = _Run(recipe, splits, runs_directory / recipe.name, console, clock)
    try:
        with threads_set(run.pace.threads):
            run.learn()
            run.finish()
    except KeyboardInterrupt:
        console.print(f"Stopped. {run.kept()}", highlight=False)
        raise
    except OSError as error:
        raise TrainingFailed(f"{run.directory} cannot be written: {error}. {run.kept()}") from error
    except TrainingFailed as error:
        raise TrainingFailed(f"{error.message} {run.kept()}") from error
    return run.checkpoint_directory


class _Run:
    """One training run: what it has learned so far, and the best of it."""

    def __init__(
        self, recipe: Recipe, splits: Splits, directory: Path, console: Console, clock: Callable[[], float]
    ) -> None:
        self.directory = directory
        self.checkpoint_directory = directory / "checkpoint"
        self._recipe, self._splits, self._console, self._clock = recipe, splits, console, clock
        training, ids = recipe.training, splits.training.ids
        torch.manual_seed(recipe.seed)
        self._model = FusedStack(recipe.model.config(splits.tokenizer.vocabulary_size))
        read = partial(windows, ids, rows=training.batch_rows, window=training.window, seed=recipe.seed)
        self.pace = choose_pace(self._model, training, next(read()))
        self._windows = read()
        self._learner = Learner(self._model, training, self.pace.precision)
        self._budget = Budget(training.tokens, training.minutes * 60 if training.minutes else None)
        self._schedule = Schedule(training.learning_rate, training.warmup_ratio, training.final_ratio)
        self._history = History()
        self._tokens = 0
        self._begun = clock()
        self._best: Checkpoint | None = None

    def kept(self) -> str:
        """Say what is on disk."""
        if self._best is None:
            return "This run has kept no checkpoint yet."
        metrics = self._best.record.metrics
        return (
            f"The best checkpoint so far is at {self.checkpoint_directory}: token "
            f"{metrics['tokens_at_best']:,.0f}, {metrics['validation_bits_per_character']:.3f} bits per "
            "character on the validation text."
        )

    def learn(self) -> None:
        """Learn until the budget is spent, keeping the best checkpoint on disk."""
        self.directory.mkdir(parents=True, exist_ok=True)
        evaluations, evaluated = self._recipe.training.evaluations, 0
        per_character = self._splits.training.tokens_per_character / math.log(2)
        stretch: list[float] = []
        with Display(self._console, self._recipe.name, self._clock) as display:
            display.say(self._introduction())
            for window in self._windows:
                seconds = self._clock() - self._begun
                spent = self._budget.spent(self._tokens, seconds)
                if spent * evaluations >= evaluated + 1:
                    evaluated = int(spent * evaluations)
                    self._evaluate(display, seconds)
                if spent >= 1:
                    return
                nats = self._learner.learn(window, self._schedule.learning_rate(spent))
                self._tokens += window.inputs.size
                stretch.append(nats)
                if spent * POINTS >= len(self._history.training):
                    nats = sum(stretch) / len(stretch)
                    stretch.clear()
                    self._history.training.append((self._tokens, nats * per_character))
                    display.show(
                        spent=spent,
                        nats=nats,
                        bits=nats * per_character,
                        tokens=self._tokens,
                        seconds=seconds,
                    )

    def finish(self) -> None:
        """Measure the best checkpoint on what was held out, and write it up beside it."""
        assert self._best is not None  # the last evaluation is at the end of the budget
        heldout = self._splits.heldout
        self._console.print(f"Measuring on {' and '.join(piece.name for piece in heldout)} ...")
        load_weights(self._model, self._best.weights)
        bits = {piece.name: bits_per_character(self._model, piece) for piece in heldout}
        characters = sum(len(piece.text) for piece in heldout)
        together = sum(bits[piece.name] * len(piece.text) for piece in heldout) / characters
        compressed = compressors_bits_per_character(
            self._splits.training.text, [piece.text for piece in heldout]
        )
        named = {"heldout": together, **bits, **compressed}
        metrics = {
            **self._best.record.metrics,
            **{f"{name}_bits_per_character": value for name, value in named.items()},
        }
        checkpoint = replace(self._best, record=replace(self._best.record, metrics=metrics))
        card = write_card(self._recipe, checkpoint, self._splits, self.pace)
        picture = draw_report(self._history, metrics, self._recipe.name)
        save_checkpoint(
            self.checkpoint_directory, checkpoint, {"CARD.md": card.encode(), "report.png": picture}
        )
        self._console.print(
            f"Held out: {together:.3f} bits per character (xz {compressed['xz']:.3f}, "
            f"bzip2 {compressed['bzip2']:.3f}). The checkpoint is at {self.checkpoint_directory}",
            highlight=False,
            soft_wrap=True,
        )

    def _introduction(self) -> str:
        config, splits, pace = self._model.config, self._splits, self.pace
        return (
            f"{self._recipe.name}: {config.layers} × {config.hidden_size} {config.cell}, "
            f"{config.parameters:,} weights, {pace}; {len(splits.training.text):,} characters to learn from, "
            f"{splits.validation.name} to choose by"
        )

    def _evaluate(self, display: Display, seconds: float) -> None:
        """Measure on the validation text; keep the checkpoint if it is the best so far."""
        validation = self._splits.validation
        rows = max(1, min(VALIDATION_ROWS, len(validation.ids) // MEASURED_STEPS_MIN))
        bits = bits_per_character(self._model, validation, rows)
        if not math.isfinite(bits):
            raise TrainingFailed(
                f"The validation text surprises the model by {bits} bits: its weights are lost."
            )
        self._history.validation.append((self._tokens, bits))
        metrics = {
            "validation_bits_per_character": bits,
            "training_bits_per_character": self._history.training[-1][1],
            "tokens_at_best": float(self._tokens),
            "tokens_seen": float(self._tokens),
            "seconds": seconds,
        }
        with (self.directory / "log.jsonl").open("w" if self._best is None else "a", encoding="utf-8") as log:
            log.write(json.dumps(metrics) + "\n")
        best = self._best
        if best is None or bits < best.record.metrics["validation_bits_per_character"]:
            self._best = self._checkpoint(metrics)
            save_checkpoint(self.checkpoint_directory, self._best)
        else:
            since = {name: metrics[name] for name in ("tokens_seen", "seconds")}
            self._best = replace(best, record=replace(best.record, metrics={**best.record.metrics, **since}))
        kept = ", kept" if metrics["tokens_at_best"] == self._best.record.metrics["tokens_at_best"] else ""
        display.say(f"validation {bits:.3f} bits/character at token {self._tokens:,}{kept}")

    def _checkpoint(self, metrics: dict[str, float]) -> Checkpoint:
        versions = {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        }
        return Checkpoint(
            config=self._model.config,
            weights=numpy_weights(self._model),
            tokenizer=self._splits.tokenizer,
            record=Record(
                name=self._recipe.name,
                training_data_sha256=self._splits.training_sha256,
                metrics=metrics,
                versions=versions,
            ),
        )
