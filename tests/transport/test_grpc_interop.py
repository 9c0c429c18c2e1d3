"""gRPC's published interop cases, written anew, with grpcio as the client; and both event loops.

The names are those of grpc/grpc `doc/interop-test-descriptions.md`. The cases that need an authority's
accounts, a load balancer or a proxy are left out; `cacheable_unary` needs GET, which gRPC has given up.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tests.transport.grpc_server import LOOPS, Server
from tests.transport.grpc_service import ASK

from cellstream.transport.call import Why

SIZES_SENT = (27182, 8, 1828, 45904)
SIZES_ASKED = (31415, 9, 2653, 58979)
"""The published ones."""

SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP \U0001f608\t\n"


@pytest.fixture(scope="module", params=LOOPS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A running server, on each event loop."""
    with Server(request.param) as server:
        yield server


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    """A channel to it."""
    server.log.closed.clear()
    with grpc.insecure_channel(server.target) as channel:
        yield channel


def call(channel: grpc.Channel, method: str, message: bytes = b"", **options: Any) -> Any:
    """Make a unary call; return its answer and the finished call."""
    return channel.unary_unary(f"/test.Test/{method}").with_call(message, **options)


class TestInterop:
    """The published cases, and some beside them."""

    def test_empty_unary(self, channel: grpc.Channel) -> None:
        assert call(channel, "Unary")[0] == b""

    def test_large_unary(self, channel: grpc.Channel) -> None:
        assert call(channel, "Unary", bytes(271_828))[0] == bytes(271_828)

    def test_a_message_of_three_megabytes_passes_both_ways(self, channel: grpc.Channel) -> None:
        message = bytes(range(256)) * 12_000
        assert call(channel, "Unary", message)[0] == message

    def test_client_compressed_unary(self, channel: grpc.Channel) -> None:
        message = b"compressible " * 20_000
        assert call(channel, "Unary", message, compression=grpc.Compression.Gzip)[0] == message

    def test_server_compressed_unary(self, channel: grpc.Channel) -> None:
        message = b"compressible " * 2000  # within what we pack
        answer, finished = call(channel, "Unary", message, compression=grpc.Compression.Gzip)
        assert answer == message
        assert finished.code() is grpc.StatusCode.OK

    def test_client_streaming(self, channel: grpc.Channel) -> None:
        total = channel.stream_unary("/test.Test/Count")(bytes(size) for size in SIZES_SENT)
        assert total == b"74922"  # the published sum

    def test_client_compressed_streaming(self, channel: grpc.Channel) -> None:
        messages = (bytes(size) for size in SIZES_SENT)
        count = channel.stream_unary("/test.Test/Count")
        assert count(messages, compression=grpc.Compression.Gzip) == b"74922"

    def test_server_streaming(self, channel: grpc.Channel) -> None:
        answers = list(channel.unary_stream("/test.Test/ManyOnce")(ASK.pack(4, 31_415)))
        assert answers == [bytes(31_415)] * 4

    def test_ping_pong(self, channel: grpc.Channel) -> None:
        waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        answers = channel.stream_stream("/test.Test/Many")(iter(waiting.get, None))
        for size in SIZES_ASKED:
            waiting.put(ASK.pack(1, size))
            assert next(answers) == bytes(size)
        waiting.put(None)
        assert list(answers) == []
        assert answers.code() is grpc.StatusCode.OK

    def test_empty_stream(self, channel: grpc.Channel) -> None:
        answers = channel.stream_stream("/test.Test/Echo")(iter(()))
        assert list(answers) == []
        assert answers.code() is grpc.StatusCode.OK

    def test_custom_metadata(self, channel: grpc.Channel) -> None:
        sent = (
            ("x-grpc-test-echo-initial", "test_initial_metadata_value"),
            ("x-grpc-test-bin", b"\xab\xab\xab"),
        )
        answer, _ = call(channel, "Metadata", metadata=sent)
        for item in dict(sent).items():
            assert f"{item[0]!r}: {item[1]!r}".encode() in answer

    def test_status_code_and_message(self, channel: grpc.Channel) -> None:
        with pytest.raises(grpc.RpcError) as failed:
            call(channel, "Fail", b"2 test status message")
        assert failed.value.code() is grpc.StatusCode.UNKNOWN
        assert failed.value.details() == "test status message"
        answers = channel.stream_stream("/test.Test/FailStream")(iter([b"2 test status message"]))
        with pytest.raises(grpc.RpcError):
            list(answers)
        assert (answers.code(), answers.details()) == (grpc.StatusCode.UNKNOWN, "test status message")

    def test_special_status_message(self, channel: grpc.Channel) -> None:
        with pytest.raises(grpc.RpcError) as failed:
            call(channel, "Fail", b"2 " + SPECIAL.encode())
        assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.UNKNOWN, SPECIAL)

    def test_details_reach_the_client(self, channel: grpc.Channel) -> None:
        with pytest.raises(grpc.RpcError) as failed:
            call(channel, "Fail", b"5 with details!")
        assert dict(failed.value.trailing_metadata())["grpc-status-details-bin"] == b"details"

    @pytest.mark.parametrize("path", ["/test.Test/Nope", "/test.Nope/Unary"])
    def test_unimplemented_method_and_service(self, channel: grpc.Channel, path: str) -> None:
        with pytest.raises(grpc.RpcError) as failed:
            channel.unary_unary(path)(b"")
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED

    def test_cancel_after_begin(self, server: Server, channel: grpc.Channel) -> None:
        """The handler has begun: before that nobody is told."""
        waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        finished = channel.stream_unary("/test.Test/Count").future(iter(waiting.get, None))
        waiting.put(b"x")
        server.heard(lambda log: log.received[-1:] == [b"x"])
        finished.cancel()
        waiting.put(None)
        server.heard(lambda log: log.closed == [Why.CANCELLED])
        assert finished.code() is grpc.StatusCode.CANCELLED

    def test_cancel_after_first_response(self, server: Server, channel: grpc.Channel) -> None:
        waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        answers = channel.stream_stream("/test.Test/Many")(iter(waiting.get, None))
        waiting.put(ASK.pack(1, 31_415))
        assert next(answers) == bytes(31_415)
        answers.cancel()
        waiting.put(None)
        server.heard(lambda log: log.closed == [Why.CANCELLED])
        assert answers.code() is grpc.StatusCode.CANCELLED

    def test_timeout_on_sleeping_server(self, server: Server, channel: grpc.Channel) -> None:
        """The client resets the call at its own deadline, so that the handler hears either."""
        answers = channel.stream_stream("/test.Test/Silent")(iter([b"x"]), timeout=0.2)
        with pytest.raises(grpc.RpcError):
            next(answers)
        assert answers.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        server.heard(lambda log: log.closed and log.closed[0] in (Why.DEADLINE, Why.CANCELLED))

    def test_a_closed_channel_is_a_cancel_or_lost(self, server: Server) -> None:
        server.log.closed.clear()
        with grpc.insecure_channel(server.target) as channel:
            waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            answers = channel.stream_stream("/test.Test/Echo")(iter(waiting.get, None))
            waiting.put(b"x")
            assert next(answers) == b"x"
            waiting.put(None)
        server.heard(lambda log: log.closed)

    async def test_many_streams_of_one_aio_channel_do_not_mix(self, server: Server) -> None:
        async with grpc.aio.insecure_channel(server.target) as channel:
            echo = channel.stream_stream("/test.Test/Echo")

            async def run(number: int) -> None:
                stream = echo()
                for step in range(5):
                    message = f"{number} {step} ".encode() * (number * 50)
                    await stream.write(message)
                    assert await stream.read() == message
                await stream.done_writing()
                assert await stream.read() is grpc.aio.EOF

            await asyncio.gather(*map(run, range(50)))
