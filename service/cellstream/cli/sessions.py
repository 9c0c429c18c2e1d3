"""`cellstream sessions`: whose state a server keeps."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from cellstream.cli.console import console, note, print_json, print_table
from cellstream.cli.options import TARGET, AsJson, Target, Tls, with_tls

if TYPE_CHECKING:
    from cellstream.client import SessionInfo


@with_tls
def command(
    name: Annotated[
        str, typer.Argument(help="Only the session of this name.", metavar="NAME", show_default=False)
    ] = "",
    close: Annotated[bool, typer.Option("--close", help="End it; who holds it is told.")] = False,
    limit: Annotated[int, typer.Option(help="How many to list at most.", min=1)] = 1000,
    target: Target = TARGET,
    as_json: AsJson = False,
    *,
    tls: Tls,
) -> None:
    """List the sessions of a server, or show or end one.

    A session's name lets whoever has it go on with the session, so the list has hashes of the names, the
    same that the server's logs have.
    """
    if close and not name:
        raise typer.BadParameter(
            "which session? Name it: cellstream sessions NAME --close", param_hint="--close"
        )
    if close:
        position = asyncio.run(_close(target, tls, name))
        if as_json:
            print_json({"closed": name, "position": position})
        else:
            console().print(f"The session had absorbed {position:,} tokens; it has ended.")
        return
    found = asyncio.run(_ask(target, tls, name, limit))
    if as_json:
        for session in found[:limit]:
            print_json(dataclasses.asdict(session))
        return
    print_table(
        ("session", "model", "position", "idle s", "held"),
        (
            (
                session.session_hash,
                f"{session.model}/{session.version}",
                session.position,
                round(session.idle_seconds, 1),
                "yes" if session.held else "no",
            )
            for session in found[:limit]
        ),
    )
    if len(found) > limit:
        note(f"There are more than {limit}; --limit lists more.")


async def _ask(target: str, tls: Tls, name: str, limit: int) -> list[SessionInfo]:
    """The session of that name, or one more than the limit if there are so many."""
    from cellstream.client import Client

    async with Client(target, **tls) as client:
        if name:
            return [await client.get_session(name)]
        found = []
        async for session in client.sessions():
            found.append(session)
            if len(found) > limit:
                break
        return found


async def _close(target: str, tls: Tls, name: str) -> int:
    from cellstream.client import Client

    async with Client(target, **tls) as client:
        return await client.close_session(name)
