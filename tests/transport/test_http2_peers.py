"""h2 and nghttp2 as clients in memory: each parses all that we send, data is whole, windows are equal."""

from __future__ import annotations

from collections import defaultdict

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.transport.http2_clients import H2Client, NghttpClient
from tests.transport.raw_client import ANY_BUDGET, CANCEL, NO_ERROR, STATUS_200, TRAILERS

from cellstream.settings import Settings
from cellstream.transport.frames import FRAME_BYTES_MAX
from cellstream.transport.http2 import (
    Connection,
    ConnectionFailed,
    DataReceived,
    PingAcknowledged,
    RequestReceived,
    Stream,
    StreamReset,
    TrailersReceived,
)

WINDOW_BYTES = 2000
"""Small, so that windows are often the limit."""

pick = st.integers(0, 1000)
sizes = st.integers(0, 5000)
ends = st.booleans()


class Conversation(RuleBasedStateMachine):
    """A client and our server, each doing what it likes, with bytes under way in both directions.

    The subclass names the client. The model is what each side was given to send, by stream.
    """

    client_type: type[H2Client] | type[NghttpClient]

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.server = Connection(Settings(stream_window_bytes=WINDOW_BYTES), lambda: self.now)
        self.client = self.client_type()
        self.to_server = bytearray()
        self.to_client = bytearray()
        self.streams: dict[int, Stream] = {}
        self.client_open: list[int] = []  # streams on which the client may still send
        self.client_sent: dict[int, bytes] = defaultdict(bytes)
        self.client_ended: set[int] = set()
        self.cancelled: set[int] = set()
        self.pings_sent: list[bytes] = []
        self.server_received: dict[int, bytes] = defaultdict(bytes)
        self.server_held: dict[int, int] = defaultdict(int)
        self.server_heard_end: set[int] = set()
        self.server_sent: dict[int, bytes] = defaultdict(bytes)
        self.server_pending: dict[int, bytes] = defaultdict(bytes)
        self.server_pings: list[bytes] = []
        self.server_pings_answered: list[bytes] = []
        self.ended_by_server: set[int] = set()

    @initialize()
    def greet(self) -> None:
        """Exchange the prefaces."""
        self.settle()

    # ---------------------------------------------------------------- the client's moves

    @rule(end=ends)
    def client_opens(self, end: bool) -> None:
        """Open a stream."""
        stream_id = self.client.open(end=end)
        if end:
            self.client_ended.add(stream_id)
        else:
            self.client_open.append(stream_id)

    @precondition(lambda self: self.client_open)
    @rule(which=pick, size=sizes, end=ends, padding=st.sampled_from([0, 0, 1, 255]))
    def client_sends(self, which: int, size: int, end: bool, padding: int) -> None:
        """Send data, perhaps the last."""
        stream_id = self.client_open[which % len(self.client_open)]
        if not (size or end):
            return  # an empty frame that ends nothing costs a token; attacks have their own tests
        content = bytes((len(self.client_sent[stream_id]) + at) % 251 for at in range(size))
        self.client.send(stream_id, content, end=end, padding=padding)
        self.client_sent[stream_id] += content
        if end:
            self.client_open.remove(stream_id)
            self.client_ended.add(stream_id)

    @precondition(lambda self: self.client_open)
    @rule(which=pick)
    def client_sends_trailers(self, which: int) -> None:
        """End a stream with trailers."""
        stream_id = self.client_open[which % len(self.client_open)]
        if self.client.send_trailers(stream_id):
            self.client_open.remove(stream_id)
            self.client_ended.add(stream_id)

    @precondition(lambda self: self.client_open)
    @rule(which=pick)
    def client_cancels(self, which: int) -> None:
        """Reset a stream."""
        stream_id = self.client_open.pop(which % len(self.client_open))
        self.client.cancel(stream_id)
        self.cancelled.add(stream_id)

    @rule(size=st.sampled_from([0, 1, 1000, 65_535, 1 << 20]))
    def client_changes_its_window(self, size: int) -> None:
        """Move all windows of the server at once, below zero too."""
        self.client.set_initial_window(size)

    @precondition(lambda self: self.client.pings == self.pings_sent)
    @rule(number=st.integers(0, 255))
    def client_pings(self, number: int) -> None:
        """Send a PING, not too soon after the one before has come."""
        self.now += 10.0
        self.client.ping(bytes([number]) * 8)
        self.pings_sent.append(bytes([number]) * 8)

    @rule(which=pick)
    def client_reads(self, which: int) -> None:
        """Give back the window of what one stream has received."""
        held = [
            stream_id for stream_id, size in self.client.unreturned.items() if size and self._alive(stream_id)
        ]
        if held:
            stream_id = held[which % len(held)]
            self.client.give_back(stream_id, self.client.unreturned[stream_id])

    # ---------------------------------------------------------------- the server's moves

    @precondition(lambda self: self._writable())
    @rule(which=pick, size=sizes)
    def server_sends(self, which: int, size: int) -> None:
        """Send data as far as there is room; the rest waits for it."""
        writable = self._writable()
        stream = writable[which % len(writable)]
        content = bytes((len(self.server_sent[stream.id]) + at) % 241 for at in range(size))
        self.server_sent[stream.id] += content
        self.server_pending[stream.id] += content
        self._push(stream)

    @precondition(lambda self: self._writable())
    @rule(which=pick, by_trailers=ends)
    def server_ends(self, which: int, by_trailers: bool) -> None:
        """End a stream on which nothing waits."""
        writable = [stream for stream in self._writable() if not self.server_pending[stream.id]]
        if not writable:
            return
        stream = writable[which % len(writable)]
        self.ended_by_server.add(stream.id)
        # RFC 9113, section 6.9.1 lets an empty DATA frame pass without room; h2 does not if it is negative.
        if by_trailers or self.server.room(stream) < 0:
            self.server.send_headers(stream, TRAILERS, end=True)
        else:
            self.server.send_data(stream, b"", end=True)

    @precondition(lambda self: self.server.streams)
    @rule(which=pick, code=st.sampled_from([NO_ERROR, CANCEL]))
    def server_resets(self, which: int, code: int) -> None:
        """Reset a stream, with frames of the client under way."""
        stream = list(self.server.streams.values())[which % len(self.server.streams)]
        self.server.reset(stream, code)
        self.cancelled.add(stream.id)

    @rule(which=pick, part=st.integers(1, 4))
    def server_reads(self, which: int, part: int) -> None:
        """Give back a part of what one stream holds."""
        held = [stream_id for stream_id, size in self.server_held.items() if size]
        if held:
            stream_id = held[which % len(held)]
            size = -(-self.server_held[stream_id] // part)
            self.server_held[stream_id] -= size
            self.server.give_back(self.streams[stream_id], size)

    @rule(number=st.integers(0, 255))
    def server_sends_a_ping(self, number: int) -> None:
        """Send a PING of our own."""
        self.server.ping(bytes([number]) * 8)
        self.server_pings.append(bytes([number]) * 8)

    # ---------------------------------------------------------------- the wire

    @rule(size=st.integers(1, 4000))
    def bytes_reach_the_server(self, size: int) -> None:
        """Deliver some bytes to the server."""
        self.to_server += self.client.output()
        piece = bytes(self.to_server[:size])
        del self.to_server[:size]
        self.server.receive(piece)
        for event in self.server.events(ANY_BUDGET):
            self._hear(event)

    @rule(size=st.integers(1, 4000))
    def bytes_reach_the_client(self, size: int) -> None:
        """Deliver some bytes to the client, which raises if they are wrong."""
        self.to_client += self.server.take_output()
        piece = bytes(self.to_client[:size])
        del self.to_client[:size]
        if piece:
            self.client.receive(piece)
            self._forget_closed()

    @rule()
    def settle(self) -> None:
        """Deliver everything that is under way; then both sides see the same windows."""
        while True:
            before = len(self.to_server), len(self.to_client)
            self.bytes_reach_the_server(1 << 30)
            self.bytes_reach_the_client(1 << 30)
            self.to_server += self.client.output()
            self.to_client += self.server.take_output()
            if before == (0, 0) and not self.to_server and not self.to_client:
                break
        self._compare_windows()

    def teardown(self) -> None:
        """Let both read everything: all that was sent arrives, so no window has leaked."""
        self.client.set_initial_window(1 << 20)
        for _ in range(200):
            self.settle()
            if self._read_everything() == 0:
                break
        self.settle()
        for stream_id in self.streams.keys() - self.cancelled:
            assert self.server_received[stream_id] == self.client_sent[stream_id]
            assert self.client.received[stream_id] == self.server_sent[stream_id]
            assert (stream_id in self.server_heard_end) == (stream_id in self.client_ended)
            assert (stream_id in self.client.ended) == (stream_id in self.ended_by_server)
        assert self.client.pings == self.pings_sent
        assert self.server_pings_answered == self.server_pings

    @invariant()
    def nothing_failed(self) -> None:
        """Good clients are never told off, and what arrived is a beginning of what was sent."""
        assert not self.server.failed
        assert self.client.goaways == []
        for stream_id, content in self.server_received.items():
            assert self.client_sent[stream_id].startswith(content)
        for stream_id, content in self.client.received.items():
            assert self.server_sent[stream_id].startswith(content)

    # ---------------------------------------------------------------- helpers

    def _writable(self) -> list[Stream]:
        return [stream for stream in self.server.streams.values() if not stream.send_ended]

    def _alive(self, stream_id: int) -> bool:
        """Whether the client still keeps windows of a stream: it ended on neither or one side."""
        if stream_id in self.cancelled or stream_id in self.client.reset:
            return False
        return not (stream_id in self.client.ended and stream_id in self.client_ended)

    def _forget_closed(self) -> None:
        self.client_open = [each for each in self.client_open if each not in self.client.reset]

    def _push(self, stream: Stream) -> None:
        pending = self.server_pending[stream.id]
        while pending and (room := min(self.server.room(stream), FRAME_BYTES_MAX)) > 0:
            self.server.send_data(stream, pending[:room])
            pending = pending[room:]
        self.server_pending[stream.id] = pending

    def _hear(self, event: object) -> None:
        match event:
            case RequestReceived():
                assert (b":path", b"/a/B") in event.headers
                self.streams[event.stream.id] = event.stream
                self.server.send_headers(event.stream, STATUS_200)
            case DataReceived():
                self.server_received[event.stream.id] += event.data
                self.server_held[event.stream.id] += len(event.data)
            case StreamReset():
                self.cancelled.add(event.stream.id)
            case PingAcknowledged():
                self.server_pings_answered.append(event.data)
            case ConnectionFailed():
                pytest.fail(event.message)
        if isinstance(event, TrailersReceived) or getattr(event, "ended", False):
            self.server_heard_end.add(event.stream.id)
        for stream in self._writable():
            self._push(stream)

    def _read_everything(self) -> int:
        """Give back all windows on both sides; return for how many bytes."""
        total = 0
        for stream_id, size in self.server_held.items():
            self.server.give_back(self.streams[stream_id], size)
            total += size
            self.server_held[stream_id] = 0
        for stream_id, size in list(self.client.unreturned.items()):
            if size and self._alive(stream_id):
                self.client.give_back(stream_id, size)
                total += size
        return total

    def _compare_windows(self) -> None:
        """With nothing under way, what the client may send is what we would take, and the other way round."""
        for stream in self.server.streams.values():
            connection, window = self.client.send_windows(stream.id)
            assert connection == self.server._receive_left
            if not stream.receive_ended:
                assert window == WINDOW_BYTES - stream.held_bytes
                assert stream.held_bytes == self.server_held[stream.id] + stream.owed_bytes
            if not stream.send_ended:
                # libnghttp2 calls a negative window 0.
                assert max(0, self.client.receive_room(stream.id)) == max(0, self.server.room(stream))


class WithH2(Conversation):
    """The conversation with h2."""

    client_type = H2Client


class WithNghttp2(Conversation):
    """The conversation with libnghttp2."""

    client_type = NghttpClient


TestWithH2 = WithH2.TestCase
TestWithNghttp2 = WithNghttp2.TestCase
TestWithH2.settings = TestWithNghttp2.settings = hypothesis.settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
