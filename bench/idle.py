"""Sessions that a stream holds and does not feed: what they weigh, and what they cost the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.processes import Server
from bench.traffic import Traffic

HANDLES = 4000
"""Sessions of a stream; the server's own bound is a little higher."""

SAMPLES = 5


def room_for(sessions: int) -> dict[str, int]:
    """The settings of a server that takes so many sessions beside those of a load."""
    return {"slots_max": sessions + 4096}


@contextmanager
def idle_sessions(server: Server, sessions: int, *, seed: int, prefix: str = "") -> Iterator[None]:
    """So many sessions, each fed one token, then left alone; their streams end on leaving.

    Args:
        server: Where.
        sessions: How many.
        seed: Of the tokens.
        prefix: What their names begin with, which makes them stay after leaving; empty: they have no names.
    """
    with ExitStack() as stack:
        for first in range(0, sessions, HANDLES):
            feeds = min(sessions - first, HANDLES)
            names = f"{prefix}{first}-" if prefix else ""
            load = stack.enter_context(
                Traffic(server, streams=1, feeds=feeds, seed=seed, names=names, messages=1)
            )
            load.run(0)
        yield


def held_bytes(server: Server, sessions: int, state_bytes: int, *, seed: int) -> list[float]:
    """Bytes beyond its state of a session that a stream holds, for each of a few parts of so many sessions.

    The first part is not counted: the server's own memory grows with it.
    """
    part = sessions // (SAMPLES + 1)
    grown = []
    with ExitStack() as stack:
        for _ in range(SAMPLES + 1):
            before = resident_bytes(server.pid)
            stack.enter_context(idle_sessions(server, part, seed=seed))
            grown.append((resident_bytes(server.pid) - before) / part - state_bytes)
    return grown[1:]


def kept_bytes(server: Server, sessions: int, state_bytes: int, *, seed: int) -> list[float]:
    """The same of a session with a name whose stream is gone."""
    part = sessions // (SAMPLES + 1)
    grown = []
    for sample in range(SAMPLES + 1):
        before = resident_bytes(server.pid)
        with idle_sessions(server, part, seed=seed, prefix=f"{sample}-"):
            pass
        grown.append((resident_bytes(server.pid) - before) / part - state_bytes)
    return grown[1:]


def resident_bytes(pid: int) -> int:
    """What a process has in memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (resident,) = [line.split()[1] for line in lines if line.startswith("Rss:")]
    return 1024 * int(resident)
