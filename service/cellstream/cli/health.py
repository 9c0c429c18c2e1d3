"""`cellstream health`: the check of compose files and scripts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Annotated

import typer

from cellstream.cli.console import print_json
from cellstream.cli.options import CLIENT_PREFIX, AsJson, Tls, with_tls

_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""What a server listens on for all addresses, and where the same machine reaches it."""


@with_tls
def command(
    target: Annotated[
        str,
        typer.Argument(
            help="Where the server is; without it, where one with this environment listens "
            "(CELLSTREAM_HOST, CELLSTREAM_PORT, CELLSTREAM_TLS_CERT).",
            metavar="HOST:PORT",
            envvar=f"{CLIENT_PREFIX}TARGET",
            show_default=False,
        ),
    ] = "",
    timeout: Annotated[
        float, typer.Option(help="How long to wait for the answer, in seconds.", min=0.01)
    ] = 5.0,
    as_json: AsJson = False,
    *,
    tls: Tls,
) -> None:
    """Ask a server whether it is ready: exit code 0 if it says SERVING, 1 for anything else."""
    from cellstream.client import Client, Health

    if not target:
        target, tls = own_server(os.environ, tls)

    async def ask() -> Health:
        async with Client(target, **tls) as client:
            return await client.health(timeout_seconds=timeout)

    health = asyncio.run(ask())
    if as_json:
        print_json({"target": target, "status": health.name})
    else:
        typer.echo(health.name)
    if health is not Health.SERVING:
        raise typer.Exit(1)


def own_server(environ: Mapping[str, str], tls: Tls) -> tuple[str, Tls]:
    """Return where a server with this environment listens, and how it is spoken to.

    What the client's own options leave open comes from the server's files: its certificate is trusted as it
    is, and under mutual TLS it is shown too, which is enough where one authority signs for both sides.

    Args:
        environ: The environment of the server, as in its container.
        tls: The client's own options.
    """

    def setting(name: str) -> str:
        return environ.get(f"CELLSTREAM_{name}", "")

    files: Tls = {}
    if setting("TLS_CERT") and not tls.get("tls"):
        files["tls_ca"] = setting("TLS_CERT")
    if setting("TLS_CLIENT_CA") and not (tls.get("tls_cert") or tls.get("tls_key")):
        files["tls_cert"], files["tls_key"] = setting("TLS_CERT"), setting("TLS_KEY") or setting("TLS_CERT")
    return _target(setting("HOST") or "localhost", setting("PORT") or "50051"), {**files, **tls}


def _target(host: str, port: str) -> str:
    if host.startswith("unix:"):
        return host
    host = _EVERY_ADDRESS.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
