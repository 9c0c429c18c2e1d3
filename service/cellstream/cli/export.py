"""`cellstream export`: from a checkpoint to a version that can be served, proven."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cellstream.cli.console import console, note, print_json
from cellstream.cli.options import AsJson


def command(
    checkpoint: Annotated[
        Path, typer.Argument(help="What training left: runs/NAME/checkpoint.", show_default=False)
    ],
    models: Annotated[Path, typer.Option(help="Where models are served from.")] = Path("models"),
    name: Annotated[
        str | None, typer.Option(help="The model's name; without it the recipe's.", show_default=False)
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="Its version; without it the next one.", min=1, show_default=False)
    ] = None,
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
    starting states, cuts, batches and orders. If it fails, nothing is written.
    """
    from cellstream.export import export

    version_directory = export(
        checkpoint,
        models,
        name=name,
        version=version,
        allow_row_by_row=allow_row_by_row,
        console=console(stderr=as_json),
    )
    if as_json:
        print_json({"version": str(version_directory)})
    else:
        note(f"Next: cellstream serve --models {models} --default-model {version_directory.parent.name}")
