"""Who steps next: every feed one token at a time, bounded by what a call may cost."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from cellstream.engine import Answer, Feed, Sampling, Want
from cellstream.engine.costs import Costs
from cellstream.engine.scheduler import STEPS_MAX, Scheduler

FLAT = Costs(rows=(1,), first=(0.001,), further=(0.001,))
"""One millisecond a row."""


def _feed_of(slot: int, tokens: int = 1, applied: int = 0, **more: object) -> Feed:
    return Feed(slot, [0] * tokens, Answer(want=Want.NONE), lambda feed, progress: None, 0.0, applied, **more)  # type: ignore[arg-type]


def _scheduler_of(*feeds: Feed, costs: Costs = FLAT, rows: int = 4, seconds: float = 1.0) -> Scheduler:
    scheduler = Scheduler(costs, batch_rows_max=rows, call_seconds_max=seconds)
    for feed in feeds:
        scheduler.add(feed)
    return scheduler


def _taken(scheduler: Scheduler) -> tuple[list[int], int]:
    batch = scheduler.next_batch()
    assert batch is not None
    return [feed.slot for feed in batch.feeds], batch.steps


def test_nothing_waits_no_batch() -> None:
    """An idle engine has to know it, or its owner would turn for ever."""
    assert _scheduler_of().next_batch() is None


def test_every_feed_that_waits_steps_oldest_first() -> None:
    """Continuous batching: nobody waits for a batch to fill or to end."""
    scheduler = _scheduler_of(_feed_of(2), _feed_of(0), _feed_of(1))
    assert _taken(scheduler) == ([2, 0, 1], 1)


def test_feeds_that_did_not_fit_come_first_next_time() -> None:
    """With more sessions than rows, a session with much to say must not starve the others."""
    feeds = [_feed_of(slot, tokens=100) for slot in range(6)]
    scheduler = _scheduler_of(*feeds)
    assert [_taken(scheduler)[0] for _ in range(3)] == [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]]


def test_a_call_runs_as_many_steps_as_every_row_has_tokens() -> None:
    """Several steps a call save its fixed cost; no row may need a token that it does not have."""
    scheduler = _scheduler_of(_feed_of(0, tokens=7), _feed_of(1, tokens=9, applied=4))
    assert _taken(scheduler) == ([0, 1], 5)


def test_a_call_keeps_to_its_time() -> None:
    """Health checks and metrics answer between two calls: rows and steps both count."""
    long = [_feed_of(slot, tokens=100) for slot in range(4)]
    assert _taken(_scheduler_of(*long, seconds=0.0201))[1] == 5  # 4 rows cost 4 ms a step
    assert _taken(_scheduler_of(long[0], seconds=0.0201))[1] == 20
    assert _taken(_scheduler_of(*long, seconds=0.0021)) == ([0, 1], 1)


def test_a_step_that_alone_exceeds_the_target_still_runs() -> None:
    """A heavy model on a slow machine is slow, not dead."""
    assert _taken(_scheduler_of(_feed_of(0, tokens=3), _feed_of(1), seconds=1e-6)) == ([0], 1)


def test_steps_have_a_bound_where_they_cost_nothing() -> None:
    """A clock that stands still, as in tests, must not let one feed run to its end in one call."""
    free = Costs(rows=(1,), first=(1e-9,), further=(1e-9,))
    assert _taken(_scheduler_of(_feed_of(0, tokens=10_000), costs=free))[1] == STEPS_MAX


@pytest.mark.parametrize(("want", "steps"), [(Want.EVERY_STEP, 1), (Want.LAST, 9), (Want.NONE, 9)])
def test_states_of_every_step_take_calls_of_one_step(want: Want, steps: int) -> None:
    """The graph gives the states after its last step only."""
    feed = _feed_of(0, tokens=9)
    feed.answer = Answer(want=want, states=True)
    assert _taken(_scheduler_of(feed, _feed_of(1, tokens=9)))[1] == steps


def test_a_feed_that_samples_has_one_token_waiting_after_its_prompt() -> None:
    """The next token is not known before the last one was absorbed."""
    sampling = Sampling(max_tokens=5, temperature=1.0, top_k=0, top_p=1.0, seed=0)
    prompt = _feed_of(0, tokens=4, sampling=sampling)
    assert _taken(_scheduler_of(prompt, _feed_of(1, tokens=9)))[1] == 4
    prompt.applied = 4
    assert _taken(_scheduler_of(prompt, _feed_of(1, tokens=9)))[1] == 1


def test_a_feed_that_was_removed_is_not_taken() -> None:
    """Withdrawn, its slot may belong to someone else."""
    first, second = _feed_of(0), _feed_of(1)
    scheduler = _scheduler_of(first, second)
    assert scheduler.remove(first)
    assert not scheduler.remove(first)
    assert _taken(scheduler)[0] == [1]


def test_removing_a_feed_leaves_another_of_its_slot() -> None:
    """A late withdrawal by the old writer must not take out the new writer's feed."""
    old, new = _feed_of(0), _feed_of(0)
    scheduler = _scheduler_of(new)
    assert not scheduler.remove(old)
    assert _taken(scheduler)[0] == [0]


@given(rows=st.integers(1, 2000))
def test_costs_are_straight_lines_between_measurements(rows: int) -> None:
    """Against numpy's interpolation, and in proportion beyond the table; a call's steps are a line too."""
    costs = Costs((1, 8, 64, 512), (59e-6, 99e-6, 500e-6, 4023e-6), (47e-6, 87e-6, 488e-6, 4000e-6))
    first, further = (
        np.interp(rows, costs.rows, column) if rows <= 512 else column[-1] * rows / 512
        for column in (costs.first, costs.further)
    )
    assert costs.call_seconds(rows, 1) == pytest.approx(first)
    assert costs.call_seconds(rows, 11) == pytest.approx(first + 10 * further)
    for seconds in (0.0001, 0.001, 0.1):
        steps = costs.steps_within(rows, seconds)
        assert steps == 0 or costs.call_seconds(rows, steps) <= seconds * (1 + 1e-9)
        assert costs.call_seconds(rows, steps + 1) > seconds * (1 - 1e-9)


@given(
    tokens=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    rows=st.integers(1, 5),
    milliseconds=st.integers(1, 20),
)
def test_all_feeds_end_within_the_fewest_rounds(tokens: list[int], rows: int, milliseconds: int) -> None:
    """Run to the end, every feed gets exactly its tokens, and none is passed over while another goes on."""
    feeds = [_feed_of(slot, tokens=count) for slot, count in enumerate(tokens)]
    scheduler = _scheduler_of(*feeds, rows=rows, seconds=milliseconds / 1000)
    waited = dict.fromkeys(range(len(feeds)), 0)
    while batch := scheduler.next_batch():
        assert len(batch.feeds) <= rows
        for feed in batch.feeds:
            waited[feed.slot] = 0
            feed.applied += batch.steps
            assert feed.applied <= len(feed.inputs)
            if feed.applied == len(feed.inputs):
                scheduler.remove(feed)
        for slot in scheduler.waiting:
            waited[slot] += 1
            assert waited[slot] <= -(-len(feeds) // scheduler.rows_max)
    assert [feed.applied for feed in feeds] == tokens


def test_same_calls_same_batches() -> None:
    """Nothing but the calls decides: no clock, no random order."""

    def run(scheduler_maker: Callable[[], Scheduler]) -> list[tuple[list[int], int]]:
        scheduler = scheduler_maker()
        return [_taken(scheduler) for _ in range(5)]

    def make() -> Scheduler:
        return _scheduler_of(*(_feed_of(slot, tokens=50 + slot) for slot in (3, 1, 4, 5, 9, 2, 6)))

    assert run(make) == run(make)
