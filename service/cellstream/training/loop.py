"""From a recipe to a checkpoint: check, begin or go on, learn, measure what was held out, write it up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cellstream.cells.checkpoint import Checkpoint
from cellstream.cells.stack import FusedStack, load_weights
from cellstream.cells.threads import threads_set
from cellstream.errors import TrainingFailed
from cellstream.training.data import Splits, load_splits, windows
from cellstream.training.display import Display
from cellstream.training.identity import differences, identity
from cellstream.training.interrupts import Interrupts
from cellstream.training.measure import bits_per_character, compressors_bits_per_character
from cellstream.training.pace import Pace, check_bfloat16, choose_device, choose_pace
from cellstream.training.preflight import check_disk, check_memory, check_texts, claimed, memory_bytes
from cellstream.training.recipe import Recipe, load_recipe
from cellstream.training.report import draw_report, write_card
from cellstream.training.run import Run
from cellstream.training.saves import Saves
from cellstream.training.start import check_start, recipe_parts


def train(
    recipe_path: Path | None,
    *,
    text: Path | None = None,
    start: Checkpoint | None = None,
    runs_directory: Path = Path("runs"),
    console: Console | None = None,
    overrides: Mapping[str, object] | None = None,
    resume: bool = False,
    restart: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Path:
    """Train what a recipe describes.

    Ctrl-C and SIGTERM are met between two updates, and the run is saved first.

    Args:
        recipe_path: The TOML file; None: the default one, for `text`.
        text: A UTF-8 file, or a folder of them, in place of what the recipe reads.
        start: What to begin with in place of drawn weights; its tokeniser makes the tokens, and without a
            recipe its sizes are taken.
        runs_directory: The checkpoint goes to `<runs_directory>/<name>/checkpoint`; saves, log and
            TensorBoard's files lie beside it.
        console: Where progress is shown; None: standard output.
        overrides: Values that replace the recipe's, by dotted key: `{"training.minutes": 2}`.
        resume: Go on where an unfinished run stands; begin where there is none.
        restart: Throw an unfinished run away. Without either, one that is there is an error.
        clock: Seconds that only go forward.

    Returns:
        The directory of the checkpoint, as `load_checkpoint` reads it, with `CARD.md` and `report.png`.

    Raises:
        RecipeInvalid: The recipe cannot be followed; nothing was begun.
        TrainingFailed: The text cannot be had, an unfinished run is there or is of another recipe, the loss
            is not finite, memory or disk is full; what was kept before is still whole.
        KeyboardInterrupt: The user stopped it (`Stopped`: by a signal); the console says what is kept.
    """
    console = console or Console()
    recipe = load_recipe(recipe_path, overrides, text=text, parts=recipe_parts(start) if start else None)
    if start is not None:
        check_start(start, recipe)
    directory = runs_directory / recipe.name
    console.print("Reading the text ...", highlight=False)
    splits = load_splits(recipe.data, runs_directory, start.tokenizer if start else None)
    for sentence in splits.notes:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    check_texts(recipe, splits)
    interrupts = Interrupts()
    with claimed(directory), interrupts.handled():
        run = _begin(
            recipe, splits, directory, start, console=console, resume=resume, restart=restart, clock=clock
        )
        if run.progress.is_finished:
            console.print(
                f"This run is finished: there is nothing to go on with. {run.kept()}", soft_wrap=True
            )
            return run.checkpoint_directory
        with (
            _told(run, console),
            threads_set(run.pace.threads),
            Display(console, recipe.name, clock) as display,
        ):
            display.say(_introduction(recipe, splits, run))
            run.learn(display, interrupts)
            _finish(run, recipe, splits, start, console)
    return run.checkpoint_directory


def _begin(
    recipe: Recipe,
    splits: Splits,
    directory: Path,
    start: Checkpoint | None,
    *,
    console: Console,
    resume: bool,
    restart: bool,
    clock: Callable[[], float],
) -> Run:
    """Make the run, at its beginning or where it was saved."""
    saves = Saves(directory / "saves")
    saved = None
    if saves and not restart:
        saved = _saved(saves, recipe, splits, start, console, resume=resume)
    if resume and saved is None:
        console.print(
            f"There is no run to go on with in {directory}: beginning one.", highlight=False, soft_wrap=True
        )
    config = recipe.model.config(splits.tokenizer.vocabulary_size)
    device = choose_device(recipe.training.device if saved is None else saved["pace"]["device"])
    check_memory(config, recipe, memory_bytes(device))
    check_disk(config, directory)
    torch.manual_seed(recipe.seed)
    with _memory_told():
        training = recipe.training
        model = FusedStack(config, training.dropout, forget_bias=training.forget_bias).to(device)
        first = next(
            windows(splits.training.ids, rows=training.batch_rows, window=training.window, seed=recipe.seed)
        )
        if saved is None:
            if start is not None:
                load_weights(model, start.weights)
            pace = choose_pace(model, training, first, device)
        else:
            pace = Pace(**saved["pace"])  # another one would round otherwise
            if pace.precision == "bfloat16":
                check_bfloat16(model, first)
        named = identity(recipe, splits, start)
        run = Run(recipe, splits, directory, model=model, pace=pace, identity=named, clock=clock)
    if saved is None:
        saves.clear()
    else:
        run.restore(saved)
    return run


def _saved(
    saves: Saves,
    recipe: Recipe,
    splits: Splits,
    start: Checkpoint | None,
    console: Console,
    *,
    resume: bool,
) -> dict[str, Any] | None:
    """Read the save of the run that is there; None: there is nothing that a new run would destroy."""
    try:
        saved, damages = saves.read()
    except TrainingFailed as error:
        raise TrainingFailed(f"{error.message} --restart throws the run away and begins it anew.") from error
    progress = saved["progress"]
    stands = f"token {progress['tokens']:,}, {progress['seconds'] / 60:.1f} minutes spent"
    if not resume:
        if progress["is_finished"] or not progress["updates"]:
            return None
        raise TrainingFailed(
            f"{saves.directory.parent} holds an unfinished run ({stands}). --resume goes on with it; "
            "--restart throws it away and begins anew."
        )
    if changed := differences(saved["identity"], recipe, splits, start):
        raise TrainingFailed(
            f"{saves.directory.parent} holds a run of something else: {'; '.join(changed)}. Put that back to "
            "go on with it; train under another name (--set name=...); or throw it away with --restart."
        )
    for damage in damages:
        console.print(f"{damage} Going on from the save before.", highlight=False, soft_wrap=True)
    if not progress["is_finished"]:
        console.print(f"Going on from {stands}.", highlight=False, soft_wrap=True)
    if saved["versions"]["torch"] != str(torch.__version__):
        console.print(
            f"The run began with PyTorch {saved['versions']['torch']}, this is {torch.__version__}: the last "
            "bits may differ.",
            highlight=False,
            soft_wrap=True,
        )
    return saved


@contextmanager
def _told(run: Run, console: Console) -> Iterator[None]:
    """Say of whatever ends a run early what is kept, and how to go on."""
    try:
        with _memory_told():
            yield
    except KeyboardInterrupt:
        console.print(f"Stopped. {run.kept()} {run.way_on()}", highlight=False, soft_wrap=True)
        raise
    except OSError as error:
        raise TrainingFailed(
            f"{run.directory} cannot be written: {error}. {run.kept()} {run.way_on()}"
        ) from error
    except TrainingFailed as error:
        raise TrainingFailed(f"{error.message} {run.kept()} {run.way_on()}") from error


@contextmanager
def _memory_told() -> Iterator[None]:
    """Make of the many errors of full memory one of ours."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # PyTorch has a class of its own for a GPU's memory only; its allocator for the CPU says it in words.
        words = str(error)
        full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in words
        if not full:
            raise
        raise TrainingFailed(
            "Memory is full: make training.batch_rows, training.window or model.hidden_size smaller, or give "
            "it more."
        ) from error


def _finish(run: Run, recipe: Recipe, splits: Splits, start: Checkpoint | None, console: Console) -> None:
    """Measure the best checkpoint on what was held out, and write it up beside it."""
    assert run.best is not None  # the last evaluation is at the end of the budget
    heldout = splits.heldout
    console.print(f"Measuring on {' and '.join(piece.name for piece in heldout)} ...")
    model = FusedStack(run.best.config)
    load_weights(model, run.best.weights)
    bits = {piece.name: bits_per_character(model, piece) for piece in heldout}
    characters = sum(len(piece.text) for piece in heldout)
    together = sum(bits[piece.name] * len(piece.text) for piece in heldout) / characters
    compressed = compressors_bits_per_character(splits.training.text, [piece.text for piece in heldout])
    named = {"heldout": together, **bits, **compressed}
    metrics = {
        **run.best.record.metrics,
        **{f"{name}_bits_per_character": value for name, value in named.items()},
    }
    checkpoint = replace(run.best, record=replace(run.best.record, metrics=metrics))
    card = write_card(recipe, checkpoint, splits, run.pace, start)
    picture = draw_report(run.history, metrics, recipe.name)
    run.finish(checkpoint, {"CARD.md": card.encode(), "report.png": picture})
    console.print(
        f"Held out: {together:.3f} bits per character (xz {compressed['xz']:.3f}, "
        f"bzip2 {compressed['bzip2']:.3f}). The checkpoint is at {run.checkpoint_directory}",
        highlight=False,
        soft_wrap=True,
    )


def _introduction(recipe: Recipe, splits: Splits, run: Run) -> str:
    config = recipe.model.config(splits.tokenizer.vocabulary_size)
    return (
        f"{recipe.name}: {config.layers} × {config.hidden_size} {config.cell}, {config.parameters:,} "
        f"weights, {run.pace}; {len(splits.training.text):,} characters to learn from, "
        f"{splits.validation.name} to choose by"
    )
