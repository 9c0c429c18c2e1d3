"""`cellstream export`: from a checkpoint, or a version, to a version that can be served, proven."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cellstream.cli.console import console, note, print_json
from cellstream.cli.options import AsJson
from cellstream.errors import RecipeInvalid, TrainingFailed

if TYPE_CHECKING:
    from cellstream.cells.checkpoint import Checkpoint
    from cellstream.export.exporting import HeldOut


class Weights(StrEnum):
    """How weights are stored."""

    FLOAT32 = "float32"
    INT8 = "int8"


def command(
    source: Annotated[
        Path,
        typer.Argument(
            help="What training left, runs/NAME/checkpoint; or a version, models/NAME/1, to make another "
            "form of it.",
            metavar="RUN|VERSION",
            show_default=False,
        ),
    ],
    models: Annotated[Path, typer.Option(help="Where models are served from.")] = Path("models"),
    name: Annotated[
        str | None, typer.Option(help="The model's name; without it the recipe's.", show_default=False)
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="Its version; without it the next one.", min=1, show_default=False)
    ] = None,
    weights: Annotated[
        Weights,
        typer.Option(
            help="How to store weights: int8 takes a third of the room and loses a little, which is measured."
        ),
    ] = Weights.FLOAT32,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="The recipe that names the held-out text, to measure what is served; without it "
            "MODELS/NAME/recipe.toml, if it is there.",
            show_default=False,
        ),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where training keeps its texts.")] = Path("runs"),
    allow_row_by_row: Annotated[
        bool,
        typer.Option(
            "--allow-row-by-row",
            help="Go on where a row's result depends on the batch on this machine; a server here then runs "
            "one session at a time.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Export a checkpoint to ONNX, prove it, and write it as a model's next version.

    The proof compares ONNX Runtime with PyTorch (1e-5, gates too) and with itself, bit for bit: other
    starting states, cuts, batches and orders; and the portable form, sequence.onnx, with both. If it fails,
    nothing is written. The card says how well the served model predicts the text that was held out.
    """
    from cellstream.export import export

    folder = source / "checkpoint" if (source / "checkpoint").is_dir() else source
    version_directory = export(
        folder,
        models,
        name=name,
        version=version,
        weights_dtype=weights.value,
        heldout=_heldout(recipe, models, runs),
        allow_row_by_row=allow_row_by_row,
        console=console(stderr=as_json),
    )
    if as_json:
        print_json({"version": str(version_directory)})
    else:
        note(f"Next: cellstream serve --models {models} --default-model {version_directory.parent.name}")


def _heldout(recipe: Path | None, models: Path, runs: Path) -> HeldOut:
    """Finds the texts that a checkpoint was not trained on; why not is told, and no reason not to export.

    A recipe that the user has named is another matter: there it is an error.
    """

    def find(checkpoint: Checkpoint) -> Mapping[str, str]:
        path = recipe or models / checkpoint.record.name / "recipe.toml"
        try:
            return _read_heldout(path, checkpoint, runs)
        except (RecipeInvalid, TrainingFailed) as error:
            if recipe is not None:
                raise
            why = error.message if path.exists() else f"there is no {path}"
            note(f"How well it predicts as it is served is not measured: {why}. --recipe names the recipe.")
            return {}

    return find


def _read_heldout(recipe: Path, checkpoint: Checkpoint, runs: Path) -> Mapping[str, str]:
    from cellstream.training import load_recipe
    from cellstream.training.data import load_splits

    if checkpoint.tokenizer is None:
        raise RecipeInvalid("a model of values has no text")
    splits = load_splits(load_recipe(recipe).data, runs)
    if splits.training_sha256 != checkpoint.record.training_data_sha256:
        raise RecipeInvalid(f"{recipe} is of another training text than the model")
    return {piece.name: piece.text for piece in splits.heldout}
