"""What is looked at before anything is learned: the folder, the text, the memory, the disk.

A mistake must be told in the first second, not after the half hour whose result it spoils.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cellstream.cells.config import StackConfig
from cellstream.errors import RecipeInvalid, TrainingFailed
from cellstream.training.data import Splits
from cellstream.training.recipe import Recipe

PIECE_TOKENS_MIN = 2
"""Of a text to measure on: one that is read, and one that is predicted."""

WEIGHT_COPIES = 6
"""Weights, gradient, AdamW's two moments, the average, the best checkpoint; float32 each."""

SAVE_COPIES = 3 * 5 + 2
"""Of the weights on disk: three saves for a moment, each of all but the gradient; two checkpoints."""


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Make the folder of a run, and keep other processes out of it.

    Raises:
        TrainingFailed: It cannot be written, or another process trains there.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("wb")
    except OSError as error:
        raise TrainingFailed(
            f"{directory} cannot be written: {error}. --runs names another folder."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lifts it however the process ends
        except BlockingIOError:
            raise TrainingFailed(
                f"Another process trains in {directory}: wait for it, or train under another name "
                "(--set name=...)."
            ) from None
        yield


def check_texts(recipe: Recipe, splits: Splits) -> None:
    """See that there is enough to read.

    Raises:
        RecipeInvalid: The training text is shorter than a window of all rows, or another text has nothing to
            predict.
    """
    rows, window, tokens = recipe.training.batch_rows, recipe.training.window, len(splits.training.ids)
    if (tokens - 1) // rows < window:
        raise RecipeInvalid(
            f"training.batch_rows, training.window: the training text has {tokens:,} tokens; {rows} rows × a "
            f"window of {window} need {rows * window + 1:,}. Make one of them smaller."
        )
    for piece in (splits.validation, *splits.heldout):
        if len(piece.ids) < PIECE_TOKENS_MIN:
            raise RecipeInvalid(
                f"data: {piece.name} has {len(piece.ids)} tokens; {PIECE_TOKENS_MIN} are needed to measure."
            )


def check_memory(config: StackConfig, recipe: Recipe, available: int) -> None:
    """See that the network can be learned in this memory, by the least that it needs.

    Args:
        config: Its sizes.
        recipe: What says how much of the text is read at once.
        available: Bytes.

    Raises:
        RecipeInvalid: It cannot.
    """
    # What one window's backward run needs of the forward run, without temporaries: for each layer gates,
    # states and what they came from; for the head logits, their softmax and its gradient. In float32.
    per_token = 3 * config.outputs_size + 8 * config.layers * config.hidden_size
    of_window = 4 * recipe.training.batch_rows * recipe.training.window * per_token
    needed = 4 * WEIGHT_COPIES * config.parameters + of_window
    if needed > available:
        raise RecipeInvalid(
            f"model: {config.parameters:,} weights and windows of {recipe.training.batch_rows} × "
            f"{recipe.training.window} tokens need at least {_size(needed)} of memory; this machine has "
            f"{_size(available)}. Make hidden_size, batch_rows or window smaller."
        )


def memory_bytes(device: str) -> int:
    """Give the memory of the machine, or of its GPU."""
    if device == "cuda":
        _, total = torch.cuda.mem_get_info()
        return total
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_disk(config: StackConfig, directory: Path) -> None:
    """See that saves and checkpoints have room.

    Raises:
        TrainingFailed: They have not.
    """
    needed, free = 4 * SAVE_COPIES * config.parameters, shutil.disk_usage(directory).free
    if needed > free:
        raise TrainingFailed(
            f"The disk of {directory} has {_size(free)} free; the saves and the checkpoint of this model "
            f"need {_size(needed)}. Make room, or name another folder by --runs."
        )


def _size(count: float) -> str:
    """`12 MB`, `1.5 GB`."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
