"""Which graph a call runs on: decided by a table of costs, and by nothing that is measured here."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from cellstream.engine import Answer, Feed, Want
from cellstream.engine.costs import RAGGED_MAX, WORTH, Costs, Telling, sequence_steps
from cellstream.engine.scheduler import Scheduler

STEP = Costs((1, 8, 64), (152e-6, 203e-6, 745e-6), (133e-6, 186e-6, 745e-6))
SEQUENCE = Costs((1, 8, 64), (159e-6, 216e-6, 770e-6), (19e-6, 85e-6, 770e-6))
"""An LSTM of 2 x 256 units on an Intel Xeon core, in seconds."""


@pytest.mark.parametrize(
    ("waiting", "steps"),
    [
        ([512], 256),  # One long feed: as much as a call may hold.
        ([100], 100),
        ([2], 2),  # 178 against 285 µs.
        ([4, 4], 4),
        ([6, 8, 8, 8], 8),  # A little padding is cheaper than another call.
        ([60, 64], 60),  # And it is not, beside so long a one.
        ([10, 500], 10),  # The short one is not held up: half of its row would be padding.
        ([10] * 8, 10),
        ([64] * 40, 0),  # Cheaper by 6 %: as good as a tie.
        ([64] * 64, 0),
    ],
)
def test_the_cheaper_graph_for_a_token_runs(waiting: list[int], steps: int) -> None:
    """Costs as measured once, decisions worked out by hand."""
    rows, fewest = len(waiting), min(waiting)
    step_seconds = STEP.call_seconds(rows, fewest) / (rows * fewest)
    assert sequence_steps(waiting, step_seconds, SEQUENCE, 256) == steps


@given(
    waiting=st.lists(st.integers(2, 600), min_size=1, max_size=20),
    step_seconds=st.floats(1e-6, 1e-3),
    steps_max=st.integers(2, 256),
)
def test_no_other_number_of_steps_is_cheaper(waiting: list[int], step_seconds: float, steps_max: int) -> None:
    """Against trying them all; and within its bounds, so that nobody waits for a neighbour's long feed."""

    def token_seconds(steps: int) -> float:
        return SEQUENCE.call_seconds(len(waiting), steps) / sum(min(tokens, steps) for tokens in waiting)

    longest = min(RAGGED_MAX * min(waiting), steps_max)
    best = min(token_seconds(steps) for steps in range(1, longest + 1))
    found = sequence_steps(waiting, step_seconds, SEQUENCE, steps_max)
    if found:
        assert 1 <= found <= longest
        assert token_seconds(found) == pytest.approx(best)
        assert token_seconds(found) <= WORTH * step_seconds
    else:
        assert best > WORTH * step_seconds * (1 - 1e-9)


def _batch(*tokens: int, answer: Answer | None = None, seconds: float = 0.01) -> tuple[int, int]:
    """The steps that a batch of feeds of so many tokens names, of either graph."""
    scheduler = Scheduler(STEP, batch_rows_max=64, call_seconds_max=seconds, sequence=SEQUENCE)
    for slot, count in enumerate(tokens):
        feed = Feed(slot, [0] * count, Answer(Want.NONE), lambda feed, progress: None, 0.0)
        scheduler.add(feed)
    if answer:
        feed.answer = answer
    batch = scheduler.next_batch()
    assert batch is not None
    return batch.steps, batch.sequence_steps


def test_a_batch_names_its_graph() -> None:
    """And what the step graph would run, which stands in where the other fails."""
    assert _batch(100) == (75, 100)
    assert _batch(*[100] * 64) == (13, 0)


@pytest.mark.parametrize("answer", [Answer(Want.EVERY_STEP, states=True), Answer(Want.LAST, gates=True)])
def test_what_only_the_step_graph_shows_runs_on_it(answer: Answer) -> None:
    """Gates, and the states after every step: for the whole batch, so that nobody is passed over."""
    assert _batch(100, 100, answer=answer)[1] == 0


def test_a_feed_of_one_token_is_never_held_up() -> None:
    """Somebody types beside a long feed."""
    assert _batch(500, 1) == (1, 0)


def test_a_call_of_the_sequence_graph_keeps_to_its_time() -> None:
    """It holds the event loop as the other does."""
    _, steps = _batch(500, seconds=0.001)
    assert SEQUENCE.call_seconds(1, steps) <= 0.001 < SEQUENCE.call_seconds(1, steps + 1)


@pytest.mark.parametrize(
    ("wants", "steps", "sequence_steps"),
    [
        ([], 53, 100),  # None answers at every step: 203 + 52 x 186 µs, and 216 + 99 x 85.
        ([5] * 8, 28, 40),  # 160 µs more a step: 203 + 27 x 186 + 28 x 160, and 216 + 39 x 85 + 40 x 160.
        ([5, 9], 41, 69),  # 20 and 36 µs.
        ([0] * 8, 53, 100),
        ([500] * 8, 1, 0),  # 16 ms a step: the table ends at 9, and goes on in proportion.
    ],
)
def test_what_feeds_are_told_of_every_step_shortens_their_calls(
    wants: list[int], steps: int, sequence_steps: int
) -> None:
    """It was in no table: twenty most likely tokens of every step made calls of ten times the target."""
    telling = Telling((1, 5, 9), (4e-6, 20e-6, 36e-6))
    scheduler = Scheduler(STEP, batch_rows_max=64, call_seconds_max=0.01, sequence=SEQUENCE, telling=telling)
    for slot in range(8):
        want = Want.EVERY_STEP if slot < len(wants) else Want.LAST
        answer = Answer(want, top_k=wants[slot] if slot < len(wants) else 9)
        scheduler.add(Feed(slot, [0] * 100, answer, lambda feed, progress: None, 0.0))
    batch = scheduler.next_batch()
    assert batch is not None
    assert (batch.steps, batch.sequence_steps) == (steps, sequence_steps)


@given(top_k=st.integers(1, 64))
def test_telling_costs_straight_lines_between_measurements(top_k: int) -> None:
    """Against numpy's interpolation."""
    telling = Telling((1, 4, 16, 64), (1e-6, 2e-6, 9e-6, 11e-6))
    assert telling.step_seconds(top_k) == pytest.approx(np.interp(top_k, telling.top_k, telling.seconds))


def test_a_heavy_model_runs_on_the_sequence_graph_too() -> None:
    """One step takes 12 ms where a call may take 10: a call of the sequence graph takes up to twice as long.

    Costs worked out by hand: six steps in 13 + 5 x 2 = 23 ms, and not the 72 of six single steps.
    """
    step, sequence = Costs((1,), (12e-3,), (12e-3,)), Costs((1,), (13e-3,), (2e-3,))
    scheduler = Scheduler(step, batch_rows_max=64, call_seconds_max=0.01, sequence=sequence)
    feed = Feed(0, [0] * 100, Answer(Want.NONE), lambda feed, progress: None, 0.0)
    scheduler.add(feed)
    found = []
    while batch := scheduler.next_batch():
        found.append((batch.steps, batch.sequence_steps))
        feed.applied += batch.sequence_steps or batch.steps
        if feed.applied == 100:
            scheduler.remove(feed)
    assert found == [(1, 6)] * 16 + [(1, 4)]


@pytest.mark.parametrize("sequence", [Costs((1,), (26e-3,), (1e-3,)), Costs((1,), (13e-3,), (12e-3,))])
def test_a_heavy_model_runs_on_the_sequence_graph_only_where_it_pays(sequence: Costs) -> None:
    """Where two steps of it take as long as two single ones, the event loop is better had back in between."""
    step = Costs((1,), (12e-3,), (12e-3,))
    scheduler = Scheduler(step, batch_rows_max=64, call_seconds_max=0.01, sequence=sequence)
    scheduler.add(Feed(0, [0] * 100, Answer(Want.NONE), lambda feed, progress: None, 0.0))
    batch = scheduler.next_batch()
    assert batch is not None
    assert (batch.steps, batch.sequence_steps) == (1, 0)


def test_a_table_prints_itself() -> None:
    """The log has it."""
    assert str(SEQUENCE) == "1: 159+19, 8: 216+85, 64: 770+770"
