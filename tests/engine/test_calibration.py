"""What is learned of a graph at load, and what the engine makes of a graph with a flaw."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from cellstream.engine import Answer, Engine, Want
from cellstream.engine.calibration import SelfCheck, measure_costs, measure_telling, self_check
from cellstream.engine.costs import Costs, Telling
from cellstream.engine.graph import Buffers, Graph, RowByRow
from cellstream.repository import ModelVersion


def _graph(version: ModelVersion) -> Graph:
    return Graph(version.manifest, version.step_graph, version.head_graph)


def _check(version: ModelVersion) -> SelfCheck:
    return self_check(_graph(version), version.manifest, 16)


@pytest.mark.parametrize("kind", ["tokens", "values"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_our_graphs_depend_on_nothing_but_their_rows(cell: str, kind: str, make_model: Any) -> None:
    """The promise that a session gets what it would get alone rests on this, on this machine."""
    found = _check(make_model(cell, kind).version)
    assert found.rows_independent
    assert found.steps_independent


def test_the_digest_names_the_numbers(make_model: Any, make_engine: Any) -> None:
    """The same weights, the same digest, whatever the settings; other weights, another."""
    version = make_model().version
    digests = {_check(version).numerics_digest, _check(version).numerics_digest}
    digests |= {
        make_engine(version, batch_rows_max=rows, slots_max=3).numerics_digest for rows in (1, 7, 100)
    }
    assert len(digests) == 1
    assert _check(make_model(poisoned=True).version).numerics_digest not in digests
    assert _check(make_model("gru").version).numerics_digest not in digests


@pytest.mark.parametrize(
    ("flaw", "rows_independent", "steps_independent"),
    [(None, True, True), ("batch", False, True), ("cuts", True, False)],
)
def test_flaws_are_found(
    flaw: str | None, rows_independent: bool, steps_independent: bool, make_graph_version: Any
) -> None:
    """An int8 model depends on its batch, and a CPU we have not seen may: it has to be noticed at load."""
    found = _check(make_graph_version(flaw))
    assert found.rows_independent is rows_independent
    assert found.steps_independent is steps_independent


@pytest.mark.parametrize("flaw", ["batch", "cuts"])
def test_a_session_gets_what_it_gets_alone_from_a_graph_with_a_flaw(
    flaw: str, make_graph_version: Any, make_engine: Any, feed_of: Any
) -> None:
    """`exact` serves it row by row, or step by step, and says so: slower, and right."""
    engine = make_engine(make_graph_version(flaw))
    assert engine.row_by_row is (flaw == "batch")
    heard = []
    for row in range(3):
        frames = np.arange(1, 8, dtype=np.float32)[:, np.newaxis] * 4 * (row + 1)
        feed, waiter = feed_of(
            engine.take_slot(), frames, Answer(Want.EVERY_STEP, 0, log_probabilities=True, states=False)
        )
        engine.submit(feed)
        heard.append(waiter)
    while engine.turn() is not None:
        engine.check_integrity()
    for row, waiter in enumerate(heard):
        found = np.concatenate([progress.outputs["prediction"] for progress in waiter.progress])
        assert found.tolist() == [[step * (row + 1)] for step in range(1, 8)]


def _costs(
    version: ModelVersion, first: float, further: float, row: float = 0.0, *, call_seconds_max: float
) -> Costs:
    """What is measured of a graph on a machine where a call takes what is said here, and the clock nothing.

    Args:
        version: Whose graph runs.
        first: Seconds of a call of one step.
        further: Of each further one.
        row: How much of both each further row adds.
        call_seconds_max: What a call may take.
    """
    graph, now = _graph(version), [0.0]
    run = graph.run

    def timed(buffers: Buffers) -> None:
        run(buffers)
        now[0] += (first + (buffers.steps - 1) * further) * (1 + row * (buffers.rows - 1))

    graph.run = timed  # type: ignore[method-assign]
    return measure_costs(
        graph,
        version.manifest,
        batch_rows_max=100,
        call_seconds_max=call_seconds_max,
        clock=lambda: now[0],
    )


@pytest.mark.parametrize(
    ("call_seconds_max", "rows"), [(0.0005, (1,)), (0.0011, (1, 8)), (0.1, (1, 8, 64, 100))]
)
def test_costs_are_measured_up_to_the_first_that_takes_too_long(
    call_seconds_max: float, rows: tuple[int, ...], make_model: Any
) -> None:
    """A heavy model must not spend its start on batches that it will never run."""
    costs = _costs(make_model().version, 1e-3, 0.9e-3, row=0.1, call_seconds_max=call_seconds_max)
    assert costs.rows == rows
    assert costs.first == pytest.approx([1e-3 * (1 + 0.1 * (each - 1)) for each in rows])
    # More than one step of eight rows is never run where that one takes too long: so it is not timed either.
    further = [0.9e-3 * (1 + 0.1 * (each - 1)) for each in rows]
    assert costs.further == pytest.approx(further if len(rows) != 2 else [further[0], costs.first[1]])


def test_a_further_step_is_timed_however_heavy_the_model(make_model: Any) -> None:
    """It is what makes the sequence graph the cheaper one, and it was taken to cost what the first does."""
    costs = _costs(make_model().version, 13e-3, 7e-3, call_seconds_max=0.01)
    assert (costs.first, costs.further) == (pytest.approx((13e-3,)), pytest.approx((7e-3,)))


def test_a_further_step_never_costs_more_than_a_call_of_one(make_model: Any) -> None:
    """Only noise says so: whoever ran the one step again and again would be faster."""
    costs = _costs(make_model().version, 1e-3, 3e-3, call_seconds_max=0.01)
    assert costs.further == costs.first == pytest.approx([1e-3] * 4)


def test_a_machine_that_is_busy_while_a_model_loads_is_not_in_its_costs(
    make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table stays: so it holds what the thread itself ran for, here 7 s whenever it is asked.

    Of several threads only a clock on the wall knows how long they take; and one moved by hand is obeyed.
    """
    ticks = itertools.count()
    monkeypatch.setattr("time.thread_time", lambda: 7.0 * next(ticks))

    def first_of(threads: int = 1, **clock: Any) -> float:
        version = make_model().version
        sizes: Any = {"slots_max": 1, "batch_rows_max": 1, "step_milliseconds_max": 10.0}
        return Engine(version, intra_op_threads=threads, **sizes, **clock).step_costs.first[0]

    assert first_of() == 7
    assert first_of(threads=2) < 7
    assert first_of(clock=lambda: 5.0) < 1e-6


def test_a_clock_that_stands_still_gives_costs(make_model: Any) -> None:
    """Tests of the whole service serve on a clock that they move."""
    version = make_model().version
    costs = measure_costs(
        _graph(version), version.manifest, batch_rows_max=4, call_seconds_max=0.01, clock=lambda: 5.0
    )
    assert costs.rows == (1, 4)
    assert all(seconds > 0 for seconds in costs.first + costs.further)


def test_telling_is_measured_by_the_number_of_tokens_told(make_model: Any) -> None:
    """A run takes a tick, of 8 feeds and as many steps as have 2¹⁸ log-probabilities; values have none."""
    ticks = itertools.count()
    telling = measure_telling(make_model().version.manifest, lambda: next(ticks) / 1000)
    steps = 2**18 // (8 * 11)
    assert telling.top_k == (1, 4, 11)  # Nobody can want more of eleven.
    assert telling.seconds == pytest.approx([0.001 / (8 * steps)] * 3)
    assert measure_telling(make_model(kind="values").version.manifest, lambda: 0.0) == Telling()


def test_row_by_row_is_the_same_graph(make_model: Any) -> None:
    """For a graph without a flaw, bit for bit: outputs, states, gates and head, of any rows and steps."""
    version = make_model().version
    graph = _graph(version)
    alone = RowByRow(version.manifest, _graph(version))
    random = np.random.default_rng(0)
    for rows, steps, gates in [(3, 1, True), (5, 4, False), (1, 2, True)]:
        tokens = random.integers(0, 11, (steps, rows))
        states = [random.normal(size=(rows, 2, 8)).astype(np.float32) for _ in range(2)]
        results = []
        for each in (graph, alone):
            buffers = each.buffers(rows, steps, gates)
            buffers.inputs[:] = tokens
            for bound, state in zip(buffers.states, states, strict=True):
                bound[:] = state
            each.run(buffers)
            results.append(
                [array.tobytes() for array in (buffers.results, *buffers.outputs, *buffers.states_next)]
                + [array.tobytes() for array in buffers.gates]
                + [each.head(states).tobytes()]
            )
        assert results[0] == results[1]
        assert len(buffers.gates) == (4 if gates else 0)
