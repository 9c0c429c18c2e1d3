"""What handlers and clients are promised by the transport; `GRPCIO_CANNOT` says what grpcio cannot keep."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from cellstream.api.predict import PredictStream
from cellstream.transport.call import Why
from cellstream.v1 import prediction_pb2 as pb
from cellstream.v1 import prediction_pb2_grpc


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the handlers of Predict hear of their calls' ends, in order."""
    found: list[str] = []
    half_closed, closed = PredictStream.half_closed, PredictStream.closed

    def note_half_closed(stream: PredictStream) -> None:
        found.append("half-closed")
        half_closed(stream)

    def note_closed(stream: PredictStream, why: Why) -> None:
        found.append(why.value)
        closed(stream, why)

    monkeypatch.setattr(PredictStream, "half_closed", note_half_closed)
    monkeypatch.setattr(PredictStream, "closed", note_closed)
    return found


async def test_a_half_close_and_its_end(front: Any, heard: list[str]) -> None:
    """The handler hears the one, then ends the call itself."""
    async with front.talk() as talk:
        await talk.open()
        assert (await talk.end()).code is StatusCode.OK
    await front.until(lambda: not front.registry.streams)
    assert heard == ["half-closed", "ended"]


async def test_a_cancel_is_no_half_close(front: Any, heard: list[str]) -> None:
    """What a client broke off is not taken for something that it finished."""
    async with front.talk() as talk:
        await talk.open()
    await front.until(lambda: not front.registry.streams)
    assert heard == ["cancelled"]


async def test_a_deadline(front: Any, heard: list[str]) -> None:
    """The handler hears that time is over, or that its client, whose clock it is too, broke off."""
    async with front.talk(timeout=0.3) as talk:
        await talk.open()
        assert (await talk.ending()).code is StatusCode.DEADLINE_EXCEEDED
    await front.until(lambda: not front.registry.streams)
    assert heard[-1] in ("deadline", "cancelled")


async def test_a_stream_that_ends_is_told_from_a_connection_that_is_lost(
    front: Any, heard: list[str]
) -> None:
    """A socket that closes under a stream is neither a cancel nor an end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", front.server.port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
    block = b"".join(
        b"\x10"
        + bytes([len(name)])
        + name
        + bytes([len(value)])
        + value  # literals, never indexed (RFC 7541)
        for name, value in (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/cellstream.v1.PredictionService/Predict"),
            (b"content-type", b"application/grpc"),
        )
    )
    request = pb.PredictRequest(opens=[pb.Open(session_id="alice")]).SerializeToString()
    message = b"\0" + len(request).to_bytes(4, "big") + request
    for kind, flags, payload in ((1, 4, block), (0, 0, message)):
        writer.write(len(payload).to_bytes(3, "big") + bytes([kind, flags]) + b"\0\0\0\1" + payload)
    await front.until(lambda: len(front.registry) == 1)
    writer.close()
    await front.until(lambda: not front.registry.streams)
    assert heard == ["lost"]
    del reader


async def test_headers_alone_are_bounded(serve: Any) -> None:
    """Calls that never say anything are refused beyond a number, and cost the others nothing."""
    front = await serve(unstarted_calls_max=3)
    async with grpc.aio.insecure_channel(front.running.target) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        silent = [stub.Predict() for _ in range(4)]
        ended = [asyncio.ensure_future(call.code()) for call in silent]
        (first,), _ = await asyncio.wait(ended, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        told = first.result()
        assert told is StatusCode.RESOURCE_EXHAUSTED
        for call in silent:
            call.cancel()


def ping(target: str, session: str, rounds: int, calls: list[int]) -> list[int]:
    """Feed a session one token at a time; return how many calls of the engine each feed took."""
    waiting: queue.SimpleQueue[pb.PredictRequest | None] = queue.SimpleQueue()

    def requests() -> Iterator[pb.PredictRequest]:
        while (request := waiting.get()) is not None:
            yield request

    with grpc.insecure_channel(target) as channel:
        answers = prediction_pb2_grpc.PredictionServiceStub(channel).Predict(requests())
        waiting.put(pb.PredictRequest(opens=[pb.Open(session_id=session)]))
        next(answers)
        took = []
        for number in range(rounds):
            before = len(calls)
            waiting.put(pb.PredictRequest(feeds=[pb.Feed(id=number, text="a")]))
            assert next(answers).results[0].feed_id == number
            took.append(len(calls) - before)
        waiting.put(None)
        return took


async def test_a_full_queue_starves_nobody(front: Any) -> None:
    """Beside 65,536 queued tokens each lone token is in one of the next calls, not behind them all."""
    engine, calls = front.engine(), list[int]()
    turn = engine.turn

    def counted() -> Any:
        call = turn()
        if call is not None:
            calls.append(call.rows)
        return call

    engine.turn = counted
    async with front.talk() as long:
        await long.open(0, answer=pb.Answer(want=pb.WANT_NONE))
        for number in range(4):
            await long.say(feeds=[pb.Feed(id=number, tokens=pb.Tokens(ids=[1] * 16_384))])
        took = await asyncio.gather(
            *(asyncio.to_thread(ping, front.running.target, f"ping {who}", 10, calls) for who in range(4))
        )
        # A handful, for the threads of this process share one interpreter; behind the queue it is hundreds.
        assert max(max(each) for each in took) <= 50
        assert sum(sum(each) for each in took) / 40 <= 10


async def test_a_connection_is_told_to_go_before_it_is_closed(front: Any) -> None:
    """GOAWAY for all streams first, then for those that were taken; only then the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", front.server.port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
    stopping: asyncio.Task[None] | None = None
    goaways: list[int] = []
    async with asyncio.timeout(20):
        while header := await reader.read(9):
            header += await reader.readexactly(9 - len(header)) if len(header) < 9 else b""
            payload = await reader.readexactly(int.from_bytes(header[:3], "big"))
            if header[3] == 4 and not header[4] & 1:  # its SETTINGS
                stopping = asyncio.create_task(front.server.stop())
            elif header[3] == 6 and not header[4] & 1:  # its PING
                writer.write(b"\0\0\x08\x06\x01\0\0\0\0" + payload)
            elif header[3] == 7:
                goaways.append(int.from_bytes(payload[:4], "big"))
    assert goaways == [2**31 - 1, 0]
    writer.close()
    assert stopping is not None
    await stopping
