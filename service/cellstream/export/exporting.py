"""From a checkpoint of training to a version that can be served."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from cellstream.cells.checkpoint import load_checkpoint
from cellstream.errors import CheckpointInvalid
from cellstream.export.writing import TOKENIZER_FILE, write_version
from cellstream.repository import CARD_FILE, Repository

REPORT_FILE = "report.png"


def export(
    checkpoint_directory: Path,
    models_directory: Path,
    *,
    name: str | None = None,
    version: int | None = None,
    allow_row_by_row: bool = False,
    console: Console | None = None,
) -> Path:
    """Build the graphs of a checkpoint, prove them, and write them as a version of a model.

    Args:
        checkpoint_directory: What training left: `runs/<name>/checkpoint`.
        models_directory: Where the version goes: `<models_directory>/<name>/<version>/`.
        name: The model's name; None: the recipe's.
        version: Its version; None: the next one.
        allow_row_by_row: Go on where rows depend on each other on this machine (see `proof.prove`).
        console: Where to tell how it goes; None: nowhere.

    Returns:
        The version's folder.

    Raises:
        CheckpointInvalid: The checkpoint is not whole, its weights are not finite, or its tokeniser has other
            tokens than the model.
        ExportUnproven: The graphs do not do what the model does; nothing was written.
        SetupError: The name is no model's name, or the version is there already.
        RepositoryError: A server would refuse what was written; a subclass says why.
        OSError: The disk is full, or not ours.
    """
    from cellstream.export.proof import prove  # PyTorch takes seconds to import

    directory = checkpoint_directory.resolve()  # training may put a new checkpoint in its place meanwhile
    checkpoint = load_checkpoint(directory)
    name = name or checkpoint.record.name
    config, weights, tokenizer = checkpoint.config, checkpoint.weights, checkpoint.tokenizer
    if tokenizer is not None and tokenizer.vocabulary_size != config.vocabulary_size:
        raise CheckpointInvalid(
            f"{directory / TOKENIZER_FILE}: expected a tokeniser of {config.vocabulary_size} tokens, "
            f"found one of {tokenizer.vocabulary_size}."
        )
    path = write_version(
        models_directory,
        config,
        weights,
        name=name,
        version=version or _next_version(models_directory, name),
        tokenizer_json=tokenizer.to_json() if tokenizer else None,
        beside={
            file: (directory / file).read_bytes()
            for file in (CARD_FILE, REPORT_FILE)
            if (directory / file).exists()
        },
        metrics=checkpoint.record.metrics,
        training_data_sha256=checkpoint.record.training_data_sha256,
        prove=lambda staging: prove(
            config, weights, staging, allow_row_by_row=allow_row_by_row, console=console
        ),
    )
    if console:
        console.print(f"Wrote {path}")
    return path


def _next_version(models_directory: Path, name: str) -> int:
    """One above the highest that is there."""
    if not models_directory.is_dir():
        return 1
    repository = Repository(models_directory)
    return repository.versions(name)[-1] + 1 if name in repository.names else 1
