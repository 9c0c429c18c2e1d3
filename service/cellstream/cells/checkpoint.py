"""A trained stack on disk, as training leaves it and export reads it; no PyTorch needed.

    <directory>/
        weights.npz       float32 arrays by the names of `config.py`
        config.json       `StackConfig`
        metrics.json      `Record`: what it was trained on and measured at
        tokenizer.json    for a model of tokens
        CARD.md           and whatever else training wrote for people (report.png)

A checkpoint is replaced whole or not at all: `<directory>` is a symbolic link to a directory that is never
changed once the link names it, and a new checkpoint is one rename of a new link.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellstream.cells.config import StackConfig
from cellstream.errors import CheckpointInvalid
from cellstream.text import Tokenizer, load_tokenizer

Weights = dict[str, NDArray[np.float32]]
"""Float32 arrays by the names, and of the shapes, of `StackConfig.weight_shapes`."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a model was trained on, and what came of it.

    Attributes:
        name: The recipe's name, which is the model's.
        training_data_sha256: Digest of the bytes it was trained on; None if it was not trained.
        metrics: Numbers by name: `heldout_bits_per_character`, `tokens_seen`, `seconds`, and the like.
        versions: Of the packages that made it.
        precision: What it learned in, `float32` or `bfloat16`; None: not known.
    """

    name: str
    training_data_sha256: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    precision: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A trained stack.

    Attributes:
        config: Its sizes.
        weights: Its weights.
        tokenizer: What made its tokens; None for a model of values.
        record: What it was trained on.
    """

    config: StackConfig
    weights: Weights
    tokenizer: Tokenizer | None
    record: Record

    def __repr__(self) -> str:
        config = self.config
        return f"<Checkpoint {self.record.name!r}: {config.layers} × {config.hidden_size} {config.cell}>"


def save_checkpoint(
    directory: Path, checkpoint: Checkpoint, beside: Mapping[str, bytes] | None = None
) -> None:
    """Put a checkpoint in the place of the one that is there, whole or not at all.

    Args:
        directory: Where; a symbolic link that this function makes, or nothing yet.
        checkpoint: What.
        beside: Further files by name: the card, the report.

    Raises:
        OSError: The disk is full, or not ours; what was there before is still whole.
    """
    files = {
        "config.json": checkpoint.config.to_json().encode(),
        "metrics.json": (json.dumps(dataclasses.asdict(checkpoint.record), indent=2) + "\n").encode(),
        **(beside or {}),
    }
    if checkpoint.tokenizer is not None:
        files["tokenizer.json"] = checkpoint.tokenizer.to_json().encode()
    directory.parent.mkdir(parents=True, exist_ok=True)
    before = directory.resolve() if directory.is_symlink() else None
    # Of a save that was killed. As absolute paths, or the one that is in use would not be known again.
    for leftover in directory.parent.resolve().glob(f".{directory.name}-*"):
        if leftover != before:
            leftover.unlink() if leftover.is_symlink() else shutil.rmtree(leftover, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    link = new.with_name(f"{new.name}.link")
    try:
        for name, content in files.items():
            _write(new / name, content)
        with (new / "weights.npz").open("wb") as file:
            np.savez(file, **checkpoint.weights)  # type: ignore[arg-type]  # numpy's stub takes the names for options
            file.flush()
            os.fsync(file.fileno())
        new.chmod(0o755)
        sync(new)
        link.symlink_to(new.name, target_is_directory=True)
        link.replace(directory)
        sync(directory.parent)
    except BaseException:
        link.unlink(missing_ok=True)
        if directory.resolve() != new.resolve():  # else it came too late: the new one is in use
            shutil.rmtree(new, ignore_errors=True)
        raise
    if before is not None:
        shutil.rmtree(before, ignore_errors=True)


def load_checkpoint(directory: Path) -> Checkpoint:
    """Read a checkpoint and check that its weights are those of its configuration.

    Raises:
        CheckpointInvalid: A file is missing or unreadable, or a weight has another name, type or shape.
        ModelFileMissing: It is a model of tokens without a tokeniser.
        TokenizerInvalid: Its tokeniser is not one that this version reads.
    """
    directory = directory.resolve()  # a new checkpoint may come while we read this one
    if not directory.is_dir():
        raise CheckpointInvalid(
            f"{directory} is not there; `cellstream train RECIPE.toml` makes a checkpoint."
        )
    name = ""
    try:
        name = "config.json"
        config = StackConfig.from_json((directory / name).read_text(encoding="utf-8"))
        name = "metrics.json"
        record = Record(**json.loads((directory / name).read_text(encoding="utf-8")))
        name = "weights.npz"
        # numpy leaves a file open that is no archive, if it opened it itself.
        with (directory / name).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            weights: Weights = {key: arrays[key] for key in arrays.files}
    except PermissionError as error:
        raise CheckpointInvalid(
            f"{error.filename}: {error.strerror}; who runs this must be able to read it."
        ) from error
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointInvalid(
            f"{directory / name}: {str(error).rstrip('.')}. If a later Cellstream made the checkpoint, this "
            "one cannot read it; else copy it anew from where it came, or train it again."
        ) from error
    check_weights(config, weights, where=f"{directory / name}")
    tokenizer = load_tokenizer(directory / "tokenizer.json") if config.input == "tokens" else None
    return Checkpoint(config=config, weights=weights, tokenizer=tokenizer, record=record)


def check_weights(config: StackConfig, weights: Mapping[str, NDArray[np.generic]], *, where: str) -> None:
    """See that weights have the names, shapes and type that a configuration asks for.

    Raises:
        CheckpointInvalid: They have not; the message says which, what was expected and what was found.
    """
    shapes = config.weight_shapes()
    if weights.keys() != shapes.keys():
        missing = ", ".join(sorted(shapes.keys() - weights.keys())) or "none"
        unknown = ", ".join(sorted(weights.keys() - shapes.keys())) or "none"
        raise CheckpointInvalid(f"{where}: weights missing: {missing}; weights unknown: {unknown}.")
    for name, shape in shapes.items():
        found = weights[name]
        if found.shape != shape or found.dtype != np.float32:
            raise CheckpointInvalid(
                f"{where}: {name}: expected float32 {shape}, found {found.dtype} {found.shape}."
            )


def sync(path: Path) -> None:
    """Have on the disk what a file holds; of a directory, the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
