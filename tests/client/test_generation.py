import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from cellstream import (
    Client,
    ConnectionLost,
    GenerationInvalid,
    InputKindMismatch,
    PositionMismatch,
    PromptEmpty,
    SessionIdInvalid,
    TakenOver,
    TextNotEncodable,
    TokenOutOfRange,
)
from cellstream.testing import RunningServer, running_server

LONG = 60_000
"""So many tokens that no test waits for the last: what ends such a generation is the test."""


async def released(server: RunningServer) -> None:
    """Waits until the server holds nothing for anyone."""
    registry = server.server.registry
    async with asyncio.timeout(10):
        while registry.streams or registry.held.total():  # noqa: ASYNC110 - a server tells nobody of it
            await asyncio.sleep(0.001)


async def test_greedy_generation_is_the_predict_loop(client: Client) -> None:
    """Feeding back the most likely token by hand is what `temperature=0` means."""
    async with client.session() as session:
        reply, by_hand = await session.predict("ROMEO:"), []
        for _ in range(20):
            by_hand.append(int(reply.top_ids[-1, 0]))
            reply = await session.predict(by_hand[-1:])
    pieces = [piece async for piece in client.generate("ROMEO:", max_tokens=20, temperature=0)]
    assert [token for piece in pieces for token in piece.ids] == by_hand
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert (pieces[-1].finish_reason, pieces[-1].position) == ("length", 6 + 20)


async def test_the_same_seed_makes_the_same_text(client: Client) -> None:
    """And the seed is told, so that what was drawn by chance can be drawn again."""
    first = client.generate("ROMEO:", max_tokens=50)
    text = "".join([piece.text async for piece in first])
    assert first.seed is not None
    again = "".join([piece.text async for piece in client.generate("ROMEO:", max_tokens=50, seed=first.seed)])
    assert text == again
    assert (first.finish_reason, first.position) == ("length", 56)


async def test_a_stop_text_ends_it_exactly(client: Client) -> None:
    """Absorbed and not sent: the way to end where one wants to go on from."""
    whole = "".join([piece.text async for piece in client.generate(b"a", max_tokens=400, seed=3)])
    stop = next(letter for letter in whole if letter.isalpha() and letter.isascii())
    generation = client.generate(b"a", max_tokens=400, seed=3, stop=stop)
    text = "".join([piece.text async for piece in generation])
    assert generation.finish_reason == "stop"
    assert text == whole[: whole.index(stop)]


async def test_breaking_out_cancels_the_call(client: Client, server: RunningServer) -> None:
    """A call that nobody reads would go on to its last token, and hold its session."""
    async for piece in client.generate("a", session_id="alice", max_tokens=LONG):
        assert piece.finish_reason is None
        break
    await released(server)
    assert (await client.get_session("alice")).position < LONG


async def test_every_way_out_cancels_the_call(client: Client, server: RunningServer) -> None:
    """Closing it, leaving its block, an exception in the loop, cancelling the task that reads."""
    generation = client.generate("a", max_tokens=LONG)
    await anext(generation)
    await generation.aclose()
    assert [piece async for piece in generation] == []
    await released(server)

    async with client.generate("a", max_tokens=LONG) as generation:
        await anext(generation)
    await released(server)

    async with aclosing(client.generate("a", max_tokens=LONG)) as generation:
        await anext(generation)
    await released(server)

    async def fail() -> None:
        async for _ in client.generate("a", max_tokens=LONG):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await released(server)

    async def read() -> None:
        async for _ in client.generate("a", max_tokens=LONG):
            reading.set()

    reading = asyncio.Event()
    task = asyncio.create_task(read())
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await released(server)


async def test_a_generation_that_was_never_asked_for_does_nothing(
    client: Client, server: RunningServer
) -> None:
    """Making one is free; the call is made with the first piece."""
    generation = client.generate("a")
    await generation.aclose()
    assert not server.server.registry.streams


async def test_a_session_generates_and_goes_on(client: Client) -> None:
    """It lets go of its handle, generates from its own state, attaches again: as if by hand."""
    async with client.session() as by_hand:
        reply = await by_hand.predict("ROMEO:")
        tokens = []
        for _ in range(10):
            tokens.append(int(reply.top_ids[-1, 0]))
            reply = await by_hand.predict(tokens[-1:])
        expected = await by_hand.predict("x", log_probabilities=True)
    async with client.session("alice") as session:
        await session.predict("ROMEO:")
        pieces = [piece async for piece in session.generate(max_tokens=10, temperature=0)]
        assert [token for piece in pieces for token in piece.ids] == tokens
        assert session.position == 16
        assert not session.created
        reply = await session.predict("x", log_probabilities=True)
        assert reply.position == 17
        for name, array in expected.outputs.items():
            assert reply.outputs[name].tobytes() == array.tobytes()


async def test_a_new_session_can_begin_with_generation(client: Client) -> None:
    """Nothing need be fed first: the prompt is a feed like any other."""
    session = client.session("alice")
    async for _ in session.generate("ROMEO:", max_tokens=5):
        pass
    assert session.position == 11
    assert (await session.predict("x")).position == 12


async def test_a_session_that_generates_takes_no_feeds(client: Client) -> None:
    """Its own client would take the session from the generation, and end it."""
    async with client.session("alice") as session:
        generation = session.generate("a", max_tokens=LONG)
        await anext(generation)
        with pytest.raises(TakenOver, match="generating"):
            await session.predict("b")
        await anext(generation)
        await generation.aclose()
        assert await session.reattach() >= (generation.position or 0)
        await session.predict("b")


async def test_a_generation_that_is_broken_off_tells_of_what_it_did_not_send(
    client: Client, server: RunningServer
) -> None:
    """The server is ahead of what was read: going on as if it were not would be silent."""
    async with client.session("alice") as session:
        async for piece in session.generate("a", max_tokens=LONG):
            seen = piece.position
            break
        await released_but_one(server)
        assert session.position == seen
        position = (await client.get_session("alice")).position
        if position > seen:
            with pytest.raises(PositionMismatch):
                await session.predict("b")
        assert (await session.predict("b")).position == position + 1


async def released_but_one(server: RunningServer) -> None:
    """Waits until only the client's own stream is left."""
    registry = server.server.registry
    async with asyncio.timeout(10):
        while len(registry.streams) > 1 or registry.held.total():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_session_that_moved_meanwhile_is_not_generated_from(
    server: RunningServer, client: Client
) -> None:
    """The position goes with the request: text made from another state than the caller's is worth nothing."""
    async with Client(server.target) as other, client.session("alice") as session:
        await session.predict("abc")
        await session.leave()
        async with other.session("alice") as theirs:
            await theirs.predict("d")
        with pytest.raises(PositionMismatch):
            await anext(session.generate("e"))


async def test_what_cannot_be_generated_is_refused(many: Path) -> None:
    """By the server where it knows better, here where the wire has no number for it."""
    async with running_server(many, default_model="tiny") as server, Client(server.target) as client:
        for refused, error in (
            (client.generate(), PromptEmpty),
            (client.generate("a", top_p=1.5), GenerationInvalid),
            (client.generate("a", max_tokens=0), GenerationInvalid),
            (client.generate([999]), TokenOutOfRange),
            (client.generate("a", model="meter"), InputKindMismatch),
        ):
            with pytest.raises(error):
                await anext(refused)
            with pytest.raises(StopAsyncIteration):
                await anext(refused)
        with pytest.raises(GenerationInvalid):
            client.generate("a", seed=-1)
        with pytest.raises(TokenOutOfRange):
            client.generate([-1])
        with pytest.raises(TextNotEncodable):
            client.generate("\ud800")
        with pytest.raises(SessionIdInvalid):
            client.session().generate("a")


async def test_a_generation_that_is_cut_says_so(wire: Any) -> None:
    """The end of a stream looks like its success, unless one asks why it ended."""

    async def read() -> None:
        async for _ in client.generate("a", max_tokens=LONG):
            wire.cut()

    async with Client(wire.target) as client:
        with pytest.raises(ConnectionLost):
            await read()
