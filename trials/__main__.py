"""`python -m trials …`; `make peers`, `attack`, `fuzz` and `soak` call it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from trials.server import ROOT

app = typer.Typer(no_args_is_help=True, add_completion=False)
RESULTS = ROOT / "trials" / "results"

Transport = Annotated[
    Literal["native", "grpcio", "none"],
    typer.Option(help="The server's transport; none: of a tree that has no such setting."),
]
Tree = Annotated[Path, typer.Option(help="The source tree whose server is tried.")]


@app.callback()
def trials() -> None:
    """Trials of a running server; see `make help`."""


@app.command()
def peers(transport: Transport = "native", only: list[str] | None = None, tree: Tree = ROOT) -> None:
    """Try real clients and proxies; exit 1 if one of them is not served right."""
    from trials.peers import table

    sys.exit(0 if table.run(transport, only or [], tree, RESULTS) else 1)


@app.command()
def attack(
    transport: Transport = "native",
    only: list[str] | None = None,
    tree: Tree = ROOT,
    seconds: Annotated[float, typer.Option(help="Of each window, without and with the attack.")] = 4.0,
) -> None:
    """Flood a server beside honest sessions; exit 1 if an answer was wrong or the server died."""
    from trials.attack import report

    sys.exit(0 if report.run(transport, only or [], tree, RESULTS, seconds) else 1)


if __name__ == "__main__":
    app()
