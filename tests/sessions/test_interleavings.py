"""Whatever is done to sessions, in whatever order, each gets bit for bit what it would get alone.

The oracle is a plain loop over ONNX Runtime (`alone`): one session, one token at a time. What a session has
absorbed is reconstructed from what the clients were told, so a wrong position or a dropped token shows as a
difference too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from prometheus_client import CollectorRegistry

from cellstream.engine import Answer, Engine, Feed, Progress, Want
from cellstream.errors import CellstreamError
from cellstream.metrics import Metrics
from cellstream.repository import Repository
from cellstream.sessions import (
    Catalogue,
    Cause,
    Ending,
    Handle,
    Mode,
    Open,
    QueuedFeed,
    Registry,
    Served,
    Session,
    Stream,
)
from cellstream.settings import Settings
from cellstream.testing import ManualClock
from cellstream.text import ByteTokenizer

IDLE_SECONDS = 25.0
WAIT_SECONDS = 10.0
SLOTS = 3


@dataclass(slots=True, eq=False)
class Asked(QueuedFeed):
    """A feed of tokens that need no check."""

    tokens: list[int]
    wanted: Answer

    def load(self, session: Session, answer: Answer, on_progress: Callable[[Feed, Progress], None]) -> Feed:
        return Feed(session.slot, self.tokens, self.wanted, on_progress, self.received_at)


@dataclass
class Told:
    """A client: it remembers what it was told, and checks every answer as it comes."""

    machine: Interleavings
    stream: Stream | None = None
    asked: dict[int, tuple[int, ...]] = field(default_factory=dict)  # feed id → its tokens, until it is done
    applied_of: Counter[int] = field(default_factory=Counter)
    names: dict[int, str] = field(default_factory=dict)  # handle → session, as Opened told
    failed: set[int] = field(default_factory=set)  # handles whose last feed failed
    takeovers: int = 0
    owed: int = 0  # bytes that it sent and that were not told to be applied

    def applied(self, size: int) -> None:
        assert size > 0
        self.owed -= size

    def drained(self, error: CellstreamError) -> None:
        raise AssertionError("nobody ends the streams here")

    def opened(self, handle: Handle, created: bool, previous: Ending | None) -> None:
        assert handle.session is not None
        session_id = handle.session.id
        self.names[handle.number] = session_id
        self.failed.discard(handle.number)
        if created:
            self.machine.fed_at[session_id] = self.machine.clock()
            assert session_id not in self.machine.absorbed, "a session that was there is not created again"
            self.machine.absorbed[session_id] = ()
        assert handle.position == len(self.machine.absorbed[session_id])
        assert created or previous is None

    def refused(self, number: int, session_id: str, error: CellstreamError) -> None:
        self.machine.refusals[error.reason] += 1

    def rejected(self, number: int, queued: QueuedFeed, error: CellstreamError) -> None:
        assert queued.id in self.asked
        del self.asked[queued.id]

    def result(self, handle: Handle, queued: QueuedFeed, progress: Progress) -> None:
        tokens = self.asked[queued.id]
        assert handle.session is not None or progress.error is not None
        if progress.error is not None:
            self.failed.add(handle.number)
        elif queued.position is None:
            assert handle.number not in self.failed, "nothing is applied behind a failure by mistake"
        else:
            self.failed.discard(handle.number)
        if handle.session is not None:
            session_id = handle.session.id
            if queued.position is not None and not self.applied_of[queued.id] and progress.error is None:
                assert len(self.machine.absorbed[session_id]) == queued.position, "never twice, never early"
            # A feed may wait too long behind one that runs: the position is then what that one brought it to.
            running = queued if handle.current is None else handle.current
            self._absorb(session_id, running.id, progress.position)
            if progress.done and progress.error is None:
                self.machine.fed_at[session_id] = self.machine.clock()
        if progress.error is None and progress.steps:
            assert progress.outputs is not None
            assert handle.session is not None
            absorbed = self.machine.absorbed[handle.session.id]
            for step in range(progress.steps):
                history = absorbed[: progress.position - progress.steps + step + 1]
                expected = self.machine.alone.after(history).log_probabilities
                np.testing.assert_array_equal(progress.outputs["log_probabilities"][step], expected)
        if progress.done:
            if progress.error is None:
                assert self.applied_of[queued.id] == len(tokens), "a feed that is done is applied whole"
            del self.asked[queued.id]

    def event(self, number: int, cause: Cause, position: int, error: CellstreamError | None) -> None:
        if error is not None:
            return
        session_id = self.names[number]
        if cause is Cause.TAKEN_OVER:
            self.takeovers += 1
        if cause is Cause.RESET:
            self.failed.discard(number)
            self.machine.absorbed[session_id] = ()
            assert position == 0
            return
        assert position == len(self.machine.absorbed[session_id])
        if cause is Cause.EXPIRED:
            self.machine.check_idle(session_id)
        if cause in (Cause.CLOSED, Cause.EXPIRED, Cause.DRAINING):
            self.machine.ended(session_id)
        del self.names[number]

    def _absorb(self, session_id: str, feed_id: int, position: int) -> None:
        """The session was told to be at `position`: the feed's next tokens brought it there."""
        absorbed = self.machine.absorbed[session_id]
        count = position - len(absorbed)
        assert count >= 0, "a position never goes back but by a reset"
        first = self.applied_of[feed_id]
        tokens = self.asked[feed_id][first : first + count]
        assert len(tokens) == count, "no more was applied than was sent"
        self.applied_of[feed_id] += count
        self.machine.absorbed[session_id] = absorbed + tokens

    def gone(self) -> None:
        """The stream ends in silence: what its running feeds did, only the sessions' positions tell."""
        assert self.stream is not None
        for handle in self.stream.handles.values():
            if handle.session is not None and handle.current is not None:
                self._absorb(handle.session.id, handle.current.id, handle.session.position)
        ending = [
            handle.session.id
            for handle in self.stream.handles.values()
            if handle.session is not None and not handle.session.named
        ]
        self.machine.registry.disconnect(self.stream)
        for session_id in ending:
            self.machine.ended(session_id)
        self.names.clear()
        self.asked.clear()
        self.owed = 0  # a stream that is gone is paid nothing


NAMES = st.sampled_from(["", "alice", "alice", "bob"])
HANDLES = st.integers(0, 2)
CLIENTS = st.integers(0, 1)
WANTS = st.sampled_from(list(Want))
TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=7)


class Interleavings(RuleBasedStateMachine):
    """Two clients, three handles each, few slots, names that they share."""

    served: Served
    alone: Any

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.absorbed: dict[str, tuple[int, ...]] = {}
        self.fed_at: dict[str, float] = {}
        self.refusals: Counter[str] = Counter()
        self.feed_id = 0
        self.woken = False
        self.settings = Settings(
            models=Path(),
            slots_max=SLOTS,
            session_idle_seconds=IDLE_SECONDS,
            feed_wait_seconds_max=WAIT_SECONDS,
            stream_handles_max=3,
        )

    @initialize()
    def start(self) -> None:
        self.registry = Registry(
            Catalogue([self.served], self.served.name),
            self.settings,
            Metrics(CollectorRegistry()),
            wake=self.wake,
            clock=self.clock,
            wall_clock=self.clock,
        )
        self.clients = [Told(self), Told(self)]
        for client, name in zip(self.clients, ("", "alice"), strict=True):
            client.stream = self.registry.connect(client)
            self.registry.open(client.stream, 0, _open(name, Mode.ATTACH_OR_CREATE))

    def wake(self) -> None:
        self.woken = True

    def ended(self, session_id: str) -> None:
        """A session is gone; what it had absorbed is forgotten."""
        del self.absorbed[session_id]

    def check_idle(self, session_id: str) -> None:
        """A session has expired: it was idle for as long as that takes."""
        assert self.clock() - self.fed_at[session_id] >= IDLE_SECONDS

    @rule(who=CLIENTS, number=HANDLES, name=NAMES, mode=st.sampled_from(list(Mode)))
    def open(self, who: int, number: int, name: str, mode: Mode) -> None:
        client = self.clients[who]
        assert client.stream is not None
        if number in client.stream.handles:
            with pytest.raises(CellstreamError, match="in use"):
                self.registry.open(client.stream, number, _open(name, mode))
            return
        self.registry.open(client.stream, number, _open(name, mode))

    def in_use(self) -> list[tuple[Told, int]]:
        """Every handle that a client uses."""
        return [
            (client, number)
            for client in self.clients
            if client.stream is not None
            for number in client.stream.handles
        ]

    def send(self, client: Told, number: int, tokens: list[int], want: Want, position: int | None) -> None:
        """One feed."""
        assert client.stream is not None
        self.feed_id += 1
        client.asked[self.feed_id] = tuple(tokens)
        answer = Answer(want=want, top_k=0, log_probabilities=True)
        queued = Asked(self.feed_id, position, self.clock(), len(tokens), list(tokens), answer)
        client.owed += queued.size
        self.registry.feed(client.stream, number, queued)

    @precondition(lambda self: self.in_use())
    @rule(data=st.data(), feeds=st.lists(st.tuples(TOKENS, WANTS), min_size=1, max_size=3))
    def feed(self, data: st.DataObject, feeds: list[tuple[list[int], Want]]) -> None:
        client, number = data.draw(st.sampled_from(self.in_use()))
        for tokens, want in feeds:
            self.send(client, number, tokens, want, None)

    @precondition(lambda self: self.in_use())
    @rule(data=st.data(), tokens=TOKENS, want=WANTS, off=st.sampled_from([0, 0, 1]))
    def feed_with_position(self, data: st.DataObject, tokens: list[int], want: Want, off: int) -> None:
        client, number = data.draw(st.sampled_from(self.in_use()))
        assert client.stream is not None
        self.send(client, number, tokens, want, client.stream.handles[number].position + off)

    @precondition(lambda self: self.in_use())
    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        client, number = data.draw(st.sampled_from(self.in_use()))
        assert client.stream is not None
        client.owed += 3
        self.registry.reset(client.stream, number, size=3)

    @precondition(lambda self: self.in_use())
    @rule(
        data=st.data(),
        keep=st.booleans(),
        again=st.booleans(),
        rival=st.booleans(),
        mode=st.sampled_from(list(Mode)),
    )
    def close(self, data: st.DataObject, keep: bool, again: bool, rival: bool, mode: Mode) -> None:
        """Close a handle; perhaps open its session again, behind the Close; perhaps a rival opens it then."""
        client, number = data.draw(st.sampled_from(self.in_use()))
        assert client.stream is not None
        session = client.stream.handles[number].session
        client.owed += 5
        self.registry.close(client.stream, number, keep, size=5)
        free = [other for other in range(3) if other not in client.stream.handles]
        if again and free and session is not None:
            takeovers = client.takeovers
            self.registry.open(client.stream, free[0], _open(session.id, mode))
            assert client.takeovers == takeovers, "an Open behind a Close waits for it"
        other = self.clients[1 - self.clients.index(client)]
        assert other.stream is not None
        free = [number for number in range(3) if number not in other.stream.handles]
        if rival and free and session is not None:
            self.registry.open(other.stream, free[0], _open(session.id, mode))

    @rule(who=CLIENTS, number=HANDLES, keep=st.booleans())
    def misuse(self, who: int, number: int, keep: bool) -> None:
        """What names a handle that is not in use, or is being closed, is refused and changes nothing."""
        client = self.clients[who]
        assert client.stream is not None
        handle = client.stream.handles.get(number)
        if handle is None or handle.closing:
            self.send(client, number, [0], Want.LAST, None)
            client.owed += 3
            self.registry.reset(client.stream, number, size=3)
            client.owed += 5
            self.registry.close(client.stream, number, keep, size=5)

    @rule(turns=st.integers(1, 4))
    def turn(self, turns: int) -> None:
        for _ in range(turns):
            self.served.engine.turn()

    @rule(who=CLIENTS)
    def disconnect(self, who: int) -> None:
        client = self.clients[who]
        client.gone()
        client.stream = self.registry.connect(client)

    @rule(who=CLIENTS)
    def pause_or_resume(self, who: int) -> None:
        stream = self.clients[who].stream
        assert stream is not None
        (self.registry.resume if stream.paused else self.registry.pause)(stream)

    @rule(seconds=st.sampled_from([1.0, WAIT_SECONDS, 0.8 * IDLE_SECONDS]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.registry.sweep()
        for session_id in set(self.absorbed) - {session.id for session in self.registry}:
            self.check_idle(session_id)
            self.ended(session_id)  # nobody held it, so nobody was told

    @precondition(lambda self: self.absorbed)
    @rule(data=st.data())
    def close_from_outside(self, data: st.DataObject) -> None:
        oldest_first = sorted(self.registry, key=lambda session: session.serial)
        session_id = data.draw(st.sampled_from(oldest_first)).id  # ids are random, their order is not
        held = self.registry.get(session_id).handle is not None
        position = self.registry.end(session_id)
        if not held:
            assert position == len(self.absorbed[session_id])
            self.ended(session_id)

    @invariant()
    def nothing_is_lost_or_shared(self) -> None:
        if not hasattr(self, "registry"):
            return
        engine = self.served.engine
        engine.check_integrity()
        slots = [session.slot for session in self.registry]
        assert len(slots) == len(set(slots)) == engine.slots_taken
        assert {session.id for session in self.registry} == set(self.absorbed)
        for client in self.clients:
            assert client.stream is not None
            waiting = [
                queued.size
                for handle in client.stream.handles.values()
                for queued in (handle.current, *handle.queue)
                if queued is not None
            ]
            assert client.stream.unapplied_bytes == sum(waiting) == client.owed
        held = sum(session.handle is not None for session in self.registry)
        assert held == self.registry.held.total()

    def teardown(self) -> None:
        if not hasattr(self, "registry"):
            return
        try:
            self.finish()
        finally:  # the engine serves the next example too, whatever became of this one
            for stream in self.registry.streams:
                stream.listener = Mock()
            self.registry.drain()

    def finish(self) -> None:
        """Let all that waits be answered, and see that nothing is left."""
        for client in self.clients:
            assert client.stream is not None
            if client.stream.paused:
                self.registry.resume(client.stream)
        while self.served.engine.turn() is not None:
            pass
        for client in self.clients:
            assert client.stream is not None
            assert client.stream.unapplied_bytes == 0
            assert not client.asked, "every feed was answered to its end"
        self.registry.drain()
        assert self.served.engine.slots_taken == 0
        assert len(self.registry) == 0


def _open(name: str, mode: Mode) -> Open:
    return Open(name, "", "", mode, lambda served: Answer())


def test_each_session_gets_what_it_would_get_alone(tiny: Path, alone: Any) -> None:
    """The first promise, under every interleaving that hypothesis finds."""
    version = Repository(tiny).load("tiny")
    engine = Engine(version, slots_max=SLOTS, batch_rows_max=8, step_milliseconds_max=10.0)

    class Machine(Interleavings):
        served = Served(version.manifest, version.manifest_digest, "", engine, ByteTokenizer())

        def __init__(self) -> None:
            super().__init__()
            self.absorbed = {}

    Machine.alone = alone(version.directory)
    run_state_machine_as_test(
        Machine, settings=hypothesis_settings(max_examples=200, stateful_step_count=50, deadline=None)
    )
