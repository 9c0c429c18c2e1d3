"""The hand that opens many streams counts each of them once, as opened or as refused."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from bench.opening import RawConnections
from bench.processes import Server

from cellstream.testing import running_server


@pytest.mark.parametrize(("slots_max", "refused"), [(8, 0), (5, 3), (2, 6)])
async def test_what_is_opened_and_what_is_refused_is_all(tiny: Path, slots_max: int, refused: int) -> None:
    """A refusal that goes unseen would make the row of the bench a zero that means nothing."""
    async with running_server(tiny, slots_max=slots_max) as running:
        server = Server(os.getpid(), running.server.port, 0)

        def opened() -> tuple[int, int]:
            with RawConnections(server, 3) as connections:
                return connections.open(8)

        assert await asyncio.to_thread(opened) == (8 - refused, refused)


async def test_streams_beyond_the_bound_are_refused(tiny: Path) -> None:
    """Here a stream ends by its status, before any message of ours."""
    async with running_server(tiny, streams_max=5) as running:
        server = Server(os.getpid(), running.server.port, 0)

        def opened() -> tuple[int, int]:
            with RawConnections(server, 2) as connections:
                return connections.open(8)

        assert await asyncio.to_thread(opened) == (5, 3)
