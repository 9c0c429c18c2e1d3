"""Whatever is done to sessions, in whatever order, each gets what it would get alone.

Bit for bit, or in `fast` numerics to 1e-5. The oracle is a dict of token lists and a plain
loop over ONNX Runtime: one session, one token at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cellstream.engine import Answer, Engine, Feed, Progress, Sampling, Want
from cellstream.engine.sampling import draw
from cellstream.errors import NonFinite, StepFailed, TooManySessions

POISON, OUTSIDE = 9, 99  # As in conftest: a token of NaN, and one that the graph raises on.
SLOTS = 5
GOOD = st.sampled_from([0, 1, 2, 3, 10])
GOOD_TOKENS = st.lists(GOOD, min_size=1, max_size=12)
BAD_TOKENS = st.lists(
    st.one_of(GOOD, GOOD, GOOD, st.sampled_from([POISON, OUTSIDE])), min_size=1, max_size=12
)
TOKENS = st.one_of(GOOD_TOKENS, GOOD_TOKENS, GOOD_TOKENS, BAD_TOKENS)
PROMPTS = st.lists(GOOD, max_size=7)
ANSWERS = st.builds(
    Answer,
    want=st.sampled_from(Want),
    top_k=st.integers(0, 11),
    log_probabilities=st.booleans(),
    score=st.booleans(),
    states=st.booleans(),
    gates=st.booleans(),
)
SAMPLINGS = st.builds(
    Sampling,
    max_tokens=st.integers(1, 6),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([0.6, 1.0]),
    seed=st.integers(0, 3),
)


@dataclass
class Session:
    """What a client knows of its session."""

    absorbed: list[int] = field(default_factory=list)
    feed: Feed | None = None
    parked: bool = False


class Interleavings(RuleBasedStateMachine):
    """Sessions, feeds, resets, withdrawals, failures and broken waiters, in any order."""

    make_engine: Callable[[list[BaseException]], Engine]
    alone: Any
    tolerance: float
    """How far numbers may be from the lone run's, relative to those above 1; 0: not at all."""
    spare: list[tuple[Engine, list[BaseException]]]
    """An engine that the last run left empty: the next one goes on with it, whatever it has been through."""

    @initialize(sessions=st.integers(0, SLOTS))
    def start(self, sessions: int) -> None:
        """An engine of five slots, three rows and up to five steps a call."""
        if self.spare:
            self.engine, self.waiter_errors = self.spare.pop()
            self.waiter_errors.clear()
        else:
            self.waiter_errors = []
            self.engine = self.make_engine(self.waiter_errors)
        self.raised = 0
        self.sessions: dict[int, Session] = {}
        for _ in range(sessions):
            self.take()

    # ------------------------------------------------------------ what a session does

    def _idle(self) -> list[int]:
        return sorted(slot for slot, session in self.sessions.items() if session.feed is None)

    def _busy(self, parked: bool) -> list[int]:
        return sorted(
            slot for slot, session in self.sessions.items() if session.feed and session.parked is parked
        )

    @rule()
    def take(self) -> None:
        """The lowest free slot, or a refusal."""
        free = sorted(set(range(SLOTS)) - set(self.sessions))
        try:
            slot = self.engine.take_slot()
        except TooManySessions:
            assert not free
        else:
            assert slot == free[0]
            self.sessions[slot] = Session()

    @precondition(lambda self: self._idle())
    @rule(data=st.data(), tokens=TOKENS, answer=ANSWERS, broken=st.booleans())
    def feed(self, data: Any, tokens: list[int], answer: Answer, broken: bool) -> None:
        """Any tokens, bad ones too, any answer; a waiter may raise whenever it is told something."""
        self._submit(data, tokens, answer, None, broken)

    @precondition(lambda self: self._idle())
    @rule(data=st.data(), prompt=PROMPTS, sampling=SAMPLINGS, answer=ANSWERS)
    def generate(self, data: Any, prompt: list[int], sampling: Sampling, answer: Answer) -> None:
        """With a prompt or without, and whoever listens may have enough early."""
        self._submit(data, prompt, answer, sampling, broken=False)

    def _submit(
        self, data: Any, tokens: list[int], answer: Answer, sampling: Sampling | None, broken: bool
    ) -> None:
        slot = data.draw(st.sampled_from(self._idle()))
        session = self.sessions[slot]
        enough = data.draw(st.integers(1, 6)) if sampling else None
        told = Told(self, session, list(session.absorbed), broken, enough)
        session.feed = Feed(slot, list(tokens), answer, told, 0.0, sampling=sampling)
        session.parked = False
        self.engine.submit(session.feed)

    @precondition(lambda self: self._busy(parked=False))
    @rule(data=st.data())
    def withdraw(self, data: Any) -> None:
        """Between two calls, in the middle of a feed."""
        session = self.sessions[data.draw(st.sampled_from(self._busy(parked=False)))]
        self.engine.withdraw(session.feed)
        session.parked = True

    @precondition(lambda self: self._busy(parked=True))
    @rule(data=st.data())
    def resume(self, data: Any) -> None:
        """It goes on where it stopped."""
        session = self.sessions[data.draw(st.sampled_from(self._busy(parked=True)))]
        self.engine.submit(session.feed)
        session.parked = False

    @precondition(lambda self: self._busy(parked=True))
    @rule(data=st.data())
    def give_up(self, data: Any) -> None:
        """Taken over or cancelled: what was applied stays applied, the rest never is."""
        session = self.sessions[data.draw(st.sampled_from(self._busy(parked=True)))]
        session.feed.on_progress.over = True  # type: ignore[union-attr]
        session.feed = None

    @precondition(lambda self: self._idle())
    @rule(data=st.data())
    def reset(self, data: Any) -> None:
        """Back to the initial state."""
        slot = data.draw(st.sampled_from(self._idle()))
        self.engine.reset(slot)
        self.sessions[slot].absorbed.clear()

    @precondition(lambda self: self._idle())
    @rule(data=st.data())
    def give_back(self, data: Any) -> None:
        """The session ends."""
        slot = data.draw(st.sampled_from(self._idle()))
        self.engine.give_back(slot)
        del self.sessions[slot]

    @rule()
    def turn(self) -> None:
        """One call: exactly what it says it committed was committed."""
        before = sum(len(session.absorbed) for session in self.sessions.values())
        waiting = self.engine.waiting
        call = self.engine.turn()
        assert (call is None) == (waiting == 0)
        for slot, session in self.sessions.items():
            if session.feed is not None:
                self._absorb(slot, session, session.feed)
        if call is not None:
            after = sum(len(session.absorbed) for session in self.sessions.values())
            assert call.tokens == after - before

    def assert_same(self, found: Any, expected: Any) -> None:
        """Numbers of one shape, equal as the numerics promise."""
        found, expected = np.asarray(found), np.asarray(expected)
        if self.tolerance:
            assert found.shape == expected.shape
            assert (np.abs(found - expected) <= self.tolerance * np.maximum(1, np.abs(expected))).all()
        else:
            assert (found.shape, found.tobytes()) == (expected.shape, expected.tobytes())

    def _absorb(self, slot: int, session: Session, feed: Feed) -> None:
        told: Told = feed.on_progress  # type: ignore[assignment]
        session.absorbed = told.base + feed.inputs[: feed.applied]  # type: ignore[operator]
        if told.over:
            session.feed = None

    @invariant()
    def positions_count_what_was_absorbed(self) -> None:
        """And no slot is owned twice, free + taken = all, nobody waits without a slot."""
        if not hasattr(self, "engine"):
            return
        self.engine.check_integrity()
        assert self.engine.slots_taken == len(self.sessions)
        assert self.engine.waiting == len(self._busy(parked=False))
        for error in self.waiter_errors:
            if isinstance(error, AssertionError):
                raise error  # A check of ours, made where the engine guards itself.
        assert len(self.waiter_errors) == self.raised
        for slot, session in self.sessions.items():
            assert self.engine.position(slot) == len(session.absorbed)

    def teardown(self) -> None:
        """Everything that waits comes to its end, and every state is that of the lone run."""
        if not hasattr(self, "engine"):
            return
        while self.engine.waiting:
            self.turn()
            self.positions_count_what_was_absorbed()
        for slot in self._busy(parked=True):
            self.sessions[slot].feed = None
        for slot, session in self.sessions.items():
            arrays = self.engine._slab.rows(np.array([slot]))
            expected = (
                self.alone.after(tuple(session.absorbed)).states if session.absorbed else self.alone.initial()
            )
            for array, state in zip(arrays, expected.values(), strict=True):
                self.assert_same(array[0], state)
            self.engine.give_back(slot)
        assert self.engine.slots_taken == 0
        self.engine.check_integrity()
        self.spare.append((self.engine, self.waiter_errors))


@dataclass
class Told:
    """A waiter that checks whatever it is told against the lone run."""

    machine: Interleavings
    session: Session
    base: list[int]
    broken: bool
    enough: int | None
    heard: int = 0
    answered: int = 0
    made: int = 0
    over: bool = False

    def __call__(self, feed: Feed, progress: Progress) -> None:
        """Checks, then raises if it is one of the broken ones."""
        assert not self.over, "told something after its end"
        # A call that failed is run again token by token: the feed may be further on than this progress.
        text = (self.base + feed.inputs)[: progress.position]  # type: ignore[operator]
        assert len(self.base) <= progress.position <= len(self.base) + feed.applied
        self._check_end(feed, progress, text)
        if progress.error is None:
            self._check_made(feed, progress, text)
            self._check_answers(feed, progress, text)
        self.over = progress.done
        self.heard += 1
        self.answered += progress.steps
        self.made += len(progress.made)
        if self.heard == self.enough and not progress.done:
            feed.finished = self.over = True
        if self.over:  # Nothing was left out.
            assert self.made == len(feed.inputs[len(feed.inputs) - feed.made : feed.applied])
            assert self.answered == feed.applied or feed.answer.want is not Want.EVERY_STEP
        if self.broken:
            self.machine.raised += 1
            raise RuntimeError

    def _check_end(self, feed: Feed, progress: Progress, text: list[int]) -> None:
        if progress.error is not None:
            assert progress.done
            bad = feed.inputs[feed.applied]
            assert type(progress.error) is {POISON: NonFinite, OUTSIDE: StepFailed}[int(bad)]
        elif feed.sampling is None:
            assert progress.done == (len(text) == len(self.base) + len(feed.inputs))
        else:
            assert progress.done == (feed.made == feed.sampling.max_tokens)

    def _check_made(self, feed: Feed, progress: Progress, text: list[int]) -> None:
        if not feed.made:
            assert not progress.made
            return
        assert feed.sampling is not None
        assert progress.made == text[-1:]
        before = self._outputs(text, len(text) - 1)
        expected = draw(before[np.newaxis], [feed.sampling], np.array([len(text) - 1]))
        assert progress.made == expected

    def _check_answers(self, feed: Feed, progress: Progress, text: list[int]) -> None:
        answer = feed.answer
        if answer.want is not Want.EVERY_STEP:
            assert progress.steps == (answer.want is Want.LAST and progress.done)
        ends = range(len(text) - progress.steps + 1, len(text) + 1)
        outputs = [self._outputs(text, end) for end in ends]
        best = [np.argsort(-output, kind="stable")[: answer.top_k] for output in outputs]
        same = self.machine.assert_same
        values = [value for output, ids in zip(outputs, best, strict=True) for value in output[ids].tolist()]
        same(progress.top_log_probabilities, values)
        if self.machine.tolerance:  # Two that are nearly as likely may change places.
            named = np.array(progress.top_ids, int).reshape(len(outputs), answer.top_k)
            pairs = zip(outputs, named, strict=True)
            same([value for output, ids in pairs for value in output[ids].tolist()], values)
        else:
            assert progress.top_ids == [token for ids in best for token in ids.tolist()]
        if not progress.steps:
            assert progress.scores is progress.outputs is progress.states is progress.gates is None
            return
        if answer.score:
            assert progress.scores is not None
            for end, score in zip(ends, progress.scores, strict=True):
                if end == 1:
                    assert math.isnan(score)
                else:
                    same(score, self._outputs(text, end - 1)[text[end - 1]].item())
        if answer.log_probabilities:
            assert progress.outputs is not None
            same(progress.outputs["log_probabilities"], np.stack(outputs))
        steps = [self.machine.alone.after(tuple(text[:end])) for end in ends]
        if answer.states:
            assert progress.states is not None
            for name, array in progress.states.items():
                same(array, np.stack([step.states[name] for step in steps]))
        if answer.gates:
            assert progress.gates is not None
            for name, array in progress.gates.items():
                same(array, np.stack([step.gates[name] for step in steps]))

    def _outputs(self, text: list[int], end: int) -> np.ndarray:
        """The lone run's prediction after `end` tokens; before the first, the head's."""
        if end:
            return self.machine.alone.after(tuple(text[:end])).output
        return self.machine.alone.before_anything()


@pytest.mark.parametrize(("numerics", "allowed", "examples"), [("exact", 0.0, 400), ("fast", 1e-5, 150)])
def test_each_session_gets_what_it_gets_alone(
    numerics: str, allowed: float, examples: int, make_model: Any, make_engine: Any, make_alone: Any
) -> None:
    """The promise that everything else stands on.

    In `fast` numerics both graphs sum the same float32 products, in different orders: a step differs by some
    1e-7, and 1e-5 leaves room for what a recurrent network makes of it.
    """
    version = make_model(poisoned=True).version

    class Machine(Interleavings):
        alone = make_alone(version)
        tolerance = allowed
        spare: ClassVar[list[Any]] = []

        def make_engine(self, errors: list[BaseException]) -> Engine:
            engine: Engine = make_engine(
                version, slots_max=SLOTS, batch_rows_max=3, on_waiter_error=errors.append, numerics=numerics
            )
            assert engine.numerics == numerics
            return engine

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
