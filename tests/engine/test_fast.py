"""`fast` numerics: the sequence graph serves where it is sound, and what it gives is right to 1e-5."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from cellstream.engine import Answer, Engine, Want
from cellstream.engine.graph import BoundGraph
from cellstream.engine.sequence import VALUE_MAX, SequenceGraph
from cellstream.errors import NonFinite, StepFailed

POISON, OUTSIDE = 9, 99  # As in conftest.
EVERY = Answer(Want.EVERY_STEP, top_k=0, log_probabilities=True)


def _run(engine: Engine) -> list[tuple[int, int]]:
    """Turns until nothing waits: the rows and steps of each call."""
    calls = []
    while (call := engine.turn()) is not None:
        engine.check_integrity()
        calls.append((call.rows, call.steps))
    return calls


def _close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["tokens", "values"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_rows_of_different_lengths_each_get_what_they_get_alone(
    cell: str, kind: str, make_model: Any, make_engine: Any, make_alone: Any, feed_of: Any
) -> None:
    """One call, padded; then what is left of the longest, alone."""
    version = make_model(cell, kind).version
    engine, alone = make_engine(version, numerics="fast"), make_alone(version)
    assert (engine.numerics, engine.why_exact) == ("fast", None)
    random = np.random.default_rng(0)
    feeds, heard = [], []
    for length in (7, 8, 8, 30):
        frames = random.normal(size=(length, 3)).astype(np.float32)
        inputs = random.integers(0, 9, length).tolist() if kind == "tokens" else frames
        feed, waiter = feed_of(engine.take_slot(), inputs, EVERY)
        engine.submit(feed)
        feeds.append(feed)
        heard.append(waiter)
    assert _run(engine) == [(4, 8), (1, 22)]
    for feed, waiter in zip(feeds, heard, strict=True):
        rows = feed.inputs if kind == "tokens" else map(tuple, feed.inputs.tolist())
        text = tuple(rows)
        steps = [alone.after(text[:end]) for end in range(1, len(text) + 1)]
        (found,) = (
            np.concatenate(arrays)
            for arrays in zip(*(progress.outputs.values() for progress in waiter.progress), strict=True)
        )
        _close(found, [step.output for step in steps])
        for array, expected in zip(
            engine._slab.rows(np.array([feed.slot])), steps[-1].states.values(), strict=True
        ):
            _close(array[0], expected)


def test_gates_come_from_the_step_graph(
    make_model: Any, make_engine: Any, make_alone: Any, feed_of: Any
) -> None:
    """Bit for bit, as ever: five steps a call."""
    version = make_model().version
    engine, alone = make_engine(version, numerics="fast"), make_alone(version)
    feed, heard = feed_of(engine.take_slot(), [1, 2, 3, 4, 5, 6, 7], Answer(Want.LAST, gates=True))
    engine.submit(feed)
    assert _run(engine) == [(1, 5), (1, 2)]
    for name, gate in alone.after((1, 2, 3, 4, 5, 6, 7)).gates.items():
        assert heard.only.gates[name][0].tobytes() == gate.tobytes()


@pytest.mark.parametrize(("bad", "error"), [(POISON, NonFinite), (OUTSIDE, StepFailed)])
@pytest.mark.parametrize("place", [0, 4, 11])
def test_a_bad_token_in_a_long_feed_fails_it_alone(
    bad: int, error: type, place: int, make_model: Any, make_engine: Any, make_alone: Any, feed_of: Any
) -> None:
    """ONNX Runtime's LSTM makes finite numbers of NaN: the token must be found all the same."""
    version = make_model(poisoned=True).version
    engine, alone = make_engine(version, numerics="fast"), make_alone(version)
    text = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4]
    slots = [engine.take_slot() for _ in range(2)]
    failing, failed = feed_of(slots[0], [*text[:place], bad, *text[place:]], Answer(Want.LAST))
    sound, heard = feed_of(slots[1], list(text), EVERY)
    engine.submit(failing)
    engine.submit(sound)
    _run(engine)
    assert failed.error is error
    assert engine.position(slots[0]) == failed.progress[-1].position == place
    found = np.concatenate([progress.outputs["log_probabilities"] for progress in heard.progress])
    _close(found, [alone.after(tuple(text[:end])).output for end in range(1, 13)])


def test_frames_that_may_overflow_go_to_the_step_graph(
    make_model: Any, make_engine: Any, make_alone: Any, feed_of: Any
) -> None:
    """There a sum of products that leaves the finite numbers is seen; and nobody beside it notices."""
    version = make_model("gru", "values").version
    engine, alone = make_engine(version, numerics="fast"), make_alone(version)
    frames = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    frames[9] = 2 * VALUE_MAX
    feed, heard = feed_of(engine.take_slot(), frames, EVERY)
    engine.submit(feed)
    _run(engine)
    text = tuple(map(tuple, frames.tolist()))
    found = np.concatenate([progress.outputs["prediction"] for progress in heard.progress])
    expected = np.stack([alone.after(text[:end]).output for end in range(1, 13)])
    assert found[:10].tobytes() == expected[:10].tobytes()  # The two after it ran on the sequence graph.
    _close(found, expected)


def test_results_that_are_not_finite_are_found_on_the_step_graph(
    make_model: Any, make_engine: Any, make_alone: Any, feed_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a graph gives: the step graph says whether there is such a token, and here there is none."""
    version = make_model().version
    engine, alone = make_engine(version, numerics="fast"), make_alone(version)
    run = engine._sequence.run

    def overflowing(buffers: Any) -> None:
        run(buffers)
        buffers.outputs[0][1, 0] = np.inf

    monkeypatch.setattr(engine._sequence, "run", overflowing)
    texts = [(1, 2, 3, 4, 5), (6, 7, 8, 1)]
    heard = []
    for text in texts:
        feed, waiter = feed_of(engine.take_slot(), list(text), Answer(Want.LAST, 0, log_probabilities=True))
        engine.submit(feed)
        heard.append(waiter)
    # Four of both by the step graph, as it would have without the other; then what is left of the first.
    assert _run(engine) == [(2, 4), (1, 1)]
    for text, waiter in zip(texts, heard, strict=True):
        _close(waiter.only.outputs["log_probabilities"][0], alone.after(text).output)


def test_a_sequence_graph_that_raises_is_told_of_once_and_the_step_graph_serves(
    make_model: Any, make_engine: Any, make_alone: Any, feed_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else notices: answers are right, and bit for bit at that. What is counted is what ran."""
    version = make_model().version
    engine, alone = make_engine(version, numerics="fast"), make_alone(version)

    def failing(buffers: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(engine._sequence, "run", failing)
    text = (1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4)
    heard = []
    for _ in range(2):
        feed, waiter = feed_of(engine.take_slot(), list(text), EVERY)
        engine.submit(feed)
        heard.append(waiter)
    with capture_logs() as entries:
        assert _run(engine) == [(2, 5), (2, 5), (2, 2)]
    (entry,) = entries
    assert str(entry.pop("exc_info")) == "no memory"
    assert entry == {"event": "sequence_failed", "log_level": "warning", "model": "tiny", "version": "1"}
    expected = np.stack([alone.after(text[:end]).output for end in range(1, len(text) + 1)])
    for waiter in heard:
        found = np.concatenate([progress.outputs["log_probabilities"] for progress in waiter.progress])
        assert found.tobytes() == expected.tobytes()


def test_a_short_feed_waits_for_no_more_than_the_call_that_runs(
    make_model: Any, make_engine: Any, feed_of: Any
) -> None:
    """As in `exact`: and the call that takes it has one step."""
    engine = make_engine(make_model().version, numerics="fast")
    long, _ = feed_of(engine.take_slot(), [1] * 10_000, Answer(Want.NONE))
    engine.submit(long)
    slot = engine.take_slot()
    for _ in range(20):
        call = engine.turn()
        assert (call.rows, call.steps) == (1, 41)
        short, heard = feed_of(slot, [2])
        engine.submit(short)
        call = engine.turn()
        assert (call.rows, call.steps) == (2, 1)
        assert heard.only.done


def test_a_model_whose_single_step_takes_too_long_runs_on_it_too(
    make_model: Any, make_engine: Any, make_alone: Any, feed_of: Any
) -> None:
    """0.1 ms a step, and calls of 0.09: one of the sequence graph then takes 0.2 ms, six steps."""
    version = make_model().version
    engine = make_engine(version, numerics="fast", step_milliseconds_max=0.09)
    alone, text = make_alone(version), (1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5)
    feed, heard = feed_of(engine.take_slot(), list(text), EVERY)
    engine.submit(feed)
    assert _run(engine) == [(1, 6), (1, 6), (1, 1)]
    found = np.concatenate([progress.outputs["log_probabilities"] for progress in heard.progress])
    _close(found, [alone.after(text[:end]).output for end in range(1, len(text) + 1)])


def test_digests_of_exact_and_fast_differ(make_model: Any, make_engine: Any) -> None:
    """Their answers do, in the last bits."""
    version = make_model().version
    exact, fast = (make_engine(version, numerics=numerics) for numerics in ("exact", "fast"))
    assert exact.numerics_digest != fast.numerics_digest
    assert fast.numerics_digest == make_engine(version, numerics="fast").numerics_digest
    assert exact.sequence_costs is None
    assert fast.sequence_costs is not None


def test_a_version_without_a_sequence_graph_is_served_exact(
    make_graph_version: Any, make_engine: Any
) -> None:
    """And says so: an older export still loads."""
    version = make_graph_version()
    engine = make_engine(version, numerics="fast")
    assert engine.numerics == "exact"
    assert engine.why_exact is not None
    assert "no sequence graph; `cellstream export`" in engine.why_exact
    assert engine.numerics_digest == make_engine(version).numerics_digest


@pytest.mark.parametrize(
    ("flaw", "why"),
    [("numbers", "further than 1e-05"), ("batch", "further than 1e-05"), ("raises", "fails")],
)
def test_a_sequence_graph_with_a_flaw_does_not_serve(
    flaw: str, why: str, make_model: Any, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other weights (those of an 8-bit step graph), of a batch that leaks, or broken: found at load."""
    whole = BoundGraph.run

    def flawed(self: Any, buffers: Any) -> None:
        whole(self, buffers)
        if isinstance(self, SequenceGraph):
            if flaw == "raises":
                raise RuntimeError
            if flaw == "numbers":
                buffers.outputs[0][:] += 1e-4
            if flaw == "batch" and buffers.rows > 1:
                buffers.states_next[0][:] += buffers.inputs.mean() / 1000

    monkeypatch.setattr(BoundGraph, "run", flawed)
    engine = make_engine(make_model().version, numerics="fast")
    assert engine.numerics == "exact"
    assert why in engine.why_exact
