"""What clients that do not read can make the server hold, against what it says that it holds."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from tests.api.call_in_memory import CallInMemory

from cellstream.api.predict import PredictStream
from cellstream.sessions import Handle
from cellstream.transport.call import Method, Why
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
    assert unsent.total <= 2 * TOTAL + STREAMS * 1000, "the bound, and an item of each stream"
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
