import asyncio
import re
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from cellstream import (
    Client,
    ClientSettings,
    ConnectionLost,
    Draining,
    FeedAfterFailure,
    PositionMismatch,
    Reply,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionIdInvalid,
    SessionUnknown,
    TakenOver,
    TextNotEncodable,
    TokenOutOfRange,
    ValuesMisshapen,
)
from cellstream.testing import ManualClock, RunningServer, running_server
from cellstream.v1 import prediction_pb2 as pb
from cellstream.v1 import prediction_pb2_grpc

HAMLET = "To be, or not to be: that is the question"


async def asked_by_hand(target: str, request: pb.PredictRequest) -> list[pb.Result]:
    """The results of a one-message conversation, by the generated stubs alone."""
    async with grpc.aio.insecure_channel(target) as channel:
        call = prediction_pb2_grpc.PredictionServiceStub(channel).Predict(iter([request]))
        return [result async for response in call for result in response.results]


def assert_equal(reply: Reply, other: Reply) -> None:
    """Bit for bit."""
    assert (reply.position, reply.steps) == (other.position, other.steps)
    for name in ("top_ids", "top_log_probabilities", "scores"):
        np.testing.assert_array_equal(getattr(reply, name), getattr(other, name))
    for name in ("outputs", "states", "gates"):
        mine, theirs = getattr(reply, name), getattr(other, name)
        assert mine.keys() == theirs.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], theirs[key])


# ---------------------------------------------------------------- what comes back


async def test_a_reply_is_what_the_generated_stubs_receive(server: RunningServer, client: Client) -> None:
    """The client may make the wire comfortable, and must not change a bit of what the model said."""
    answer = pb.Answer(
        want=pb.WANT_EVERY_STEP, top_k=3, log_probabilities=True, score=True, states=True, gates=True
    )
    feed = pb.Feed(text=HAMLET, answer=answer)
    request = pb.PredictRequest(opens=[pb.Open()], feeds=[feed])
    results = await asked_by_hand(server.target, request)
    said = [result.predictions for result in results]
    async with client.session() as session:
        reply = await session.predict(
            HAMLET,
            want="every_step",
            top_k=3,
            log_probabilities=True,
            score=True,
            states=True,
            gates=True,
        )
    assert reply.position == results[-1].position == len(HAMLET)
    assert reply.steps == sum(part.steps for part in said) == len(HAMLET)
    ids = [token for part in said for token in part.top_ids]
    likely = [value for part in said for value in part.top_log_probabilities]
    scores = [value for part in said for value in part.scores]
    assert reply.top_ids.tolist() == np.reshape(ids, (-1, 3)).tolist()
    assert reply.top_log_probabilities.tolist() == np.reshape(likely, (-1, 3)).tolist()
    np.testing.assert_array_equal(reply.scores, np.array(scores, np.float32))
    for column in ("outputs", "states", "gates"):
        mine = getattr(reply, column)
        assert list(mine) == [tensor.name for tensor in getattr(said[0], column)]
        for place, (name, array) in enumerate(mine.items()):
            tensors = [getattr(part, column)[place] for part in said]
            assert {tensor.name for tensor in tensors} == {name}
            assert array.dtype == np.float32
            assert list(array.shape) == [len(HAMLET), *tensors[0].shape[1:]]
            assert array.tobytes() == b"".join(tensor.data for tensor in tensors)
    assert sorted(reply.gates) == ["candidate", "forget", "input", "output"]
    assert sorted(reply.states) == ["cell", "hidden"]


async def test_text_bytes_and_ids_are_one_input(client: Client) -> None:
    """For a model of bytes they are the same tokens, in whatever type they come."""
    ids = list(HAMLET.encode())
    inputs: list[Any] = [HAMLET, HAMLET.encode(), ids, tuple(ids), np.array(ids), np.array(ids, np.uint8)]
    replies = []
    for given in inputs:
        async with client.session() as session:
            replies.append(await session.predict(given))
    for reply in replies[1:]:
        assert_equal(replies[0], reply)


async def test_values_go_and_predictions_come_as_arrays(many: Path) -> None:
    """A model of meters takes frames of any float type, and answers with the next frame."""
    frames: NDArray[np.float64] = np.random.default_rng(0).normal(size=(7, 3))
    async with running_server(many, default_model="meter") as server, Client(server.target) as client:
        async with client.session() as session:
            reply = await session.predict(frames, want="every_step", top_k=0, log_probabilities=True)
            (name, predicted), *others = reply.outputs.items()
            assert not others
            assert predicted.shape == (7, 3)
            with pytest.raises(ValuesMisshapen):
                await session.predict(frames[0])
        async with client.session() as session:
            single = [
                await session.predict(
                    frames[step : step + 1].astype(np.float32), top_k=0, log_probabilities=True
                )
                for step in range(7)
            ]
        np.testing.assert_array_equal(predicted, np.concatenate([one.outputs[name] for one in single]))


async def test_a_feed_s_answer_differs_from_the_session_s_only_where_it_says_so(client: Client) -> None:
    """On the wire a feed's answer replaces the session's whole; who asks for more keeps the rest."""
    async with client.session(want="every_step", top_k=2, score=True) as session:
        assert (await session.predict("abc")).top_ids.shape == (3, 2)
        reply = await session.predict("def", states=True)
        assert reply.top_ids.shape == (3, 2)
        assert reply.scores.shape == (3,)
        assert reply.states["hidden"].shape[0] == 3
        assert not (await session.predict("ghi")).states


async def test_the_parts_of_a_long_feed_are_its_reply(client: Client) -> None:
    """Sixteen thousand log-probabilities come in several messages; nobody should have to know."""
    text = HAMLET * 70
    async with client.session(want="every_step", log_probabilities=True, score=True) as session:
        whole = await session.predict(text)
    async with client.session(want="every_step", log_probabilities=True, score=True) as session:
        parts = [part async for part in session.predict_in_parts(text)]
        assert session.position == len(text)
    assert len(parts) > 1
    assert whole.steps == len(text) == sum(part.steps for part in parts)
    assert [part.position for part in parts] == np.cumsum([part.steps for part in parts]).tolist()
    (name,) = whole.outputs
    np.testing.assert_array_equal(whole.outputs[name], np.concatenate([part.outputs[name] for part in parts]))
    np.testing.assert_array_equal(whole.scores, np.concatenate([part.scores for part in parts]))


async def test_surprise_is_in_bits(client: Client) -> None:
    """The unit of the whole project: −log₂ of the probability of what came."""
    async with client.session() as session:
        before = await session.predict("a", log_probabilities=True)
        (probabilities,) = before.outputs.values()
        reply = await session.predict("b", score=True)
    assert reply.surprise_bits.tolist() == pytest.approx(
        [-np.log2(np.exp(probabilities[0, ord("b")]))], rel=1e-5
    )


# ---------------------------------------------------------------- a session's life


async def test_leaving_keeps_a_named_session_and_ends_the_others(client: Client) -> None:
    """A name is what says that someone will come back."""
    async with client.session("alice") as alice, client.session() as nobody:
        await alice.predict("abc")
        assert {info.position async for info in client.sessions()} == {3, 0}
        nobody_s_id = nobody.id
    assert (await client.get_session("alice")).position == 3
    with pytest.raises(SessionUnknown):
        await client.get_session(nobody_s_id)


async def test_a_session_goes_on_where_it_was_left(server: RunningServer, client: Client) -> None:
    """From another client, later: the state stays with the server, bit for bit."""
    async with client.session() as session:
        alone = await session.predict(HAMLET)
    async with client.session("alice") as alice:
        assert alice.created
        await alice.predict(HAMLET[:9])
    async with Client(server.target) as other, other.session("alice") as alice:
        assert (alice.created, alice.position, alice.model, alice.version) == (False, 9, "tiny", "1")
        assert_equal(await alice.predict(HAMLET[9:]), alone)


async def test_a_session_attaches_again_when_it_is_used_after_leaving(client: Client) -> None:
    """`async with` twice, or no `async with` at all, is no mistake."""
    session = client.session("alice")
    assert (await session.predict("abc")).position == 3
    await session.leave()
    assert (await session.predict("d")).position == 4
    async with session:
        assert (session.position, session.created) == (4, False)


async def test_closing_ends_it_and_the_next_of_its_name_is_told(client: Client) -> None:
    """Never a fresh state in place of a lost one without a word."""
    async with client.session("alice") as alice:
        await alice.predict("abc")
        await alice.close()
        await alice.close()
        with pytest.raises(SessionClosed):
            await alice.predict("d")
    async with client.session("alice") as alice:
        assert (alice.created, alice.position) == (True, 0)
        assert alice.previous is not None
        assert (alice.previous.cause, alice.previous.position) == ("closed", 3)


async def test_closing_a_session_that_was_left_ends_it_too(client: Client) -> None:
    """`close` means the session, not the handle."""
    session = client.session("alice")
    await session.predict("abc")
    await session.leave()
    await session.close()
    with pytest.raises(SessionClosed):
        await client.get_session("alice")


async def test_modes_refuse_what_they_must(client: Client) -> None:
    """Create never takes over, attach never makes."""
    with pytest.raises(SessionUnknown):
        await client.session("alice", mode="attach").open()
    await client.session("alice", mode="create").open()
    with pytest.raises(SessionExists):
        await client.session("alice", mode="create").open()
    await client.session("alice", mode="attach").open()


async def test_a_refused_open_leaves_nothing_to_close(client: Client, server: RunningServer) -> None:
    """Its handle is free at once; a Close for it would be refused too, and counted as another fault."""
    with pytest.raises(SessionUnknown):
        await client.session("alice", mode="attach").open()
    await client.session("bob").open()  # behind what the refused one might have sent

    def scrape() -> str:
        url = f"http://127.0.0.1:{server.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=5) as response:
            text: str = response.read().decode()
        return text

    reasons = re.findall(
        r'^cellstream_(\w+)_total\{reason="(\w+)"\} ([1-9].*)$', await asyncio.to_thread(scrape), re.M
    )
    assert reasons == [("errors", "SESSION_UNKNOWN", "1.0")]


async def test_reset_goes_back_to_the_start(client: Client) -> None:
    """Behind the feeds in flight, and with failures forgotten."""
    async with client.session() as session:
        first = await session.predict("abc")
        sent = await session.send("x" * 100)
        failing = await session.send([999])
        await session.reset()
        assert session.position == 0
        assert (await sent).position == 103
        assert_equal(await session.predict("abc"), first)
        with pytest.raises(TokenOutOfRange):
            await failing


async def test_many_sessions_share_one_stream_and_one_step(client: Client, server: RunningServer) -> None:
    """What is asked in one moment travels in one message and steps in one call; nobody arranges it."""
    sessions = [client.session(f"s{number}") for number in range(32)]
    await asyncio.gather(*(session.open() for session in sessions))
    assert len(server.server.registry.streams) == 1
    engine = next(iter(server.server.registry.catalogue)).engine
    turns = []
    turn = engine.turn
    engine.turn = lambda: turns.append(turn()) or turns[-1]  # type: ignore[method-assign, func-returns-value]
    for token in range(3):
        replies = await asyncio.gather(*(session.predict([token]) for session in sessions))
        assert {reply.position for reply in replies} == {token + 1}
    assert [call.rows for call in turns if call is not None] == [32, 32, 32]


async def test_a_session_that_was_never_opened_asks_nothing_of_the_server() -> None:
    """Making one is free; what cannot be reached is told when it is first used."""
    client = Client("127.0.0.1:1", settings=ClientSettings(connect_timeout_seconds=0.1))
    session = client.session("alice")
    assert repr(session) == "<Session 'alice' at 0: not opened yet>"
    await session.leave()
    await client.close()
    await client.close()


# ---------------------------------------------------------------- several feeds in flight


async def test_pipelined_feeds_are_applied_in_order(client: Client) -> None:
    """The same answers as one by one, without waiting for each."""
    async with client.session() as session:
        one_by_one = [await session.predict(letter) for letter in HAMLET]
    async with client.session() as session:
        pending = [await session.send(letter) for letter in HAMLET]
        for reply, expected in zip(await asyncio.gather(*pending), one_by_one, strict=True):
            assert_equal(reply, expected)


async def test_a_failed_feed_fails_alone_and_stops_what_counted_on_it(client: Client) -> None:
    """Tokens behind a hole must not be applied, whenever their sender learns of it."""
    async with client.session() as session:
        good, bad, behind = [await session.send(given) for given in ("ab", [999], "cd")]
        assert (await good).position == 2
        with pytest.raises(FeedAfterFailure):
            await behind
        assert behind.done()
        # The failure has come, and nobody has looked at it yet: whoever sends on does not know of the hole.
        with pytest.raises(FeedAfterFailure):
            await session.send("ef")
        with pytest.raises(TokenOutOfRange) as failure:
            await bad
        assert failure.value.values["position"] == "2"
        assert (await session.predict("cd")).position == 4


async def test_a_sender_that_never_drains_recovers_too(client: Client) -> None:
    """With a window always in flight, the first feed after the seen failure goes on from its position."""
    async with client.session() as session:
        bad, *doomed = [await session.send(given) for given in ([999], "a", "b", "c")]
        with pytest.raises(TokenOutOfRange):
            await bad
        again = [await session.send(given) for given in ("a", "b", "c")]
        assert [(await one).position for one in again] == [1, 2, 3]
        for one in doomed:
            with pytest.raises(FeedAfterFailure):
                await one
        assert (await session.predict("d")).position == 4


async def test_wrong_inputs_are_refused_before_they_are_sent(client: Client) -> None:
    """A negative id or half a character would break the message that all sessions share."""
    async with client.session() as session, client.session() as other:
        sending = [await other.send("abc")]
        with pytest.raises(TokenOutOfRange):
            await session.send([-1])
        with pytest.raises(TextNotEncodable):
            await session.send("\ud800")
        with pytest.raises(TypeError):
            await session.send([0.5])  # type: ignore[list-item]
        sending.append(await other.send("def"))
        assert [(await one).position for one in sending] == [3, 6]
        assert (await session.predict("abc")).position == 3


async def test_a_misspelt_option_is_refused(client: Client) -> None:
    """Passed over, it would be an answer without what was asked for, and no word why."""
    with pytest.raises(TypeError, match="no option 'gate'; there are want, top_k"):
        client.session("alice", gate=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no option 'timeout'"):
        await client.session("alice").predict("a", timeout=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no option 'tokens_max'; there are max_tokens"):
        client.generate("a", tokens_max=1)  # type: ignore[call-arg]


async def test_senders_wait_while_too_much_is_unsent(server: RunningServer) -> None:
    """A sender that is faster than the server fills neither this memory nor that one."""
    settings = ClientSettings(unsent_bytes_max=5_000)
    async with Client(server.target, settings=settings) as client, client.session(want="none") as session:
        pending = []
        unsent_most = 0
        for _ in range(40):
            pending.append(await session.send("x" * 1000))
            unsent_most = max(unsent_most, client._connection.conversation().outbox.size_bytes)
        assert unsent_most < 7_000
        assert [(await one).position for one in pending] == list(range(1000, 41_000, 1000))


async def test_a_wait_that_is_given_up_is_found_out_by_the_next_feed(client: Client) -> None:
    """The tokens may have been applied: a caller who sends them again must not have them applied twice."""
    async with client.session() as session:
        await session.predict("abc")
        given_up = asyncio.create_task(session.predict("def"))
        await asyncio.sleep(0)  # it is sent
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert session.position == 3
        with pytest.raises(PositionMismatch) as mismatch:
            await session.predict("def")
        assert (mismatch.value.values["client_position"], mismatch.value.values["server_position"]) == (
            "3",
            "6",
        )
        assert (await session.predict("ghi")).position == 9


async def test_parts_that_are_broken_off_are_found_out_too(client: Client) -> None:
    """Breaking off gives up the answer, and the feed goes on to its end."""
    async with client.session(want="every_step", log_probabilities=True) as session:
        async for part in session.predict_in_parts("x" * 3000):
            assert part.position < 3000
            break
        with pytest.raises(PositionMismatch):
            await session.predict("y")
        assert (await session.predict("y", log_probabilities=False)).position == 3001


# ---------------------------------------------------------------- what others do to it


async def test_a_session_that_was_taken_over_is_not_taken_back_by_itself(
    server: RunningServer, client: Client
) -> None:
    """Two clients that take a session back from each other would never stop; `reattach` is a decision."""
    async with Client(server.target) as other, client.session("alice") as mine:
        await mine.predict("abc")
        async with other.session("alice") as theirs:
            await theirs.predict("d")
            for _ in range(2):
                with pytest.raises(TakenOver):
                    await mine.predict("e")
            with pytest.raises(TakenOver):
                await mine.close()
            assert (await theirs.predict("e")).position == 5
            assert await mine.reattach() == 5
            with pytest.raises(TakenOver):
                await theirs.predict("f")
            assert (await mine.predict("f")).position == 6


async def test_a_session_taken_over_in_the_moment_of_its_opening_says_so(client: Client) -> None:
    """Its opening and its end come in one message, before who opened it wakes: it is not open then."""
    first, second = client.session("alice"), client.session("alice")
    await asyncio.gather(first.open(), second.open())
    with pytest.raises(TakenOver):
        await first.predict("a")
    assert (await second.predict("b")).position == 1


async def test_feeds_in_flight_end_when_a_session_is_taken_over(
    server: RunningServer, client: Client
) -> None:
    """The old writer's remaining tokens never run, and it hears so."""
    async with Client(server.target) as other, client.session("alice") as mine:
        pending = [await mine.send("x" * 16_000, want="none") for _ in range(3)]
        async with other.session("alice") as theirs:
            position = theirs.position
            with pytest.raises(TakenOver):
                await asyncio.gather(*pending)
            assert (await theirs.predict("y")).position == position + 1


async def test_a_session_closed_elsewhere_says_so(client: Client) -> None:
    """Whoever holds it is told, and never given a new one of the same name."""
    async with client.session("alice") as session:
        await session.predict("abc")
        assert await client.close_session("alice") == 3
        for _ in range(2):
            with pytest.raises(SessionClosed):
                await session.predict("d")


async def test_an_expired_session_says_so(tiny: Path) -> None:
    """An hour of silence ends it; going on with an empty memory would be a lie."""
    clock = ManualClock()
    async with running_server(tiny, clock=clock) as server, Client(server.target) as client:
        held, left = client.session("held"), client.session("left")
        await held.predict("abc")
        await left.predict("abc")
        await left.leave()
        clock.advance(3601)
        server.sweep()
        for session in (held, left):
            for _ in range(2):
                with pytest.raises(SessionExpired):
                    await session.predict("d")
        async with client.session("held") as again:
            assert (again.created, again.previous and again.previous.cause) == (True, "expired")


async def test_a_server_that_goes_away_says_so(tiny: Path) -> None:
    """Feeds in flight end with Draining, and their positions are final."""
    async with running_server(tiny) as server:
        client = Client(server.target, settings=ClientSettings(connect_timeout_seconds=0.1))
        named, anonymous = client.session("alice"), client.session()
        assert (await named.predict("abc")).position == 3
        answers = [
            session.predict_in_parts("x" * 16_000, want="every_step", log_probabilities=True)
            for session in (named, anonymous)
        ]
        for answer in answers:
            await anext(answer)
    for answer in answers:
        with pytest.raises(Draining):
            async for _ in answer:
                pass
    with pytest.raises(Draining):
        await anonymous.predict("d")
    # Opened again on a stream that may not have heard its end yet: then that end is what is told.
    again = r"session 'alice' .* going away, at position \d+: |the server is going away"
    with pytest.raises((ConnectionLost, Draining), match=again):
        await named.predict("d")
    await client.close()


async def test_a_session_without_a_name_cannot_be_attached_to_again(client: Client) -> None:
    """It ended with its stream; there is nothing to go back to."""
    async with client.session() as session:
        with pytest.raises(SessionIdInvalid):
            await session.reattach()


def test_a_mode_that_is_none_is_refused_at_once() -> None:
    """A typing mistake should not travel."""
    with pytest.raises(ValueError, match="attach_or_create"):
        Client("localhost:1").session("alice", mode="attatch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="attach_or_create"):
        Client("localhost:1").generate("a", mode="attatch")  # type: ignore[arg-type]
