"""Streams that end, break or do not read: what becomes of their sessions, and that nobody else notices."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode

from cellstream.api import convert
from cellstream.v1 import prediction_pb2 as pb
from cellstream.v1 import session_pb2

WHOLE = pb.Answer(want=pb.WANT_EVERY_STEP, top_k=0, log_probabilities=True)
LARGE = pb.Answer(want=pb.WANT_EVERY_STEP, top_k=256, log_probabilities=True)
"""About 3 KB a token."""


@pytest.fixture
def lone(tiny: Path, alone: Any) -> Any:
    """The oracle of `tiny`."""
    return alone(tiny / "tiny" / "1")


def check(talk: Any, feed_ids: list[int], oracle: Any, history: list[int]) -> None:
    """The feeds' answers are those of the whole history, alone, bit for bit."""
    found = np.concatenate([talk.arrays(feed_id)["log_probabilities"] for feed_id in feed_ids])
    expected = np.stack([step.log_probabilities for step in oracle.steps(history)[1:]])
    np.testing.assert_array_equal(found, expected[len(expected) - len(found) :])


@pytest.fixture
async def bystander(front: Any, lone: Any) -> AsyncIterator[Any]:
    """Another client, on a connection of its own; whatever the test does, its answers are right."""
    async with grpc.aio.insecure_channel(front.running.target) as channel, front.talk(channel) as talk:
        await talk.open(0, "bystander", answer=WHOLE)
        await talk.feed("before", id=1)
        yield talk
        await talk.feed(" and after", id=2)
        check(talk, [1, 2], lone, list(b"before and after"))


async def test_a_message_far_beyond_the_bound(serve: Any, lone: Any, transport: str) -> None:
    """Refused as soon as its size is told; grpcio's core does that itself, without a reason."""
    front = await serve(message_bytes_max=5000)
    async with front.talk() as other, front.talk() as talk:
        await other.open(0, answer=WHOLE)
        await other.feed("before", id=1)
        await talk.say(feeds=[pb.Feed(text="a" * 10_001)])
        ending = await talk.ending()
        if transport == "grpcio":
            assert (ending.code, ending.reason) == (StatusCode.RESOURCE_EXHAUSTED, "")
            assert "larger than max (10" in ending.message
        else:
            assert (ending.code, ending.reason) == (StatusCode.INVALID_ARGUMENT, "MESSAGE_TOO_LARGE")
        await other.feed(" and after", id=2)
        check(other, [1, 2], lone, list(b"before and after"))


async def test_a_cancel_drops_what_is_unapplied(front: Any, bystander: Any) -> None:
    """Between two tokens; the sessions without a name end, their slots are free at once."""
    brake = front.brake()
    async with front.talk() as talk:
        await talk.say(opens=[pb.Open(handle=0), pb.Open(handle=1, session_id="alice")])
        await talk.opened(1)
        brake.hold()
        await talk.say(feeds=[pb.Feed(handle=handle, id=handle, text="never") for handle in (0, 1)])
        await front.until(lambda: front.engine().waiting == 2)
        talk.call.cancel()
        await front.until(lambda: len(front.registry.streams) == 1)
        assert front.engine().waiting == 0
        assert front.engine().slots_taken == 2, "the bystander and alice"
        brake.release()
    async with front.talk() as talk:
        assert (await talk.open(0, "alice", mode=pb.MODE_ATTACH)).position == 0


async def test_a_half_closed_stream_is_answered_to_its_end(front: Any, bystander: Any, lone: Any) -> None:
    """What was read is applied, held back by nothing; then OK, and the named session stays."""
    brake = front.brake()
    async with front.talk() as talk:
        await talk.open(0, "alice", answer=WHOLE)
        brake.hold()
        await talk.say(feeds=[pb.Feed(id=1, text="abc"), pb.Feed(id=2, text="def")])
        await talk.call.done_writing()
        await front.until(lambda: front.engine().waiting == 1)
        brake.release()
        ending = await talk.ending()
        assert ending.code is StatusCode.OK
        check(talk, [1, 2], lone, list(b"abcdef"))
    async with front.talk() as talk:
        assert (await talk.open(0, "alice", mode=pb.MODE_ATTACH)).position == 6


async def test_a_deadline_ends_a_stream_as_a_cancel_does(front: Any, bystander: Any) -> None:
    """The client is told by its own gRPC; the server lets go of its sessions."""
    brake = front.brake()
    async with front.talk(timeout=0.2) as talk:
        await talk.open(0, "alice")
        await talk.feed("abc", id=1)
        brake.hold()
        await talk.say(feeds=[pb.Feed(id=2, text="never")])
        ending = await talk.ending()
        assert ending.code is StatusCode.DEADLINE_EXCEEDED
        await front.until(lambda: len(front.registry.streams) == 1)
        brake.release()
    async with front.talk() as talk:
        assert (await talk.open(0, "alice", mode=pb.MODE_ATTACH)).position == 3


async def test_a_deadline_that_is_past(front: Any, bystander: Any) -> None:
    """It may never leave the client; whether or not it does, nothing is applied and nothing is left."""
    async with front.talk(timeout=-1) as talk:
        assert (await talk.ending()).code is StatusCode.DEADLINE_EXCEEDED
    request = session_pb2.CloseSessionRequest(session_id="bystander")
    error = await front.failure(front.session.CloseSession(request, timeout=-1))
    assert error.code is StatusCode.DEADLINE_EXCEEDED
    await front.until(lambda: len(front.registry.streams) == 1)
    assert front.engine().slots_taken == 1


VANISHING = """
import sys, grpc
from cellstream.v1 import prediction_pb2 as pb, prediction_pb2_grpc
stub = prediction_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(sys.argv[1]))
def messages():
    yield pb.PredictRequest(
        opens=[pb.Open(handle=0, session_id="alice"), pb.Open(handle=1)],
        feeds=[pb.Feed(handle=0, id=1, text="abc"), pb.Feed(handle=1, id=2, text="abc")],
    )
    import threading; threading.Event().wait()
for response in stub.Predict(messages()):
    if any(result.feed_id == 2 for result in response.results):
        print("fed", flush=True)
"""


async def test_a_client_that_vanishes(front: Any, bystander: Any) -> None:
    """Its process is killed in the middle of its stream: noticed, and the same as a cancel."""
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", VANISHING, front.running.target, stdout=asyncio.subprocess.PIPE
    )
    assert client.stdout is not None
    assert await client.stdout.readline() == b"fed\n"
    assert front.engine().slots_taken == 3
    client.kill()
    await client.wait()
    await front.until(lambda: len(front.registry.streams) == 1)
    assert front.engine().slots_taken == 2
    async with front.talk() as talk:
        assert (await talk.open(0, "alice", mode=pb.MODE_ATTACH)).position == 3


async def test_a_client_that_never_reads_blocks_only_itself(serve: Any, lone: Any) -> None:
    """Its answers are kept up to a bound, then its sessions are not stepped; others go on, and so may it."""
    bound = 64 * 1024
    front = await serve(stream_outbox_bytes_max=bound, response_bytes_max=bound // 4)
    tokens = [number % 256 for number in range(6000)]
    async with (
        grpc.aio.insecure_channel(front.running.target, front.small_window) as channel,
        front.talk(channel) as slow,
    ):
        await slow.open(0, "slow", answer=LARGE)
        (stream,) = front.registry.streams
        await slow.say(
            feeds=[
                pb.Feed(id=number, tokens=pb.Tokens(ids=tokens[500 * number : 500 * (number + 1)]))
                for number in range(12)
            ]
        )
        await front.until(lambda: stream.paused)
        assert front.engine().waiting == 0
        assert stream.listener._flow.unsent_bytes < bound + 256 * 4096, "the bound, and what one call may add"
        async with front.talk() as other:
            await other.open(0, answer=WHOLE)
            for number in range(20):
                await other.feed("abc", id=number)
            check(other, list(range(20)), lone, list(b"abc" * 20))
        assert stream.paused
        assert stream.listener._flow.unsent_bytes < bound + 256 * 4096
        await slow.result(11)
        check(slow, list(range(12)), lone, tokens)
        assert not stream.paused


async def test_a_session_can_be_taken_from_a_client_that_does_not_read(serve: Any) -> None:
    """Its position is known although its answers are stuck; the new writer goes on from there."""
    front = await serve(stream_outbox_bytes_max=64 * 1024)
    async with (
        grpc.aio.insecure_channel(front.running.target, front.small_window) as channel,
        front.talk(channel) as slow,
    ):
        await slow.open(0, "alice", answer=LARGE)
        (stream,) = front.registry.streams
        await slow.say(feeds=[pb.Feed(id=number, text="x" * 4000) for number in range(2)])
        await front.until(lambda: stream.paused)
        async with front.talk() as other:
            opened = await other.open(0, "alice", mode=pb.MODE_ATTACH)
            assert 0 < opened.position < 8000
            result = await other.feed("y", id=1, position=opened.position)
            assert result.position == opened.position + 1
        event = await slow.event(0)
        assert (event.cause, event.position) == (pb.CAUSE_TAKEN_OVER, opened.position)
        last = [slow.results(number)[-1] for number in range(2) if slow.results(number)]
        assert {front.told(result.error).reason for result in last} == {"TAKEN_OVER"}
        assert {result.position for result in last} == {opened.position}


async def test_a_stream_is_read_only_as_fast_as_it_is_stepped(serve: Any, lone: Any) -> None:
    """Unapplied bytes are bounded: the rest waits with the client, and none of it is lost."""
    window = 1024
    front = await serve(stream_window_bytes=window)
    brake = front.brake()
    async with front.talk() as talk:
        await talk.open(answer=WHOLE)
        brake.hold()
        (stream,) = front.registry.streams

        async def send() -> None:
            for number in range(60):
                await talk.say(feeds=[pb.Feed(id=number, text="x" * 100)])

        sending = asyncio.create_task(send())
        await front.until(lambda: stream.unapplied_bytes > window - 110)
        for _ in range(200):
            await asyncio.sleep(0)
        assert stream.unapplied_bytes <= window + 110, "the window, and one message"
        brake.release()
        await sending
        await talk.result(59)
        check(talk, list(range(60)), lone, list(b"x" * 6000))
        assert stream.unapplied_bytes == 0


async def test_a_long_feed_delays_nobody(front: Any, lone: Any) -> None:
    """Ten thousand tokens take one row of each step: a feed of one token waits for a call, not for them."""
    async with front.talk() as long, front.talk() as short:
        await long.open(0, answer=pb.Answer(want=pb.WANT_NONE))
        await short.open(0, answer=WHOLE)
        await long.say(feeds=[pb.Feed(id=1, text="x" * 10_000)])
        await front.until(lambda: front.engine().waiting == 1)
        for number in range(5):
            await short.feed("a", id=number)
            assert front.engine().waiting == 1, "the long feed is not over yet"
        check(short, list(range(5)), lone, list(b"aaaaa"))
        assert (await long.result(1)).position == 10_000


async def test_idle_sessions_expire_and_whoever_holds_them_is_told(front: Any) -> None:
    """Held, kept or without a name; one that is fed, or whose feed waits, does not."""
    brake = front.brake()
    async with front.talk() as talk:
        await talk.say(
            opens=[
                pb.Open(handle=handle, session_id=name)
                for handle, name in enumerate(("held", "kept", "", "fed", ""))
            ],
            closes=[pb.Close(handle=1, keep=True)],
        )
        await talk.event(1)
        front.sweep_after(3599)
        await talk.feed("abc", handle=3, id=1)
        assert len(front.registry) == 5
        brake.hold()
        await talk.say(feeds=[pb.Feed(handle=4, id=2, text="waits")])
        await front.until(lambda: front.engine().waiting == 1)
        front.sweep_after(1)
        events = [await talk.event(handle) for handle in (0, 2)]
        assert {event.cause for event in events} == {pb.CAUSE_EXPIRED}
        assert {session.id for session in front.registry if session.named} == {"fed"}
        assert len(front.registry) == 2
        brake.release()
        await talk.result(2)
        opened = await talk.open(0, "kept")
        assert (opened.created, opened.previous.cause) == (True, pb.CAUSE_EXPIRED)


async def test_ends_are_remembered_up_to_a_number(serve: Any) -> None:
    """The oldest is forgotten first, so that a million names that come and go take no memory."""
    front = await serve(tombstones_max=2)
    async with front.talk() as talk:
        for name in ("a", "b", "c"):
            await talk.open(0, name)
            await talk.say(closes=[pb.Close(handle=0)])
            await talk.event(0)
        reasons = []
        for handle, name in enumerate(("a", "b", "c")):
            opened = await talk.open(handle, name, mode=pb.MODE_ATTACH)
            reasons.append(front.told(opened.error).reason)
    assert reasons == ["SESSION_UNKNOWN", "SESSION_CLOSED", "SESSION_CLOSED"]


async def test_a_thousand_streams_come_and_go(front: Any) -> None:
    """Slots, streams and handles all come back; a burst of openings is not refused."""

    async def visit(number: int) -> int:
        async with front.talk() as talk:
            await talk.say(opens=[pb.Open()], feeds=[pb.Feed(id=number, text="abc")])
            result = await talk.result(number)
            if number % 2:
                await talk.end()
            return result.position

    for burst in range(5):
        assert await asyncio.gather(*map(visit, range(60 * burst, 60 * (burst + 1)))) == [3] * 60
        await front.until(lambda: not front.registry.streams)
        assert front.engine().slots_taken == 0


async def test_what_is_kept_of_a_message_does_not_keep_the_message(front: Any) -> None:
    """Refusals are remembered and answers wait: neither may hold, or say again, what else was sent."""
    async with front.talk() as talk:
        await talk.say(opens=[pb.Open(handle=0, session_id="x" * 1_000_000)])
        refused = await talk.opened(0)
        assert front.told(refused.error).reason == "SESSION_ID_INVALID"
        assert refused.session_id == ""
        (stream,) = front.registry.streams
        assert stream.closed_handles[0].__traceback__ is None
    feed = pb.Feed(text="a", answer=pb.Answer(top_k=3))
    given = convert.given_by(feed, 0.0, 1, 1)
    feed.answer.top_k = 4
    assert given.answer is not None
    assert given.answer.top_k == 3
