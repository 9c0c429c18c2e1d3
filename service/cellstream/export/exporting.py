"""From a checkpoint of training, or from a version, to a version that can be served."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from cellstream.cells.checkpoint import Checkpoint, load_checkpoint
from cellstream.errors import CheckpointInvalid
from cellstream.export.building import build
from cellstream.export.card import graphs_bytes, with_section, write_section
from cellstream.export.measuring import bits_per_character
from cellstream.export.unfolding import unfold
from cellstream.export.writing import TOKENIZER_FILE, Proof, write_version
from cellstream.repository import CARD_FILE, MANIFEST_FILE, Repository, load_version
from cellstream.repository.manifest import WeightsDtype

REPORT_FILE = "report.png"

HeldOut = Callable[[Checkpoint], Mapping[str, str]]
"""Gives the texts that a checkpoint was not trained on, by name; none if they cannot be had."""


def export(
    source: Path,
    models_directory: Path,
    *,
    name: str | None = None,
    version: int | None = None,
    weights_dtype: WeightsDtype = "float32",
    heldout: HeldOut | None = None,
    allow_row_by_row: bool = False,
    console: Console | None = None,
) -> Path:
    """Build the graphs of a model, prove them, and write them as a version.

    Args:
        source: What training left: `runs/<name>/checkpoint`. Or a version that was exported before, to give
            it the forms that it lacks, in a new version.
        models_directory: Where the version goes: `<models_directory>/<name>/<version>/`.
        name: The model's name; None: the recipe's, or that of the version before.
        version: Its version; None: the next one.
        weights_dtype: How to store the weights of products: `int8` is a third of the size.
        heldout: What to measure the served model on; None: it is not measured.
        allow_row_by_row: Go on where rows depend on each other on this machine (see `proof.prove`).
        console: Where to tell how it goes; None: nowhere.

    Returns:
        The version's folder.

    Raises:
        CheckpointInvalid: The checkpoint is not whole, its weights are not finite, or its tokeniser has other
            tokens than the model; or the version is one that nothing can be made of.
        ExportUnproven: The graphs do not do what the model does; nothing was written.
        SetupError: The name is no model's name, or the version is there already.
        RepositoryError: The source, or a server would refuse what was written; a subclass says why.
        OSError: The disk is full, or not ours.
    """
    console = console or Console(quiet=True)
    directory = source.resolve()  # training may put a new checkpoint in its place meanwhile
    checkpoint = read_checkpoint(directory)
    name = name or checkpoint.record.name
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    if tokenizer is not None and tokenizer.vocabulary_size != config.vocabulary_size:
        raise CheckpointInvalid(
            f"{directory / TOKENIZER_FILE}: expected a tokeniser of {config.vocabulary_size} tokens, "
            f"found one of {tokenizer.vocabulary_size}."
        )
    texts = heldout(checkpoint) if heldout is not None else {}
    path = write_version(
        models_directory,
        config,
        checkpoint.weights,
        name=name,
        version=version or _next_version(models_directory, name),
        weights_dtype=weights_dtype,
        tokenizer_json=tokenizer.to_json() if tokenizer else None,
        beside={
            file: (directory / file).read_bytes()
            for file in (CARD_FILE, REPORT_FILE)
            if (directory / file).exists()
        },
        metrics=checkpoint.record.metrics,
        training_data_sha256=checkpoint.record.training_data_sha256,
        prove=lambda staging: _examine(checkpoint, staging, weights_dtype, texts, allow_row_by_row, console),
    )
    console.print(f"Wrote {path}")
    return path


def read_checkpoint(source: Path) -> Checkpoint:
    """Read what training left, or make a checkpoint of a version.

    Raises:
        CheckpointInvalid: It is not whole, or a version that no checkpoint can be made of.
        RepositoryError: It is a version that no server would load; a subclass says why.
    """
    made_before = (source / MANIFEST_FILE).exists()
    return unfold(load_version(source)) if made_before else load_checkpoint(source)


def _examine(
    checkpoint: Checkpoint,
    staging: Path,
    weights_dtype: WeightsDtype,
    texts: Mapping[str, str],
    allow_row_by_row: bool,
    console: Console,
) -> Proof:
    """Prove the graphs of a folder, measure them, and write both into the card there."""
    from cellstream.export.proof import prove  # PyTorch takes seconds to import
    from cellstream.export.sequence_proof import prove_sequence

    config, weights = checkpoint.config, checkpoint.weights
    proof = prove(
        config,
        weights,
        staging,
        weights_dtype=weights_dtype,
        allow_row_by_row=allow_row_by_row,
        console=console,
    )
    if weights_dtype == "float32":
        proof |= prove_sequence(config, weights, staging, console)
    served: dict[WeightsDtype, float] = {}
    sizes: dict[WeightsDtype, int] = {}
    if texts:
        console.print(f"Measuring on {' and '.join(texts)}, as it is served …", highlight=False)
    with tempfile.TemporaryDirectory(prefix="cellstream-") as folder:
        folders: dict[WeightsDtype, Path] = {"float32": Path(folder), weights_dtype: staging}
        if weights_dtype != "float32":  # what it is compared with
            build(config, weights).write(Path(folder))
        for form, place in folders.items():
            sizes[form] = graphs_bytes(place)
            if texts and checkpoint.tokenizer is not None:
                served[form] = bits_per_character(config, place, checkpoint.tokenizer, texts)
                console.print(f"       {form}: {served[form]:.4f} bits per character", highlight=False)
    card = staging / CARD_FILE
    if card.exists():
        trained = checkpoint.record.metrics.get("heldout_bits_per_character")
        section = write_section(weights_dtype, trained, served, sizes, proof)
        card.write_text(with_section(card.read_text(encoding="utf-8"), section), encoding="utf-8")
    return proof | {f"served_{form}_bits_per_character": bits for form, bits in served.items()}


def _next_version(models_directory: Path, name: str) -> int:
    """One above the highest that is there."""
    if not models_directory.is_dir():
        return 1
    repository = Repository(models_directory)
    return repository.versions(name)[-1] + 1 if name in repository.names else 1
