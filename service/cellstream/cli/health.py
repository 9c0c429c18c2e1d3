"""`cellstream health`: the check of compose files and scripts."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from cellstream.cli.console import print_json
from cellstream.cli.options import TARGET, AsJson


def command(
    target: Annotated[str, typer.Argument(help="Where the server is.", metavar="HOST:PORT")] = TARGET,
    timeout: Annotated[
        float, typer.Option(help="How long to wait for the answer, in seconds.", min=0.01)
    ] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Ask a server whether it is ready: exit code 0 if it says SERVING, 1 for anything else."""
    from cellstream.client import Client, Health

    async def ask() -> Health:
        async with Client(target) as client:
            return await client.health(timeout_seconds=timeout)

    health = asyncio.run(ask())
    if as_json:
        print_json({"target": target, "status": health.name})
    else:
        typer.echo(health.name)
    if health is not Health.SERVING:
        raise typer.Exit(1)
