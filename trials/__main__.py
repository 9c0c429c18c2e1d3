"""`python -m trials …`; `make peers`, `attack`, `fuzz` and `soak` call it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from trials.server import ROOT

app = typer.Typer(no_args_is_help=True, add_completion=False)
RESULTS = ROOT / "trials" / "results"

Transport = Annotated[Literal["native", "grpcio"], typer.Option(help="The server's transport.")]
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


@app.command()
def fuzz(minutes: Annotated[float, typer.Option(help="How long.")] = 10.0) -> None:
    """Fuzz the transport's state machines, guided by coverage; exit 1 if a promise was broken."""
    from trials.fuzz import running

    sys.exit(0 if running.run(minutes, RESULTS) else 1)


@app.command()
def soak(
    transport: Transport = "native",
    tree: Tree = ROOT,
    minutes: Annotated[float, typer.Option(help="How long.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Of everything that the clients do.")] = 1,
) -> None:
    """Use a server at random for long; exit 1 if its memory or its descriptors grow."""
    from trials import soak as soaking

    sys.exit(0 if soaking.run(transport, tree, minutes, seed, RESULTS) else 1)


if __name__ == "__main__":
    app()
