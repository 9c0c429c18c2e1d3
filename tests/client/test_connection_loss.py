"""Connections that break in the middle of things: a real wire that is cut, a real server that is killed."""

import asyncio
import contextlib
import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cellstream import (
    CellstreamError,
    Client,
    ClientSettings,
    ConnectionLost,
    FeedAfterFailure,
    MessageTooLarge,
    PositionMismatch,
    Reply,
    Session,
    SessionUnknown,
    TooManyStreams,
)
from cellstream.testing import RunningServer, running_server

QUICK = ClientSettings(connect_timeout_seconds=0.2, close_timeout_seconds=0.2)


async def answered(session: Session, given: str) -> Reply:
    """The reply to a feed, where the client may not have noticed yet that its wire was cut."""
    try:
        return await session.predict(given)
    except ConnectionLost:
        return await session.predict(given)


async def absorbed(server: RunningServer, position: int) -> None:
    """Waits until the server's one session has absorbed so many tokens."""
    (session,) = server.server.registry
    async with asyncio.timeout(10):
        while session.position < position:  # noqa: ASYNC110 - a server tells nobody but its clients
            await asyncio.sleep(0.001)


async def test_a_named_session_goes_on_after_a_cut(wire: Any) -> None:
    """Nothing was in flight and the positions agree: nobody need know that the wire was cut."""
    async with Client(wire.target) as client, client.session("alice") as session:
        await session.predict("abc")
        wire.cut()
        assert (await answered(session, "d")).position == 4
        assert not session.created


async def test_what_was_asked_of_the_session_is_asked_again(wire: Any) -> None:
    """Its feeds go on answering as its opening said, on the new stream too."""
    async with Client(wire.target) as client, client.session("alice", want="every_step", top_k=2) as session:
        await session.predict("abc")
        wire.cut()
        assert (await answered(session, "def")).top_ids.shape == (3, 2)


async def test_a_session_without_a_name_ends_with_its_stream(wire: Any) -> None:
    """It cannot be found again, and a fresh one in its place would have forgotten everything."""
    async with Client(wire.target) as client, client.session() as session:
        await session.predict("abc")
        wire.cut()
        for _ in range(2):
            with pytest.raises(ConnectionLost):
                await session.predict("d")
        async with client.session() as another:
            assert (await another.predict("a")).position == 1


async def test_tokens_that_were_applied_unheard_are_not_applied_again(
    wire: Any, server: RunningServer
) -> None:
    """The worst moment: the server has absorbed the feed, and its answer is lost with the connection."""
    async with Client(wire.target) as client, client.session("alice") as session:
        await session.predict("abc")
        wire.deaf = True
        pending = await session.send("def")
        await absorbed(server, 6)
        wire.cut()
        with pytest.raises(ConnectionLost) as lost:
            await pending
        assert (lost.value.values["position"], lost.value.values["unanswered"]) == ("3", "1")
        assert session.position == 3
        with pytest.raises(PositionMismatch) as mismatch:
            await session.predict("def")
        assert mismatch.value.values == {"client_position": "3", "server_position": "6"}
        assert (await session.predict("ghi")).position == 9


async def test_a_loss_has_to_be_seen_before_anything_more_is_sent(wire: Any, server: RunningServer) -> None:
    """Whoever pipelines must not go on over a hole that nobody has told him of."""
    async with Client(wire.target) as client, client.session("alice") as session:
        await session.predict("abc")
        wire.deaf = True
        pending = [await session.send("d") for _ in range(3)]
        await absorbed(server, 6)
        wire.cut()
        with pytest.raises(ConnectionLost):
            await pending[2]
        with pytest.raises(FeedAfterFailure):
            await session.send("e")
        with pytest.raises(ConnectionLost):
            await pending[0]
        assert await session.reattach() == 6
        assert (await session.predict("e")).position == 7


async def test_a_reset_is_possible_whatever_was_lost(wire: Any, server: RunningServer) -> None:
    """To start again, nobody has to find out first where the session stood."""
    async with Client(wire.target) as client, client.session("alice") as session:
        wire.deaf = True
        pending = await session.send("abc")
        await absorbed(server, 3)
        wire.cut()
        with pytest.raises(ConnectionLost):
            await pending
        await session.reset()
        assert (await session.predict("a")).position == 1


async def test_a_server_that_died_is_not_replaced_by_an_empty_one(process: Any) -> None:
    """It comes back without the session: going on would be a fresh zero state under the old name."""
    async with Client(process.target) as client:
        session, other = client.session("alice"), client.session()
        await session.predict("abc")
        pending = await other.send("x" * 16_000)
        await process.kill()
        with pytest.raises(ConnectionLost):
            await pending
        await process.restart()
        for _ in range(2):
            with pytest.raises(SessionUnknown):
                await answered(session, "d")
        async with client.session("alice") as again:
            assert (again.created, again.position) == (True, 0)


async def test_silence_has_a_bound_and_late_answers_are_found_out(process: Any) -> None:
    """A server that is stopped says nothing, and its connection stands: the wait ends all the same."""
    async with Client(process.target) as client, client.session("alice") as session:
        await session.predict("abc")
        process.send(signal.SIGSTOP)
        for give_up in (
            session.predict("def", timeout_seconds=0.1),
            session.reset(timeout_seconds=0.1),
            client.session("bob").open(timeout_seconds=0.1),
            client.models(timeout_seconds=0.1),
            client.health(timeout_seconds=0.1),
        ):
            with pytest.raises(ConnectionLost):
                await give_up
        process.send(signal.SIGCONT)
        # Both the feed and the reset have been done by now; the caller was told of neither.
        with pytest.raises(PositionMismatch) as mismatch:
            await session.predict("def")
        assert mismatch.value.values["client_position"] == "3"
        assert mismatch.value.values["server_position"] == "0"
        assert (await session.predict("def")).position == 3
        async with client.session("bob") as bob:  # its first opening was answered to nobody, and let go of
            assert bob.position == 0


async def test_a_silent_server_is_noticed_by_its_connection(process: Any) -> None:
    """A machine that vanished closes no connection; pings that go unanswered tell, long before a time-out."""
    settings = ClientSettings(keepalive_seconds=0.2, keepalive_timeout_seconds=0.2, timeout_seconds=60)
    async with Client(process.target, settings=settings) as client, client.session("alice") as session:
        await session.predict("abc")
        process.send(signal.SIGSTOP)
        async with asyncio.timeout(20):
            with pytest.raises(ConnectionLost, match="UNAVAILABLE"):
                await session.predict("d")
        process.send(signal.SIGCONT)


async def test_leaving_a_session_whose_wire_was_cut_is_no_error(wire: Any, client: Client) -> None:
    """The end of its stream does the same to a session as a close does."""
    async with Client(wire.target) as cut, cut.session("alice") as named, cut.session():
        await named.predict("abc")
        wire.cut()
    async with client.session("alice") as named:
        assert named.position == 3


async def test_leaving_a_silent_server_ends_too(process: Any) -> None:
    """`async with` must not hang because the other side does."""
    client = Client(process.target, settings=QUICK)
    session = client.session("alice")
    await session.predict("abc")
    process.send(signal.SIGSTOP)
    with pytest.raises(ConnectionLost):
        await session.leave(timeout_seconds=0.1)
    async with asyncio.timeout(5):
        await client.close()
    with pytest.raises(ConnectionLost, match="closed"):
        await session.predict("d")


async def test_nobody_there_is_told_soon_and_in_words() -> None:
    """A wrong port is the most common mistake of all."""
    async with Client("127.0.0.1:1", settings=QUICK) as client:
        for asked in (client.session("alice").open(), client.models(), client.health()):
            with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1:1"):
                await asked


async def test_no_time_is_no_wait(process: Any) -> None:
    """Who counts down a deadline of his own comes to 0, and wants to wait no longer, not the default."""
    async with Client(process.target, settings=QUICK) as client, client.session("alice") as session:
        process.send(signal.SIGSTOP)
        try:
            async with asyncio.timeout(10):
                with pytest.raises(ConnectionLost, match="no word about a feed for 0 s"):
                    await session.predict("a", timeout_seconds=0)
                with pytest.raises(ConnectionLost):
                    await client.models(timeout_seconds=0)
        finally:
            process.send(signal.SIGCONT)


async def test_calls_in_flight_when_the_client_closes_say_so(process: Any) -> None:
    """By gRPC they are cancelled as if by their callers: that would end tasks which nobody ended."""
    async with Client("127.0.0.1:1") as unconnected, Client(process.target) as client:
        await client.models()
        process.send(signal.SIGSTOP)
        try:
            calls = [unconnected.models(), client.models(), anext(client.generate("a"))]
            asked = [asyncio.ensure_future(call) for call in calls]
            await asyncio.wait(asked, timeout=0.1)  # until they wait, whatever for
            await asyncio.gather(unconnected.close(), client.close())
            for one in asked:
                with pytest.raises(ConnectionLost, match="the client was closed"):
                    await one
        finally:
            process.send(signal.SIGCONT)


async def test_a_server_that_comes_up_meanwhile_is_met(tiny: Path, unused_tcp_port: int) -> None:
    """Both start together in a compose file; the client must not depend on being second."""
    knocked = asyncio.Event()

    async def turn_away(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        knocked.set()
        writer.close()

    nobody = await asyncio.start_server(turn_away, "127.0.0.1", unused_tcp_port)
    async with Client(f"127.0.0.1:{unused_tcp_port}") as client:
        opening = asyncio.create_task(client.session("alice").open())
        await knocked.wait()
        nobody.close()
        await nobody.wait_closed()
        assert not opening.done()
        async with running_server(tiny, port=unused_tcp_port):
            await opening


async def test_an_interrupted_caller_does_not_wait_for_a_silent_server(process: Any) -> None:
    """After Ctrl-C nobody waits a minute, the bound of a call, for a server that has stopped answering."""
    feeding = asyncio.Event()

    async def feed() -> None:
        async with Client(process.target, settings=QUICK) as client, client.session("alice") as session:
            await session.predict("a")
            process.send(signal.SIGSTOP)
            feeding.set()
            await session.predict("b")

    fed = asyncio.create_task(feed())
    try:
        async with asyncio.timeout(10):
            await feeding.wait()
        fed.cancel()
        await asyncio.wait([fed], timeout=5)  # not asyncio.timeout: its own cancel would look like ours
        assert fed.cancelled()
    finally:
        process.send(signal.SIGCONT)


async def test_too_many_streams_is_not_a_lost_connection(tiny: Path) -> None:
    """The server is there and says how long to wait: a caller who waits gets in."""
    async with (
        running_server(tiny, streams_max=1, retry_after_seconds=0.5) as server,
        Client(server.target) as first,
        Client(server.target) as second,
    ):
        session = second.session("alice")
        async with first.session():
            with pytest.raises(TooManyStreams) as refused:
                await session.open()
            assert refused.value.retry_after_seconds == 0.5
        await first.close()
        await session.open()


@pytest.mark.parametrize("size_bytes", [5 << 20, 9 << 20])
async def test_a_message_too_large_for_the_server_is_told_and_survived(
    server: RunningServer, size_bytes: int
) -> None:
    """Refused by the server (4 MiB), or by gRPC before it (8 MiB): the stream ends, a named session stays."""
    settings = ClientSettings(message_bytes_max=1 << 30)
    async with Client(server.target, settings=settings) as client, client.session("alice") as session:
        await session.predict("abc")
        with pytest.raises(MessageTooLarge):
            await session.predict("x" * size_bytes)
        assert (await session.predict("d")).position == 4


async def test_a_feed_that_would_end_the_stream_is_not_sent(client: Client) -> None:
    """One caller's mistake must not cost all other sessions their stream."""
    async with client.session() as session, client.session() as other:
        with pytest.raises(MessageTooLarge, match="several feeds"):
            await session.predict("x" * (5 << 20))
        assert (await other.predict("a")).position == 1
        assert (await session.predict("a")).position == 1


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_breaks_each_token_is_applied_once(
    wire: Any, server: RunningServer, seed: int
) -> None:
    """The promise itself: resend from the position that is told, and the state is the one of an unbroken run.

    Feeds are pipelined, waits given up, the wire deafened and cut, all by chance; no error is looked at but
    to go on from `session.position`.
    """
    random = Random(seed)
    tokens = [random.randrange(256) for _ in range(400)]
    broken = 0
    async with Client(wire.target) as client, client.session("alice", want="none") as session:
        while (at := session.position) < len(tokens):
            pending = []
            try:
                for _ in range(random.randrange(1, 5)):
                    size = random.randrange(1, 6)
                    pending.append(await session.send(tokens[at : at + size]))
                    at += size
                    wire.deaf = random.random() < 0.1
                    if at >= len(tokens):
                        break
            except CellstreamError:
                broken += 1
            await asyncio.sleep(random.choice([0, 0, 0.001, 0.003]))
            if wire.deaf or random.random() < 0.1:
                wire.cut()
            if pending and random.random() < 0.1:
                pending[-1].give_up()
            for one in pending:
                try:
                    await one
                except (CellstreamError, asyncio.CancelledError):
                    broken += 1
        while session.position == len(tokens):
            with contextlib.suppress(ConnectionLost):
                broken_reply = await session.predict("x", want="last", log_probabilities=True, states=True)
    async with Client(server.target) as client, client.session() as session:
        await session.predict(tokens)
        alone = await session.predict("x", log_probabilities=True, states=True)
    assert broken, "nothing broke, so nothing was shown"
    for column in ("outputs", "states"):
        for name, array in getattr(alone, column).items():
            assert getattr(broken_reply, column)[name].tobytes() == array.tobytes()
