import asyncio
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

from cellstream import (
    Client,
    Health,
    ModelUnknown,
    SessionClosed,
    SessionUnknown,
    StateInfo,
    VersionUnknown,
)
from cellstream.client.inventory import read_health
from cellstream.testing import RunningServer, running_server


async def test_models_are_listed_and_described(many: Path) -> None:
    """A client that knows nothing of a server can find out what it may feed."""
    async with running_server(many, default_model="tiny") as server, Client(server.target) as client:
        models = {(model.name, model.version): model for model in await client.models()}
        assert sorted(models) == [("letters", "1"), ("meter", "1"), ("tiny", "1"), ("tiny", "2")]
        assert [key for key, model in models.items() if model.is_default] == [("tiny", "2")]
        tiny, meter = models["tiny", "2"], models["meter", "1"]
        assert (tiny.input_kind, tiny.vocabulary_size, tiny.features) == ("tokens", 256, 0)
        assert (meter.input_kind, meter.vocabulary_size, meter.features) == ("values", 0, 3)
        assert tiny.states == (StateInfo("hidden", "float32", (2, 16)), StateInfo("cell", "float32", (2, 16)))
        assert tiny.gates == ("forget", "input", "output", "candidate")
        assert len(tiny.manifest_digest) == 64
        assert tiny.numerics_digest != models["tiny", "1"].numerics_digest
        assert await client.model() == tiny
        assert await client.model("meter", "1") == meter
        with pytest.raises(ModelUnknown):
            await client.model("nobody")
        with pytest.raises(VersionUnknown):
            await client.model("tiny", "3")


async def test_sessions_are_listed_page_by_page(client: Client) -> None:
    """All of them, each once, whatever the size of a page; ids are not told."""
    async with client.session("held") as held:
        for number in range(7):
            async with client.session(f"s{number}") as session:
                await session.predict("x" * (number + 1))
        for page_size in (1, 3, 8, 0):
            sessions = [session async for session in client.sessions(page_size=page_size)]
            assert sorted(session.position for session in sessions) == list(range(8))
            assert [session.position for session in sessions if session.held] == [held.position]
            assert len({session.session_hash for session in sessions}) == 8
            assert all(session.session_hash not in {"held", "s0"} for session in sessions)


async def test_a_session_is_seen_and_ended_from_outside(client: Client) -> None:
    """For whoever knows its id."""
    async with client.session("alice") as session:
        await session.predict("abc")
        seen = await client.get_session("alice")
        assert (seen.position, seen.held, seen.model, seen.version) == (3, True, "tiny", "1")
        assert 0 <= seen.idle_seconds < 60
    assert await client.close_session("alice") == 3
    with pytest.raises(SessionClosed):
        await client.get_session("alice")
    with pytest.raises(SessionUnknown):
        await client.close_session("bob")


async def test_a_serving_server_is_healthy_and_a_draining_one_is_not(
    client: Client, server: RunningServer
) -> None:
    """What a compose file's health check asks."""
    assert await client.health() is Health.SERVING
    server.server._health.shutdown()
    assert await client.health() is Health.NOT_SERVING


@pytest.mark.parametrize("status", health_pb2.HealthCheckResponse.ServingStatus.values())
def test_health_is_read_as_the_standard_writes_it(status: int) -> None:
    """The message is read by hand, so it is held against the package that defines it."""
    raw = health_pb2.HealthCheckResponse(status=status).SerializeToString()
    assert read_health(raw) == (status if status in set(Health) else Health.UNKNOWN)


def test_health_that_makes_no_sense_is_unknown() -> None:
    """Whatever answers there, it is no reason to call the server healthy."""
    for raw in (b"\x10\x01", b"\x08\x63", b"\x08\x01\x00", b"\x08"):
        assert read_health(raw) is Health.UNKNOWN


async def test_many_single_calls_at_once(client: Client) -> None:
    """They share the channel, and need no stream."""
    answers = await asyncio.gather(*(client.health() for _ in range(50)))
    assert set(answers) == {Health.SERVING}
