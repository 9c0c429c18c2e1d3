"""What clients that do not read can make the server hold, against what it says that it holds."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from tests.api.call_in_memory import CallInMemory

from cellstream.api.predict import PredictStream
from cellstream.sessions import Handle
from cellstream.transport.call import OK, Method, Why
from cellstream.v1 import prediction_pb2 as pb

STREAMS = 8
TOTAL = 1 << 20
ITEMS = 4096


@pytest.fixture
async def streams(serve: Any) -> list[tuple[PredictStream, CallInMemory]]:
    """Streams whose clients have made no room."""
    front = await serve(buffered_bytes_max=TOTAL, transport="grpcio")
    made = []
    for _ in range(STREAMS):
        call = CallInMemory(Method(lambda call: PredictStream(call, front.server._context)), room=0)
        assert isinstance(call.handler, PredictStream)
        made.append((call.handler, call))
    return made


async def test_failures_that_nobody_reads_are_bounded(streams: Any) -> None:
    """8 KiB of empty feeds on handles that are not open are 4096 errors; they wait as feeds do."""
    message = pb.PredictRequest(feeds=[pb.Feed(id=number) for number in range(ITEMS)]).SerializeToString()
    unsent = streams[0][0]._context.unsent
    tracemalloc.start()
    for stream, _ in streams:
        for _ in range(4):
            stream.received(message)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert unsent.total <= 2 * TOTAL + STREAMS * 1200, "the bound, and an item of each stream"
    assert held <= 1.5 * unsent.total + STREAMS * 4 * (len(message) + 1000), "what is counted is what is held"
    for stream, _ in streams:
        ids = []
        while (response := stream.next_message()) is not None:
            ids += [result.feed_id for result in pb.PredictResponse.FromString(response).results]
        assert ids == list(range(ITEMS)) * 4, "each is answered, in order, once there is room"
    assert unsent.total == 0
    for stream, _ in streams:
        stream.closed(Why.LOST)


@pytest.mark.parametrize("at", [4, 10])
async def test_a_generation_that_cannot_be_told_says_so(
    front: Any, log: Any, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Whether in its midst or at its last token: INTERNAL, and nothing stays behind."""
    from cellstream.api.generate import GenerateStream

    log.expected.add("feed_failed")
    told = GenerateStream.result
    count = 0

    def broken(stream: GenerateStream, handle: Handle, queued: Any, progress: Any) -> None:
        nonlocal count
        if progress.made:
            count += len(progress.made)
            if count >= at:
                raise RuntimeError("SECRET")
        told(stream, handle, queued, progress)

    monkeypatch.setattr(GenerateStream, "result", broken)
    error = await front.failure(front.generate(text="a", max_tokens=10, seed=1))
    assert (error.reason, "SECRET" in error.message) == ("INTERNAL", False)
    await front.until(lambda: not front.registry.streams)
    assert len(front.registry) == 0


async def test_a_half_closed_stream_does_not_end_before_what_it_kept_is_answered(serve: Any) -> None:
    """All that is kept is failures, but for one feed, which takes a turn of the engine."""
    front = await serve(stream_outbox_bytes_max=4096)
    call = CallInMemory(Method(lambda call: PredictStream(call, front.server._context)), room=0)
    stream = call.handler
    assert isinstance(stream, PredictStream)
    failing = pb.PredictRequest(feeds=[pb.Feed(handle=9, id=number) for number in range(20)])
    feed = pb.PredictRequest(opens=[pb.Open(handle=1)], feeds=[pb.Feed(handle=1, id=77, text="abc")])
    for message in (failing, failing, feed):
        stream.received(message.SerializeToString())
    stream.half_closed()
    found: list[pb.Result] = []

    def pull() -> bool:
        while (response := stream.next_message()) is not None:
            found.extend(pb.PredictResponse.FromString(response).results)
        return found[-1].feed_id == 77

    assert not pull()
    assert len(found) == 40
    assert call._ending is None, "the last feed is not answered yet"
    await front.until(pull)
    assert (found[-1].position, found[-1].done) == (3, True)
    assert call._ending == OK
    stream.closed(Why.ENDED)


async def test_empty_messages_are_not_kept(serve: Any) -> None:
    """They have no byte that a window counts, so that a paused stream could be sent them without end."""
    front = await serve(stream_outbox_bytes_max=4096)
    call = CallInMemory(Method(lambda call: PredictStream(call, front.server._context)), room=0)
    stream = call.handler
    assert isinstance(stream, PredictStream)
    stream.received(pb.PredictRequest(feeds=[pb.Feed(handle=9)] * 20).SerializeToString())
    kept = len(stream._unread)
    for _ in range(1000):
        stream.received(b"")
    assert 0 < kept == len(stream._unread)
    stream.closed(Why.LOST)
