"""gRPC over one connection, in memory; expectations from gRPC's PROTOCOL-HTTP2.md and from issue 9."""

from __future__ import annotations

import base64
import gzip
import zlib
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.transport.grpc_memory import ANY_BUDGET, Memory, framed
from tests.transport.grpc_service import ASK

from cellstream.errors import MessageTooLarge
from cellstream.transport.call import OK, Code, Status, Why
from cellstream.transport.grpc import ENDS_TURN_MAX, LOOKS_TURN_MAX
from cellstream.transport.http2 import Connection

WINDOW = 65_535
"""HTTP/2's initial window (RFC 9113, section 6.9.2), which a client uses until it has our SETTINGS."""

CANCEL, NO_ERROR = 8, 0  # RFC 9113, section 7


class TestCalls:
    """A call from its headers to its trailers."""

    def test_a_unary_call_is_answered_with_headers_a_message_and_trailers(self) -> None:
        answer = Memory().call("/test.Test/Unary", b"hello")
        assert answer.messages == [b"hello"]
        assert answer.headers[":status"] == "200"
        assert answer.headers["content-type"] == "application/grpc"
        assert answer.trailers == {"grpc-status": "0"}
        assert answer.is_ended

    def test_messages_of_a_stream_are_answered_before_it_is_half_closed(self) -> None:
        memory = Memory()
        stream = memory.open()
        for message in (b"one", b"", b"three"):
            memory.send(stream, framed(message))
            memory.exchange()
        assert memory.answers[stream].messages == [b"one", b"", b"three"]
        assert not memory.answers[stream].is_ended
        memory.client.end_stream(stream)
        memory.exchange()
        assert memory.answers[stream].status == 0
        assert memory.log.closed == [Why.ENDED]
        assert memory.totals.calls == 0

    @given(
        messages=st.lists(st.binary(max_size=40), max_size=6),
        cuts=st.lists(st.integers(0, 300), max_size=6),
        budget=st.integers(1, 8),
    )
    def test_it_does_not_matter_how_messages_lie_in_frames(
        self, messages: list[bytes], cuts: list[int], budget: int
    ) -> None:
        """Nor how much of them one turn may take."""
        memory = Memory()
        stream = memory.open()
        data = framed(*messages)
        edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        for start, end in pairwise(edges):
            memory.send(stream, data[start:end])
        memory.client.end_stream(stream)
        memory.exchange(budget)
        assert memory.answers[stream].messages == messages
        assert memory.answers[stream].status == 0
        assert memory.totals.unfinished.size_bytes == 0

    def test_trailers_of_the_client_half_close(self) -> None:
        memory = Memory()
        stream = memory.open()
        memory.send(stream, framed(b"x"))
        memory.client.send_headers(stream, [("x-end", "1")], end_stream=True)
        memory.exchange()
        assert (memory.answers[stream].messages, memory.answers[stream].status) == ([b"x"], 0)

    def test_a_stream_without_any_message_reaches_its_handler(self) -> None:
        memory = Memory()
        stream = memory.open("/test.Test/Count", end=True)
        memory.exchange()
        assert memory.answers[stream].messages == [b"0"]

    def test_a_handler_is_made_only_with_the_first_whole_message(self) -> None:
        memory = Memory()
        stream = memory.open()
        memory.send(stream, framed(b"abc")[:-1])
        memory.exchange()
        assert not memory.log.handlers
        memory.send(stream, b"c")
        memory.exchange()
        assert len(memory.log.handlers) == 1

    def test_a_method_with_one_request_hears_of_it_at_the_half_close(self) -> None:
        memory = Memory()
        stream = memory.open("/test.Test/Unary")
        memory.send(stream, framed(b"abc"))
        memory.exchange()
        assert not memory.log.handlers
        memory.client.end_stream(stream)
        memory.exchange()
        assert memory.answers[stream].messages == [b"abc"]

    @pytest.mark.parametrize("count", [0, 2])
    def test_none_or_two_messages_of_one_are_internal(self, count: int) -> None:
        answer = Memory().call("/test.Test/Unary", *[b"x"] * count)
        assert answer.status == Code.INTERNAL
        assert "one request" in answer.text

    def test_a_call_that_ends_inside_a_message_is_internal(self) -> None:
        memory = Memory()
        stream = memory.open()
        memory.send(stream, framed(b"abc")[:-1], end=True)
        memory.exchange()
        assert memory.answers[stream].status == Code.INTERNAL

    def test_methods_of_a_call_do_nothing_once_it_is_closed(self) -> None:
        memory = Memory()
        memory.call("/test.Test/Echo", b"x")
        call = memory.log.calls[0]
        call.ready()
        call.consumed(1)
        call.end(OK)
        memory.exchange()
        assert not memory.grpc.has_output


class TestHeaders:
    """What a call's headers say."""

    def test_an_unknown_method_is_unimplemented_in_one_block(self) -> None:
        answer = Memory().call("/test.Test/Nope", b"x")
        assert answer.status == Code.UNIMPLEMENTED
        assert not answer.trailers
        assert answer.headers[":status"] == "200"

    def test_another_verb_is_405(self) -> None:
        memory = Memory()
        stream = memory.open(end=True, **{":method": "GET"})
        memory.exchange()
        assert memory.answers[stream].headers == {":status": "405", "allow": "POST"}

    @pytest.mark.parametrize(
        "kind", ["application/grpc", "application/grpc+proto", "application/grpc;v=1", "Application/GRPC"]
    )
    def test_content_types_of_grpc_are_served(self, kind: str) -> None:
        assert Memory().call("/test.Test/Unary", b"x", content_type=kind).status == 0

    @pytest.mark.parametrize(
        "kind", ["application/grpc-web", "application/grpc-web+proto", "application/json", "", None]
    )
    def test_others_are_415(self, kind: Any) -> None:
        answer = Memory().call("/test.Test/Unary", b"x", content_type=kind)
        assert answer.headers[":status"] == "415"
        assert "grpc-status" not in answer.headers

    def test_te_is_not_needed(self) -> None:
        assert Memory().call("/test.Test/Unary", b"x", te="trailers").status == 0
        assert Memory().call("/test.Test/Unary", b"x").status == 0

    def test_metadata_is_custom_headers(self) -> None:
        """A key that came twice is joined (RFC 9110, section 5.3); of a binary one the last counts."""
        raw = [
            ("x-text", "a"),
            ("x-text", "b"),
            ("x-padded-bin", base64.b64encode(b"\0\xff").decode()),
            ("x-bare-bin", base64.b64encode(b"\0\xff").decode().rstrip("=")),
            ("x-joined-bin", "AAA=,AQ"),
            ("te", "trailers"),
            ("grpc-accept-encoding", "gzip"),
            (b"x-latin", b"caf\xe9"),
        ]
        memory = Memory()
        stream = memory.open("/test.Test/Metadata", raw=raw, user_agent="test/1")
        memory.send(stream, framed(b""), end=True)
        memory.exchange()
        assert eval(memory.answers[stream].messages[0]) == {
            "user-agent": "test/1",
            "x-text": "a,b",
            "x-padded-bin": b"\0\xff",
            "x-bare-bin": b"\0\xff",
            "x-joined-bin": b"\1",
            "x-latin": "café",
        }

    def test_binary_metadata_that_is_no_base64_is_internal(self) -> None:
        assert Memory().call("/test.Test/Unary", b"", x_bin="a*").status == Code.INTERNAL

    def test_header_lists_beyond_the_bound_are_refused_with_a_status(self) -> None:
        memory = Memory(header_list_bytes_max=16_384)
        assert memory.call("/test.Test/Unary", b"", x_long="x" * 17_000).status == Code.RESOURCE_EXHAUSTED
        assert memory.call("/test.Test/Unary", b"x").status == 0


class TestDeadlines:
    """`grpc-timeout`."""

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [("2H", 7200), ("3M", 180), ("4S", 4), ("5000m", 5), ("6000000u", 6), ("70000000n", 0.07)],
    )
    def test_the_deadline_is_the_timeout_from_now(self, value: str, seconds: float) -> None:
        memory = Memory()
        stream = memory.open("/test.Test/Silent", grpc_timeout=value)
        memory.send(stream, framed(b"x"))
        memory.exchange()
        assert memory.log.calls[0].deadline == pytest.approx(memory.clock() + seconds)
        memory.clock.move(seconds * 0.99)
        memory.exchange()
        assert not memory.log.closed
        memory.clock.move(seconds * 0.02)
        memory.exchange()
        assert memory.log.closed == [Why.DEADLINE]
        assert memory.answers[stream].status == Code.DEADLINE_EXCEEDED

    @pytest.mark.parametrize("value", ["", "S", "1", "123456789S", "-1S", "1.5S", "1x", "1 S", "٣S"])
    def test_a_malformed_timeout_is_internal(self, value: str) -> None:
        answer = Memory().call("/test.Test/Unary", b"x", grpc_timeout=value.encode().decode("latin-1"))
        assert answer.status == Code.INTERNAL

    def test_no_time_at_all_is_exceeded_at_once(self) -> None:
        memory = Memory()
        assert memory.call("/test.Test/Unary", b"x", grpc_timeout="0n").status == Code.DEADLINE_EXCEEDED
        assert not memory.log.handlers

    def test_a_call_that_ended_before_leaves_no_timer(self) -> None:
        memory = Memory()
        memory.call("/test.Test/Unary", b"x", grpc_timeout="1H")
        assert [timer for timer in memory.clock.timers if timer.when > memory.clock() + 60] == []

    def test_an_unsent_message_does_not_hold_a_deadline_up(self) -> None:
        memory = Memory(window=0)
        stream = memory.open("/test.Test/Many", grpc_timeout="1S")
        memory.send(stream, framed(ASK.pack(1, 100)))
        memory.exchange()
        memory.clock.move(1.1)
        memory.exchange()
        assert memory.answers[stream].status == Code.DEADLINE_EXCEEDED


class TestCompression:
    """gzip in and out."""

    def test_gzip_is_unpacked_and_answered_in_kind(self) -> None:
        memory = Memory()
        text = b"the same words again and again " * 40
        stream = memory.open("/test.Test/Unary", grpc_encoding="gzip", grpc_accept_encoding="identity, gzip")
        memory.send(stream, framed(gzip.compress(text), packed=1), end=True)
        memory.exchange()
        answer = memory.answers[stream]
        ((flag, packed),) = answer.frames
        assert (flag, gzip.decompress(packed)) == (1, text)
        assert answer.headers["grpc-encoding"] == "gzip"
        assert "gzip" in answer.headers["grpc-accept-encoding"]

    def test_short_messages_and_clients_that_read_no_gzip_get_identity(self) -> None:
        memory = Memory()
        for text, accepted in ((b"short", "gzip"), (bytes(1000), "identity")):
            stream = memory.open("/test.Test/Unary", grpc_encoding="gzip", grpc_accept_encoding=accepted)
            memory.send(stream, framed(gzip.compress(text), packed=1), end=True)
            memory.exchange()
            assert memory.answers[stream].frames == [(0, text)]

    def test_identity_may_be_sent_where_gzip_is_named(self) -> None:
        assert Memory().call("/test.Test/Unary", b"x", grpc_encoding="gzip").messages == [b"x"]

    def test_an_unknown_encoding_is_unimplemented_and_hears_what_is_known(self) -> None:
        answer = Memory().call("/test.Test/Unary", b"x", grpc_encoding="snappy")
        assert answer.status == Code.UNIMPLEMENTED
        assert answer.headers["grpc-accept-encoding"] == "identity,gzip"

    @pytest.mark.parametrize("encoding", [None, "identity"])
    def test_a_packed_message_without_an_encoding_is_internal(self, encoding: Any) -> None:
        memory = Memory()
        stream = memory.open("/test.Test/Unary", grpc_encoding=encoding)
        memory.send(stream, framed(gzip.compress(b"x"), packed=1), end=True)
        memory.exchange()
        assert memory.answers[stream].status == Code.INTERNAL

    @pytest.mark.parametrize(
        "packed",
        [b"", b"no gzip", gzip.compress(b"x" * 100)[:-1], gzip.compress(b"x") + b"more", zlib.compress(b"x")],
        ids=["empty", "no gzip", "broken off", "more behind it", "zlib"],
    )
    def test_what_is_no_gzip_is_internal(self, packed: bytes) -> None:
        memory = Memory()
        stream = memory.open("/test.Test/Echo", grpc_encoding="gzip")
        memory.send(stream, framed(packed, packed=1))
        memory.exchange()
        assert memory.answers[stream].status == Code.INTERNAL

    def test_a_bomb_is_unpacked_no_further_than_the_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """1 GiB of zeros is 1 MiB of gzip."""
        unpacked: list[int] = []
        make = zlib.decompressobj

        class Watched:
            def __init__(self, wbits: int) -> None:
                self._real = make(wbits)

            def decompress(self, data: bytes, length: int) -> bytes:
                out = self._real.decompress(data, length)
                unpacked.append(len(out))
                return out

        packing = zlib.compressobj(9, wbits=31)
        bomb = b"".join(packing.compress(bytes(1 << 20)) for _ in range(64)) + packing.flush()
        monkeypatch.setattr("cellstream.transport.packing.zlib.decompressobj", Watched)
        memory = Memory(message_bytes_max=100_000)
        stream = memory.open("/test.Test/Echo", grpc_encoding="gzip")
        memory.send_all(stream, framed(bomb, packed=1))
        assert memory.answers[stream].status == Code.INVALID_ARGUMENT
        assert isinstance(memory.log.explained[0], MessageTooLarge)
        assert unpacked == [100_001]

    def test_unpacked_bytes_count_against_the_turn(self) -> None:
        """Three frames of a kilobyte that are a megabyte each: one a turn."""
        memory = Memory()
        stream = memory.open("/test.Test/Count", grpc_encoding="gzip")
        memory.exchange()
        for _ in range(3):
            memory.send(stream, framed(gzip.compress(bytes(1 << 20)), packed=1))
        memory.client.end_stream(stream)
        memory.http2.receive(memory.client.data_to_send())
        for turn in (1, 2, 3):
            memory.grpc.process(512)
            assert len(memory.log.received) == turn
        memory.exchange()
        assert memory.answers[stream].messages == [str(3 << 20).encode()]

    def test_packing_counts_against_what_is_pulled_at_once(self) -> None:
        """Or a megabyte of zeros for each of many calls would be packed in one turn, as its gzip is short."""
        memory = Memory()
        stream = memory.open("/test.Test/Endless", grpc_encoding="gzip", grpc_accept_encoding="gzip")
        memory.send(stream, framed(ASK.pack(1, 50_000)))
        memory.http2.receive(memory.client.data_to_send())
        memory.grpc.process(ANY_BUDGET)
        memory.grpc.pull(100_000)
        memory.read(memory.http2.take_output())
        assert len(memory.answers[stream].messages) == 2
        assert memory.grpc.has_output

    def test_many_messages_of_one_frame_count_against_the_turn(self) -> None:
        memory = Memory()
        stream = memory.open()
        memory.send(stream, framed(*[b""] * 1000), end=True)
        memory.http2.receive(memory.client.data_to_send())
        memory.grpc.process(100)
        assert len(memory.log.received) <= 100
        assert memory.grpc.has_input
        memory.exchange(100)
        assert len(memory.answers[stream].messages) == 1000
        assert memory.answers[stream].status == 0


class TestTime:
    """A turn is bounded by time too, as what a handler does has no price beforehand."""

    def slow(self, memory: Memory) -> None:
        """Let each handler take a second."""
        memory.log.on_change.append(lambda: setattr(memory.clock, "now", memory.clock.now + 1))

    def turn(self, memory: Memory, seconds: float) -> int:
        """Take a turn of so many seconds; return how many messages it dispatched."""
        before = len(memory.log.received)
        memory.grpc.process(ANY_BUDGET, memory.clock.now + seconds)
        return len(memory.log.received) - before

    def test_calls_that_take_long_are_left_for_later_turns(self) -> None:
        memory = Memory()
        for _ in range(20):
            memory.send(memory.open("/test.Test/Unary"), framed(b"x"), end=True)
        memory.http2.receive(memory.client.data_to_send())
        self.slow(memory)
        turns = 0
        while memory.grpc.has_input:
            assert self.turn(memory, 0.5) <= 1
            turns += 1
        assert turns >= 20
        assert len(memory.log.received) == 20

    @pytest.mark.parametrize("in_one_frame", [False, True])
    def test_so_are_messages_of_a_stream(self, in_one_frame: bool) -> None:
        memory = Memory()
        stream = memory.open("/test.Test/Hoard")
        memory.send(stream, framed(b"first"))
        memory.exchange()
        self.slow(memory)
        if in_one_frame:
            memory.send(stream, framed(*[b"x"] * 100))
        else:
            for _ in range(100):
                memory.send(stream, framed(b"x"))
        memory.http2.receive(memory.client.data_to_send())
        dispatched = []
        while memory.grpc.has_input:
            dispatched.append(self.turn(memory, 0.5))
        assert sum(dispatched) == 100
        assert max(dispatched) <= 9


class TestMessages:
    """Messages that are not taken."""

    def test_a_message_too_large_is_refused_as_soon_as_its_prefix_says_so(self) -> None:
        memory = Memory(message_bytes_max=1000)
        stream = memory.open()
        memory.send(stream, framed(bytes(1001))[:5])
        memory.exchange()
        answer = memory.answers[stream]
        assert answer.status == Code.INVALID_ARGUMENT
        assert base64.b64decode(answer.last["grpc-status-details-bin"] + "==") == b"MESSAGE_TOO_LARGE"
        assert answer.reset == NO_ERROR

    def test_one_of_the_bound_passes(self) -> None:
        assert Memory(message_bytes_max=1000).call("/test.Test/Unary", bytes(1000)).messages == [bytes(1000)]

    def test_what_came_before_a_bad_message_is_answered_first(self) -> None:
        memory = Memory(message_bytes_max=1000)
        stream = memory.open()
        memory.send(stream, framed(b"good") + framed(bytes(1001)))
        memory.exchange()
        assert memory.answers[stream].messages == [b"good"]
        assert memory.answers[stream].status == Code.INVALID_ARGUMENT
        assert memory.log.handlers[0].is_half_closed

    def test_a_flag_that_is_neither_0_nor_1_is_internal(self) -> None:
        memory = Memory()
        stream = memory.open()
        memory.send(stream, framed(b"x", packed=2))
        memory.exchange()
        assert memory.answers[stream].status == Code.INTERNAL


class TestStatus:
    """How a call's end is told."""

    @pytest.mark.parametrize("text", ["plain", "100%", "naïve \t\n", "\U0001f642", "a\x7f~ "])
    def test_messages_are_percent_encoded(self, text: str) -> None:
        answer = Memory().call("/test.Test/Fail", b"5 " + text.encode())
        assert answer.status == Code.NOT_FOUND
        assert unquote(answer.text) == text
        assert answer.text.isascii()
        assert answer.text.isprintable()

    def test_details_are_base64_without_padding(self) -> None:
        answer = Memory().call("/test.Test/Fail", b"5 !")
        assert answer.last["grpc-status-details-bin"] == "ZGV0YWlscw"

    @pytest.mark.parametrize(("bytes_max", "has_details"), [(1000, True), (600, False), (320, False)])
    def test_what_does_not_fit_the_clients_limit_is_left_out(self, bytes_max: int, has_details: bool) -> None:
        """Details first, then the end of the message (RFC 9113, section 6.5.2: 32 bytes for each field)."""
        memory = Memory(header_list_bytes_max=bytes_max)
        answer = memory.call("/test.Test/Fail", b"5 !" + "é".encode() * 50)
        size = sum(32 + len(name) + len(text) for name, text in answer.headers.items())
        assert size <= bytes_max
        assert ("grpc-status-details-bin" in answer.headers) is has_details
        assert unquote(answer.text, errors="strict").startswith("!é")
        assert "grpc-status" in answer.headers

    def test_a_client_that_was_not_done_hears_that_it_need_not_go_on(self) -> None:
        memory = Memory()
        stream = memory.open("/test.Test/FailStream")
        memory.send(stream, framed(b"0 "))
        memory.exchange()
        assert memory.answers[stream].status == 0
        assert memory.answers[stream].reset == NO_ERROR

    def test_one_that_was_done_does_not(self) -> None:
        assert Memory().call("/test.Test/Fail", b"5 x").reset is None

    def test_many_refused_calls_do_not_end_the_connection(self) -> None:
        """Their RST_STREAM follows a whole answer, and is no reset in the sense of CVE-2025-8671."""
        memory = Memory(resets_burst=5)
        for _ in range(20):
            memory.open("/test.Test/Nope")
            memory.exchange()
        assert memory.goaway is None

    def test_the_first_status_counts(self) -> None:
        memory = Memory()
        stream = memory.open("/test.Test/Silent")
        memory.send(stream, framed(b"x"))
        memory.exchange()
        call = memory.log.calls[0]
        call.end(Status(Code.ABORTED))
        call.end(OK)
        memory.exchange()
        assert memory.answers[stream].status == Code.ABORTED


class TestEnds:
    """Why a call is over, as its handler hears it."""

    def _opened(self, memory: Memory, path: str = "/test.Test/Silent") -> int:
        stream = memory.open(path)
        memory.send(stream, framed(b"x"))
        memory.exchange()
        return stream

    def test_a_reset_is_a_cancel(self) -> None:
        memory = Memory()
        memory.client.reset_stream(self._opened(memory), CANCEL)
        memory.exchange()
        assert memory.log.closed == [Why.CANCELLED]
        assert memory.totals.calls == 0

    def test_so_is_a_fault_of_the_clients_on_the_stream(self) -> None:
        memory = Memory()
        stream = self._opened(memory)
        memory.http2.receive(b"\0\0\4\x08\0" + stream.to_bytes(4, "big") + bytes(4))  # WINDOW_UPDATE of 0
        memory.exchange()
        assert memory.log.closed == [Why.CANCELLED]

    def test_a_lost_connection_is_lost_in_slices(self) -> None:
        memory = Memory()
        for _ in range(3):
            self._opened(memory)
        memory.grpc.lose()
        assert memory.grpc.close_lost(2)
        assert memory.log.closed == [Why.LOST] * 2
        assert not memory.grpc.close_lost(2)
        assert memory.log.closed == [Why.LOST] * 3

    def test_a_half_close_is_none_of_these(self) -> None:
        memory = Memory()
        stream = self._opened(memory)
        memory.client.end_stream(stream)
        memory.exchange()
        assert memory.log.handlers[0].is_half_closed
        assert not memory.log.closed

    @pytest.mark.parametrize("where", ["received", "half_closed", "next_message"])
    def test_what_a_handler_raises_is_explained(self, where: str) -> None:
        memory = Memory()
        answer = memory.call("/test.Test/Raise", where.encode())
        assert (answer.status, answer.text) == (Code.INTERNAL, "explained")
        assert [str(error) for error in memory.log.explained] == [where]
        assert memory.log.closed == [Why.ENDED]

    def test_what_closed_raises_changes_nothing(self) -> None:
        memory = Memory()
        assert memory.call("/test.Test/Raise", b"closed").status == 0
        assert len(memory.log.explained) == 1
        assert memory.totals.calls == 0

    def test_a_factory_that_raises_refuses_the_call(self) -> None:
        memory = Memory()
        answer = memory.call("/test.Test/Refuse", b"x")
        assert answer.status == Code.INTERNAL
        assert not answer.trailers
        assert memory.totals.calls == 0

    def test_nothing_is_received_behind_the_end(self) -> None:
        memory = Memory(window=0)
        stream = memory.open("/test.Test/Many")
        memory.send(stream, framed(ASK.pack(1, 10)))
        memory.exchange()
        memory.log.calls[0].end(OK)
        memory.send(stream, framed(ASK.pack(1, 10)), end=True)
        memory.exchange()
        assert len(memory.log.received) == 1
        assert not memory.log.handlers[0].is_half_closed
        memory.client.increment_flow_control_window(100, stream)
        memory.exchange()
        assert (len(memory.answers[stream].messages), memory.answers[stream].status) == (1, 0)


class TestUnstarted:
    """Calls of headers alone."""

    def test_a_call_without_a_message_is_refused_in_time(self) -> None:
        memory = Memory(first_message_seconds=5)
        streams = [memory.open()]
        memory.exchange()
        memory.clock.move(3)
        streams.append(memory.open())
        memory.exchange()
        memory.clock.move(2.5)
        memory.exchange()
        assert memory.answers[streams[0]].status == Code.DEADLINE_EXCEEDED
        assert not memory.answers[streams[1]].is_ended
        memory.clock.move(3)
        memory.exchange()
        assert memory.answers[streams[1]].status == Code.DEADLINE_EXCEEDED
        assert not memory.log.handlers

    def test_a_started_one_is_not(self) -> None:
        memory = Memory(first_message_seconds=5)
        stream = memory.open()
        memory.send(stream, framed(b"x"))
        memory.exchange()
        memory.clock.move(100)
        memory.exchange()
        assert not memory.answers[stream].is_ended

    def test_beyond_their_number_the_oldest_of_all_connections_makes_room(self) -> None:
        """Else one client's calls of headers alone would keep everybody's out."""
        memory = Memory(unstarted_calls_max=2)
        other = Memory(unstarted_calls_max=2, server=memory)
        started, oldest = memory.open(), memory.open()
        memory.send(started, framed(b"x"))
        memory.exchange()
        silent = other.open()
        other.exchange()
        for _ in range(3):
            assert other.call("/test.Test/Unary", b"x").status == 0
        memory.exchange()
        assert memory.answers[oldest].status == Code.RESOURCE_EXHAUSTED
        assert not memory.answers[started].is_ended
        assert not other.answers[silent].is_ended
        assert len(memory.totals.unstarted) == 1

    def test_many_are_ended_in_slices(self) -> None:
        memory = Memory(first_message_seconds=5)
        for _ in range(ENDS_TURN_MAX + 10):
            memory.open()
        memory.exchange()
        memory.clock.now += 5
        memory.totals._end_unstarted()
        assert memory.totals.calls == 10
        memory.clock.move(0)
        assert memory.totals.calls == 0

    def test_a_call_that_is_not_half_closed_hears_that(self) -> None:
        memory = Memory(first_message_seconds=5)
        stream = memory.open("/test.Test/Unary")
        memory.send(stream, framed(b"x"))
        memory.exchange()
        memory.clock.move(5)
        memory.exchange()
        assert "half-close" in memory.answers[stream].text


class TestReceiveWindows:
    """What a client may send."""

    @pytest.mark.parametrize("window", [1024, 65_536])
    def test_a_message_larger_than_the_window_comes_whole(self, window: int) -> None:
        memory = Memory(stream_window_bytes=window)
        stream = memory.open()
        memory.exchange()
        message = bytes(range(256)) * 800
        memory.send_all(stream, framed(message))
        assert memory.answers[stream].messages == [message]
        assert memory.totals.unfinished.size_bytes == 0

    def test_what_is_not_applied_is_not_given_back(self) -> None:
        memory = Memory()
        stream = memory.open("/test.Test/Hoard")
        memory.exchange()
        start = memory.window(stream)
        for _ in range(15):
            memory.send(stream, framed(bytes(4000)))
            memory.exchange()
        assert memory.window(stream) <= start - 15 * 4000
        call = memory.log.calls[0]
        for _ in range(15):
            call.consumed(4000)
        memory.exchange()
        assert memory.window(stream) > start // 2

    def test_a_message_that_began_behind_unapplied_ones_comes_when_they_are_applied(self) -> None:
        memory = Memory()
        stream = memory.open("/test.Test/Hoard")
        memory.exchange()
        memory.send_all(stream, framed(bytes(60_000)))
        second = framed(bytes(60_000))
        sent = 0
        while room := min(memory.window(stream), 16_384):
            memory.send(stream, second[sent : sent + room])
            sent += room
            memory.exchange()
        assert sent < 60_000
        memory.log.calls[0].consumed(60_000)
        memory.exchange()
        memory.send_all(stream, second[sent:])
        assert memory.log.received == [bytes(60_000)] * 2

    def test_empty_messages_do_not_use_the_window_up(self) -> None:
        """Each has a prefix of five bytes, which nobody consumes."""
        memory = Memory(stream_window_bytes=1024)
        stream = memory.open("/test.Test/Hoard")
        memory.exchange()
        for _ in range(1000):
            memory.send(stream, framed(b""))
            memory.exchange()
        assert len(memory.log.received) == 1000

    def test_packed_messages_do_not_use_the_window_up(self) -> None:
        memory = Memory(stream_window_bytes=1024)
        stream = memory.open("/test.Test/Echo", grpc_encoding="gzip")
        memory.exchange()
        for _ in range(100):
            memory.send(stream, framed(gzip.compress(bytes(5000)), packed=1))
            memory.exchange()
        assert len(memory.log.received) == 100

    @pytest.mark.parametrize("bound", ["connection_bytes_max", "buffered_bytes_max"])
    def test_beyond_the_bound_only_the_oldest_message_goes_on(self, bound: str) -> None:
        memory = Memory(**{bound: 100_000})
        first, second = memory.open(), memory.open()
        memory.exchange()
        message = framed(bytes(200_000))
        sent = {first: 0, second: 0}

        def push(stream: int) -> None:
            """Send as much of the message as the window lets."""
            while room := min(memory.window(stream), 16_384, len(message) - sent[stream]):
                memory.send(stream, message[sent[stream] : sent[stream] + room])
                sent[stream] += room
                memory.exchange()

        memory.send(first, message[:60_000])
        sent[first] = 60_000
        memory.exchange()
        push(second)
        assert sent[second] < 200_000
        assert memory.window(second) == 0
        push(first)
        assert memory.answers[first].messages == [message[5:]]
        push(second)
        assert memory.answers[second].messages == [message[5:]]
        assert memory.totals.unfinished.size_bytes == 0

    def test_who_keeps_others_waiting_is_refused_in_time(self) -> None:
        """Else messages that are begun and left would stop everybody's large ones for good."""
        memory = Memory(connection_bytes_max=50_000, first_message_seconds=30)
        slow = memory.open()
        memory.send(slow, framed(b"it has started"))
        memory.send(slow, framed(bytes(200_000))[:50_000])
        memory.exchange()
        memory.clock.move(100)
        memory.exchange()
        assert not memory.answers[slow].is_ended, "nobody waits"
        quick = memory.open()
        message = framed(bytes(200_000))
        memory.send(quick, message[:60_000])
        memory.exchange()
        memory.clock.move(15)
        memory.exchange()
        assert memory.answers[slow].status == Code.RESOURCE_EXHAUSTED
        memory.send_all(quick, message[60_000:])
        assert memory.answers[quick].messages == [message[5:]]

    def test_who_sends_whole_messages_is_never_slow(self) -> None:
        """The time is a message's, however its frames lie; and the one that waited longest is the oldest."""
        memory = Memory(connection_bytes_max=60_000, first_message_seconds=30)
        busy, large = memory.open(), memory.open()
        memory.exchange()
        message = framed(bytes(40_000))
        memory.send_all(busy, message[:20_000])
        other = framed(bytes(200_000))
        memory.send(large, other[:60_000])
        memory.exchange()
        rest = 60_000
        for _ in range(20):  # the end of one message, and the beginning of the next
            memory.send_all(busy, message[20_000:] + message[:20_000])
            memory.clock.move(1)
            memory.exchange()
            if part := other[rest : rest + min(memory.window(large), 16_384)]:
                memory.send(large, part)
                rest += len(part)
                memory.exchange()
        assert not memory.answers[busy].is_ended
        assert memory.answers[large].messages == [other[5:]]

    def test_who_waits_at_one_bound_is_not_slow_at_the_other(self) -> None:
        """It is we who hold its window."""
        memory = Memory(connection_bytes_max=40_000, buffered_bytes_max=90_000, first_message_seconds=30)
        third = Memory(server=memory, connection_bytes_max=40_000, buffered_bytes_max=90_000)
        quick, held = memory.open(), memory.open()
        memory.exchange()
        memory.send(quick, framed(bytes(300_000))[:100])
        memory.exchange()
        memory.send(held, framed(bytes(300_000))[:50_000])
        memory.exchange()
        stream = third.open()
        third.exchange()
        third.send(stream, framed(bytes(300_000))[:50_000])
        third.exchange()
        memory.clock.move(15.5)
        memory.exchange()
        assert memory.answers[quick].status == Code.RESOURCE_EXHAUSTED
        assert not memory.answers[held].is_ended

    def test_beyond_twice_the_bound_a_call_is_refused(self) -> None:
        memory = Memory(buffered_bytes_max=50_000)
        streams = [memory.open() for _ in range(5)]
        memory.exchange()
        for stream in streams:
            memory.send(stream, framed(bytes(200_000))[:40_000])
            memory.exchange()
        refused = [stream for stream in streams if memory.answers[stream].is_ended]
        assert refused
        assert streams[0] not in refused
        assert {memory.answers[stream].status for stream in refused} == {Code.RESOURCE_EXHAUSTED}
        assert memory.totals.unfinished.size_bytes <= 100_000

    def test_a_cancelled_call_leaves_nothing_buffered(self) -> None:
        memory = Memory()
        stream = memory.open()
        memory.send(stream, framed(bytes(200_000))[:40_000])
        memory.exchange()
        assert memory.totals.unfinished.size_bytes == 40_000
        memory.client.reset_stream(stream, CANCEL)
        memory.exchange()
        assert memory.totals.unfinished.size_bytes == 0


class TestOutput:
    """What is sent, and when."""

    def test_calls_take_turns_one_frame_each(self) -> None:
        memory = Memory()
        streams = [memory.open("/test.Test/Many") for _ in range(3)]
        for stream in streams:
            memory.send(stream, framed(ASK.pack(1, 20_000)))
        memory.exchange()
        assert [stream for stream, _ in memory.order[:6]] == streams * 2
        assert all(memory.answers[stream].messages == [bytes(20_000)] for stream in streams)

    def test_a_call_without_room_stops_itself_alone(self) -> None:
        memory = Memory()
        memory.acknowledges = False
        slow, quick = memory.open("/test.Test/Endless"), memory.open()
        memory.send(slow, framed(ASK.pack(1, 1000)))
        memory.http2.receive(memory.client.data_to_send())
        memory.grpc.process(ANY_BUDGET)
        for _ in range(3):
            memory.grpc.pull(1 << 20)
            memory.read(memory.http2.take_output())
        assert len(memory.answers[slow].data) == WINDOW
        memory.client.increment_flow_control_window(10_000)
        memory.send(quick, framed(b"x"))
        memory.exchange()
        assert memory.answers[quick].messages == [b"x"]
        assert len(memory.answers[slow].data) == WINDOW

    def test_a_message_is_asked_for_only_when_there_is_room(self) -> None:
        memory = Memory(window=0)
        memory.acknowledges = False
        stream = memory.open("/test.Test/Many")
        memory.send(stream, framed(ASK.pack(5, 10)))
        memory.exchange()
        assert len(memory.log.handlers[0].out) == 5
        memory.client.increment_flow_control_window(15, stream)
        memory.exchange()
        assert len(memory.answers[stream].messages) == 1

    def test_the_connections_window_visits_one_call_for_each_that_can_send(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A WINDOW_UPDATE of one byte costs the same however many calls wait."""
        memory = Memory(window=1 << 20)
        memory.acknowledges = False
        for _ in range(400):
            stream = memory.open()
            memory.send(stream, framed(bytes(1000)))
            memory.exchange()
        memory.exchange()
        assert memory.http2.connection_room == 0
        looks = 0
        room = memory.http2.room

        def count(self: Any, stream: Any) -> int:
            nonlocal looks
            looks += 1
            return room(stream)

        monkeypatch.setattr(Connection, "room", count)
        for _ in range(10):
            memory.client.increment_flow_control_window(1)
            memory.exchange()
        assert looks <= 3 * 10
        memory.client.increment_flow_control_window(1 << 20)
        memory.exchange()
        assert all(answer.messages == [bytes(1000)] for answer in memory.answers.values())

    def test_windows_that_settings_open_are_looked_at_in_turns(self) -> None:
        memory = Memory(window=0)
        streams = [memory.open() for _ in range(LOOKS_TURN_MAX + 100)]
        for stream in streams:
            memory.send(stream, framed(b"x"))
        memory.exchange()
        memory.client.update_settings({4: 6})  # SETTINGS_INITIAL_WINDOW_SIZE, RFC 9113, section 6.5.2
        memory.client.update_settings({4: 0})
        memory.http2.receive(memory.client.data_to_send())
        memory.grpc.process(ANY_BUDGET)
        memory.grpc.pull(1 << 30)
        assert memory.grpc.has_output
        memory.grpc.pull(1 << 30)
        assert not memory.grpc.has_output
        memory.client.update_settings({4: 6})
        memory.exchange()
        assert all(memory.answers[stream].messages == [b"x"] for stream in streams)

    def test_calls_have_a_number(self) -> None:
        """Answers of calls that are over count while they are not read; a connection may have one call."""
        memory = Memory(window=0, calls_max=3)
        streams = [memory.open("/test.Test/Unary") for _ in range(4)]
        for stream in streams:
            memory.send(stream, framed(b"x"), end=True)
        memory.exchange()
        assert [memory.answers[stream].is_ended for stream in streams] == [False] * 3 + [True]
        assert memory.answers[streams[3]].status == Code.RESOURCE_EXHAUSTED
        assert Memory(server=memory, calls_max=3).call("/test.Test/Unary", b"x").status == 0
        memory.client.increment_flow_control_window(100, streams[0])
        memory.exchange()
        assert memory.answers[streams[0]].status == 0
        assert not memory.call("/test.Test/Unary", b"x").is_ended

    @pytest.mark.parametrize("bound", ["connection_bytes_max", "buffered_bytes_max"])
    def test_answers_that_nobody_reads_have_a_bound(self, bound: str) -> None:
        memory = Memory(window=0, **{bound: 20_000})
        other = Memory(server=memory, **{bound: 20_000})
        streams = [memory.open("/test.Test/Unary") for _ in range(10)]
        for stream in streams:
            memory.send(stream, framed(bytes(5000)), end=True)
            memory.exchange()
        refused = [stream for stream in streams if memory.answers[stream].is_ended]
        assert refused == streams[4:], "four have 20,020 bytes"
        assert {memory.answers[stream].status for stream in refused} == {Code.RESOURCE_EXHAUSTED}
        assert len(memory.log.handlers) == 4, "no work is done for the others"
        assert memory.totals.unsent_bytes == 4 * 5005
        assert other.call("/test.Test/Unary", b"x").status == 0
        memory.client.increment_flow_control_window(5005, streams[0])
        memory.exchange()
        assert memory.answers[streams[0]].messages == [bytes(5000)]
        memory.client.reset_stream(streams[1], CANCEL)
        memory.exchange()
        assert memory.totals.unsent_bytes == 2 * 5005
        memory.grpc.lose()
        memory.grpc.close_lost(100)
        assert memory.totals.unsent_bytes == 0

    def test_a_lost_connections_handlers_are_not_asked(self) -> None:
        memory = Memory()
        memory.send(memory.open(), framed(b"x"))
        memory.exchange()
        memory.grpc.lose()
        handler = memory.log.handlers[0]
        for _ in range(100):
            handler.send(b"more")
        memory.grpc.pull(1 << 30)
        assert len(handler.out) == 100
        assert not memory.grpc.has_output

    def test_pull_stops_at_its_bound(self) -> None:
        memory = Memory(window=1 << 20)
        memory.client.increment_flow_control_window(1 << 24)
        stream = memory.open("/test.Test/Endless")
        memory.send(stream, framed(ASK.pack(1, 1000)))
        memory.http2.receive(memory.client.data_to_send())
        memory.grpc.process(ANY_BUDGET)
        memory.grpc.pull(50_000)
        assert 50_000 <= memory.http2.output_bytes <= 50_000 + 16_384 + 9
        assert memory.grpc.has_output

    def test_a_status_needs_no_window(self) -> None:
        memory = Memory(window=0)
        answer = memory.call("/test.Test/Fail", b"5 x")
        assert answer.status == Code.NOT_FOUND

    def test_output_without_progress_is_reset(self) -> None:
        memory = Memory(window=10, stall_seconds_max=30)
        memory.acknowledges = False
        stream = memory.open("/test.Test/Many")
        memory.send(stream, framed(ASK.pack(1, 100)), end=True)
        memory.exchange()
        memory.clock.move(20)
        assert memory.grpc.end_stalled(memory.clock()) == 0
        memory.client.increment_flow_control_window(5, stream)  # progress: the time begins anew
        memory.exchange()
        memory.clock.move(20)
        assert memory.grpc.end_stalled(memory.clock()) == 0
        memory.client.increment_flow_control_window(5)  # of the connection: none for this stream
        memory.exchange()
        memory.clock.move(11)
        assert memory.grpc.end_stalled(memory.clock()) == 1
        memory.exchange()
        assert memory.answers[stream].reset == CANCEL
        assert memory.log.closed == [Why.LOST]

    def test_a_call_that_waits_for_its_client_is_not_stalled(self) -> None:
        memory = Memory(stall_seconds_max=30)
        stream = memory.open()
        memory.send(stream, framed(b"x"))
        memory.exchange()
        memory.clock.move(1000)
        assert memory.grpc.end_stalled(memory.clock()) == 0
