"""`cellstream train`: from a recipe to a checkpoint."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cellstream.cli.console import console, note, print_json
from cellstream.cli.options import AsJson

if TYPE_CHECKING:
    from cellstream.cells.checkpoint import Checkpoint

SIGNALLED = 128
"""What a shell adds to the number of the signal that ended a program."""


def command(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            help="The TOML file that says what to train on what; --text needs none.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="A UTF-8 file, or a folder of them, in place of what the recipe reads.",
            metavar="FILE|FOLDER",
            exists=True,
            show_default=False,
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint, or an exported version, to begin with in place of drawn weights.",
            metavar="FOLDER",
            exists=True,
            file_okay=False,
            show_default=False,
        ),
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="Where the run's folder goes: its checkpoint, log, card and report.")
    ] = Path("runs"),
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Another value than the recipe's, such as training.tokens=2000000; may be given often.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that is there; begin where there is none.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away an unfinished run that is there, and begin anew.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model as a recipe says: progress while it runs, then its numbers on text held out.

    --text takes your own text instead of the recipe's, and a small LSTM for ten minutes where there is no
    recipe. --start goes on from a model that has learned already, such as models/shakespeare-lstm/3.

    Ctrl-C or SIGTERM stops it after the update that runs, and saves it: --resume goes on. After a kill at any
    other moment too, with what was learned since the last save (a minute at most) learned again. The best
    checkpoint until then is whole. `cellstream export` makes of it what can be served.

    Exit codes: 130 after Ctrl-C, 143 after SIGTERM.
    """
    from cellstream.training import Stopped, train

    if recipe is None and text is None:
        raise typer.BadParameter("give a recipe, or a text by --text, or both", param_hint="RECIPE")
    if resume and restart:
        raise typer.BadParameter(
            "goes on, where --restart throws away: give one of them", param_hint="--resume"
        )
    # As JSON standard output has one line, and the progress goes beside it.
    try:
        checkpoint = train(
            recipe,
            text=text,
            start=None if start is None else _read_start(start),
            runs_directory=runs,
            console=console(stderr=as_json),
            overrides=dict(_read_change(text) for text in change or ()),
            resume=resume,
            restart=restart,
        )
    except Stopped as stopped:
        raise typer.Exit(SIGNALLED + stopped.number) from None
    if as_json:
        print_json({"checkpoint": str(checkpoint)})
    else:
        note(f"Next: cellstream export {checkpoint}")


def _read_start(folder: Path) -> Checkpoint:
    from cellstream.export import read_checkpoint  # here: few runs need ONNX

    return read_checkpoint(folder)


def _read_change(text: str) -> tuple[str, object]:
    """A key and its value, written as in the recipe; a text may go without its quotes."""
    key, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is no KEY=VALUE", param_hint="--set")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
