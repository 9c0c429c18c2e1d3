"""The load client counts answers, and takes nothing else for one."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bench.client import LoadClient, LoadFailed

from cellstream.testing import RunningServer, running_server
from cellstream.v1 import prediction_pb2 as pb
from cellstream.v1 import session_pb2


def requests(feeds: int, tokens: int, *, token: int = 65) -> list[bytes]:
    """An opening of so many sessions, and two messages that feed each of them so many tokens."""
    opening = pb.PredictRequest(opens=[pb.Open(handle=handle) for handle in range(feeds)])
    feed = partial(pb.Feed, tokens=pb.Tokens(ids=[token] * tokens))
    messages = [pb.PredictRequest(feeds=[feed(handle=handle) for handle in range(feeds)])] * 2
    return [each.SerializeToString() for each in (opening, *messages)]


async def opened(server: RunningServer, messages: list[bytes], **numbers: Any) -> LoadClient:
    """A client whose streams are open; the server runs in this process, so a thread waits for it."""
    port = int(server.target.rpartition(":")[2])
    return await asyncio.to_thread(LoadClient, port, messages, **numbers)


@pytest.mark.parametrize(
    ("streams", "connections", "window", "feeds", "tokens"),
    [(1, 1, 1, 1, 1), (5, 2, 3, 4, 7), (2, 1, 2, 1, 5000)],
    ids=["ping-pong", "windows of joined feeds", "messages of several frames"],
)
async def test_it_counts_what_the_server_absorbed(
    tiny: Path, streams: int, connections: int, window: int, feeds: int, tokens: int
) -> None:
    """Each figure of the bench is a quotient of this count."""
    async with running_server(tiny) as server:
        client = await opened(
            server,
            requests(feeds, tokens),
            streams=streams,
            connections=connections,
            window=window,
            feeds=feeds,
            tokens=tokens,
        )
        first = await asyncio.to_thread(client.run, 0.05)
        second = await asyncio.to_thread(client.run, 0)
        absorbed = sum(session.position for session in server.server.registry)
        client.close()
    assert second["replies"] == streams * window, "with no time left, each stream is answered its window"
    assert first["tokens"] == first["replies"] * feeds * tokens
    assert absorbed == first["tokens"] + second["tokens"]
    assert window <= first["stream_replies_min"] <= first["stream_replies_max"] <= first["replies"]
    assert 0 < first["p50_ms"] <= first["p99_ms"] <= 1000 * first["seconds"] + 1e-5  # both are rounded
    assert first["cpu_seconds"] > 0


@pytest.mark.parametrize(
    ("slots_max", "messages", "says"),
    [
        (1, requests(2, 1), "the server refused: all 1 slots"),
        (2, requests(2, 1, token=256), "the server refused: .*256"),
        (2, requests(2, 3), "position 3 after feed 1 of 1 tokens"),
    ],
    ids=["no room", "a token that does not exist", "a position that is not what was sent"],
)
async def test_it_takes_no_error_for_an_answer(
    tiny: Path, slots_max: int, messages: list[bytes], says: str
) -> None:
    """A server that refuses is fast: its refusals must never be counted as tokens."""
    async with running_server(tiny, slots_max=slots_max) as server:

        async def load() -> None:
            client = await opened(server, messages, streams=1, feeds=2, tokens=1)
            await asyncio.to_thread(client.run, 0.05)

        with pytest.raises(LoadFailed, match=says):
            await load()


async def test_it_ends_with_the_server(tiny: Path) -> None:
    """A server that goes away in the middle of a run is no slow server."""
    async with running_server(tiny) as server:
        client = await opened(server, requests(1, 1), streams=2, feeds=1, tokens=1)
        running = asyncio.create_task(asyncio.to_thread(client.run, 60))
    with pytest.raises(LoadFailed, match="an event came"):
        await running


async def unary(server: RunningServer, session_id: str) -> LoadClient:
    """A client with three calls of `GetSession` under way over two connections."""
    request = session_pb2.GetSessionRequest(session_id=session_id).SerializeToString()
    path = "/cellstream.v1.SessionService/GetSession"
    numbers = {"streams": 3, "connections": 2, "feeds": 1, "tokens": 1}
    return await opened(server, [request, request], path=path, **numbers)


async def test_it_makes_unary_calls(tiny: Path) -> None:
    """Each message is a call of its own, and a call counts when its status is OK."""
    opening = pb.PredictRequest(opens=[pb.Open(handle=0, session_id="named")]).SerializeToString()
    async with running_server(tiny) as server:
        holder = await opened(server, [opening, opening], streams=1, feeds=1, tokens=1)
        client = await unary(server, "named")
        told = await asyncio.to_thread(client.run, 0.05)
        client.close()
        holder.close()
    assert told["replies"] >= 3
    assert 1 <= told["stream_replies_min"] <= told["stream_replies_max"]


async def test_it_takes_no_refused_call_for_an_answer(tiny: Path) -> None:
    """The same of a unary call, whose refusal is a status."""
    async with running_server(tiny) as server:
        with pytest.raises(LoadFailed, match="grpc-status: 5"):
            await unary(server, "nobody's")
