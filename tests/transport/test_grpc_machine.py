"""One Hypothesis machine drives the calls of two connections to one server: accounts agree, nothing leaks."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from tests.transport.grpc_memory import Memory, framed

from cellstream.transport.call import OK

PATHS = ("Echo", "Hoard", "Unary", "Count", "FailStream", "Raise", "Refuse", "Nope")
BOUNDS = {
    "message_bytes_max": 5000,
    "stream_window_bytes": 2048,
    "connection_bytes_max": 3000,
    "buffered_bytes_max": 4500,
    "calls_max": 12,
    "unstarted_calls_max": 6,
    "first_message_seconds": 20.0,
    "stall_seconds_max": 40.0,
}


@dataclass
class Sent:
    """A call as its client sees it."""

    memory: Memory
    stream: int
    is_gzip: bool
    left: bytes = field(default=b"", repr=False)  # of messages that were begun
    has_ended: bool = False
    is_cancelled: bool = False

    @property
    def is_open(self) -> bool:
        """Whether the client may still say something; h2 takes a mistake of its user's for an end."""
        answer = self.memory.answers[self.stream]
        return not answer.is_ended and answer.reset is None


class Calls(RuleBasedStateMachine):
    """Opens, feeds, reads, cancels and forgets calls at random."""

    calls = Bundle("calls")

    @initialize(window=st.sampled_from([0, 100, 65_535]))
    def connect(self, window: int) -> None:
        """Connect twice."""
        first = Memory(window=window, **BOUNDS)
        self.memories = [first, Memory(server=first, **BOUNDS)]
        self.sent: list[Sent] = []

    @rule(
        target=calls,
        which=st.integers(0, 1),
        path=st.sampled_from(PATHS),
        timeout=st.sampled_from([None, None, "10S", "50S"]),
        is_gzip=st.sampled_from([False, False, False, True]),
    )
    def open(self, which: int, path: str, timeout: str | None, is_gzip: bool) -> Sent:
        """Begin a call."""
        memory = self.memories[which]
        named = {"grpc_encoding": "gzip", "grpc_accept_encoding": "gzip"} if is_gzip else {}
        if timeout is not None:
            named["grpc_timeout"] = timeout
        call = Sent(memory, memory.open(f"/test.Test/{path}", **named), is_gzip)
        self.sent.append(call)
        return call

    @rule(call=calls, size=st.sampled_from([0, 4, 700, 4900, 4900, 4900, 5001]))
    def begin_message(self, call: Sent, size: int) -> None:
        """Have a message to send."""
        whole = bytes(size)
        call.left += framed(gzip.compress(whole), packed=1) if call.is_gzip else framed(whole)

    @rule(call=calls, size=st.integers(1, 9000), end=st.booleans())
    def send(self, call: Sent, size: int, end: bool) -> None:
        """Send as much as the window lets, and perhaps half-close."""
        self.send_some(call, size, end=end)

    def send_some(self, call: Sent, size: int, *, end: bool = False) -> None:
        """Send so many bytes at most."""
        if call.has_ended or not call.is_open:
            return
        size = max(0, min(size, call.memory.window(call.stream), len(call.left)))
        part, call.left = call.left[:size], call.left[size:]
        call.has_ended = end and not call.left
        if part or call.has_ended:
            call.memory.send(call.stream, part, end=call.has_ended)

    @rule(call=calls, size=st.integers(0, 3000))
    def consume(self, call: Sent, size: int) -> None:
        """Let a handler that hoards have applied something."""
        for held in call.memory.log.calls[:3]:
            held.consumed(size)

    @rule(which=st.integers(0, 1), budget=st.integers(1, 6))
    def take_a_turn(self, which: int, budget: int) -> None:
        """Read and write once, within a small budget."""
        memory = self.memories[which]
        memory.http2.receive(memory.client.data_to_send())
        memory.grpc.process(budget)
        memory.grpc.pull(3000)
        memory.read(memory.http2.take_output())

    @rule(which=st.integers(0, 1))
    def settle(self, which: int) -> None:
        """Carry everything."""
        self.memories[which].exchange()

    @rule(call=calls, size=st.integers(1, 500))
    def open_window(self, call: Sent, size: int) -> None:
        """Let the server send more."""
        if call.is_open:
            call.memory.client.increment_flow_control_window(size, call.stream)

    @rule(call=consumes(calls))
    def cancel(self, call: Sent) -> None:
        """Reset a call."""
        if call.is_open:
            call.memory.client.reset_stream(call.stream, 8)
            call.has_ended = call.is_cancelled = True

    @rule(seconds=st.floats(0, 15))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.memories[0].clock.move(seconds)
        for memory in self.memories:
            memory.grpc.end_stalled(memory.clock())

    @rule(index=st.integers(0, 20))
    def end(self, index: int) -> None:
        """Let a handler end its call."""
        calls = self.memories[0].log.calls
        if index < len(calls):
            calls[index].end(OK)

    @invariant()
    def accounts_agree(self) -> None:
        """What is counted is what is there."""
        if not hasattr(self, "memories"):
            return
        totals = self.memories[0].totals
        open_calls = [call for memory in self.memories for call in memory.grpc.calls]
        assert totals.calls == len(open_calls)
        assert totals.unfinished.size_bytes == sum(call.held_bytes for call in open_calls)
        for call in open_calls:
            assert call.held_bytes == len(call.partial or b"") + len(call.first or b"")
            assert not call.is_over
        for memory in self.memories:
            held = sum(call.held_bytes for call in memory.grpc.calls)
            assert memory.grpc._unfinished.size_bytes == held
            unsent = sum(
                len(call.pending or b"") - call.pending_start for call in memory.grpc.calls if call.pending
            )
            assert memory.grpc._unsent_bytes == unsent
            for call in memory.grpc.calls:
                waits = (memory.grpc._unfinished._waiting, totals.unfinished._waiting)
                assert call.waits == sum(call in waiting for waiting in waits)
        assert totals.unsent_bytes == sum(memory.grpc._unsent_bytes for memory in self.memories)
        assert len(totals.unstarted) <= BOUNDS["unstarted_calls_max"]
        assert all(call.handler is None for call in totals.unstarted)
        alive = [handler for handler in self.memories[0].log.handlers if handler.why is None]
        assert len(alive) == sum(call.handler is not None for call in open_calls)

    def teardown(self) -> None:
        """When all is carried and all connections are gone, nothing is left."""
        if not hasattr(self, "memories"):
            return
        self._nobody_is_stuck()
        assert all(memory.goaway is None and not memory.notices for memory in self.memories)
        self._answers_are_right()
        for memory in self.memories:
            memory.grpc.lose()
            assert not memory.grpc.close_lost(1000)
        totals = self.memories[0].totals
        assert totals.calls == totals.unfinished.size_bytes == len(totals.unstarted) == 0
        assert totals.unsent_bytes == 0
        assert all(handler.why is not None for handler in self.memories[0].log.handlers)

    def _nobody_is_stuck(self) -> None:
        """Once everything is applied and read, every message that was begun can be sent to its end."""
        for call in self.sent:
            if call.is_open and not call.is_cancelled:
                call.memory.client.increment_flow_control_window(1 << 20, call.stream)
        for _ in range(100):
            for memory in self.memories:
                memory.exchange()
            for handler in self.memories[0].log.handlers:
                if not handler.consumes:
                    handler.call.consumed(1 << 30)
            for call in self.sent:
                self.send_some(call, 1 << 30, end=True)
        stuck = [call for call in self.sent if call.is_open and call.left and not call.has_ended]
        assert not stuck, [(call, call.memory.window(call.stream)) for call in stuck]

    def _answers_are_right(self) -> None:
        """Whatever ended says how."""
        for memory in self.memories:
            for answer in memory.answers.values():
                assert not answer.is_ended or "grpc-status" in answer.last


TestCalls = Calls.TestCase
TestCalls.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
