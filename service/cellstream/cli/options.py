"""Options that several commands have, each said once."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

Target: TypeAlias = Annotated[str, typer.Option(help="Where the server is.", metavar="HOST:PORT")]
TARGET = "localhost:50051"

Model: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Model, or model/version; without it the session's own, or the server's default.",
        metavar="MODEL",
        show_default=False,
    ),
]

SessionName: TypeAlias = Annotated[
    str,
    typer.Option(
        "--session",
        help="Go on with the session of this name, or begin it; the server keeps it afterwards.",
        metavar="NAME",
        show_default=False,
    ),
]

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, one value a line.")]


def split_model(model: str) -> tuple[str, str]:
    """Name and version of `model/version`; the version is empty if there is none."""
    name, _, version = model.partition("/")
    return name, version
