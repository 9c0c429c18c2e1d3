"""What feeds are told, and that each gets what it would get alone, bit for bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from cellstream.engine import Answer, Engine, Feed, Progress, Sampling, Want
from cellstream.engine.costs import Telling
from cellstream.errors import InternalError, NonFinite, StepFailed, TooManySessions

POISON, OUTSIDE = 9, 99  # As in conftest: a token of NaN, and one that the graph raises on.
EVERYTHING = Answer(
    want=Want.EVERY_STEP, top_k=3, log_probabilities=True, score=True, states=True, gates=True
)


def _run(engine: Engine) -> int:
    """Turns until nothing waits; how many calls that took."""
    calls = 0
    while engine.turn() is not None:
        engine.check_integrity()
        calls += 1
    return calls


def _bits(array: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return array.shape, array.tobytes()


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_every_step_answers_what_it_does_alone(
    cell: str, make_model: Any, make_engine: Any, make_alone: Any, feed_of: Any
) -> None:
    """Sessions of different lengths side by side, each with all that can be asked for, every cell."""
    version = make_model(cell).version
    engine, alone = make_engine(version), make_alone(version)
    texts = [(1, 2, 3, 4, 5), (6,), (7, 7, 8)]
    heard = []
    for text in texts:
        feed, waiter = feed_of(engine.take_slot(), list(text), EVERYTHING)
        engine.submit(feed)
        heard.append(waiter)
    assert _run(engine) == 5  # States of every step: one step a call.
    for text, waiter in zip(texts, heard, strict=True):
        assert [progress.position for progress in waiter.progress] == list(range(1, len(text) + 1))
        assert [progress.done for progress in waiter.progress] == [False] * (len(text) - 1) + [True]
        for end, progress in enumerate(waiter.progress, start=1):
            step = alone.after(text[:end])
            best = np.argsort(-step.output, kind="stable")[:3]
            assert progress.steps == 1
            assert progress.top_ids == best.tolist()
            assert progress.top_log_probabilities == step.output[best].tolist()
            assert _bits(progress.outputs["log_probabilities"]) == _bits(step.output[np.newaxis])
            assert {name: _bits(array) for name, array in progress.states.items()} == {
                name: _bits(array[np.newaxis]) for name, array in step.states.items()
            }
            assert {name: _bits(array) for name, array in progress.gates.items()} == {
                name: _bits(array[np.newaxis]) for name, array in step.gates.items()
            }
            (score,) = progress.scores
            if end == 1:
                assert math.isnan(score)  # Nothing came before a session's very first token.
            else:
                assert score == alone.after(text[: end - 1]).output[text[end - 1]]


def test_results_are_those_of_torch(make_model: Any, make_engine: Any, feed_of: Any) -> None:
    """torch.nn.LSTM with the same weights, to 1e-5: our equations in ONNX are the ones that were trained."""
    model = make_model("lstm")
    engine, weights = make_engine(model.version), model.weights
    lstm = torch.nn.LSTM(5, 8, num_layers=2)
    with torch.no_grad():
        for layer in range(2):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(lstm, f"{name}_l{layer}").copy_(torch.from_numpy(weights[f"layers.{layer}.{name}"]))
        tokens = [3, 1, 4, 1, 5, 9, 2, 6]
        above, (hidden, cell) = lstm(torch.from_numpy(weights["embedding.weight"][tokens]))
        logits = above @ torch.from_numpy(weights["head.weight"]).T + torch.from_numpy(weights["head.bias"])
        expected = torch.log_softmax(logits, dim=-1).numpy()
    slot = engine.take_slot()
    first, heard = feed_of(slot, tokens[:5], Answer(Want.EVERY_STEP, log_probabilities=True))
    engine.submit(first)
    _run(engine)
    second, heard_second = feed_of(slot, tokens[5:], Answer(Want.LAST, log_probabilities=True, states=True))
    engine.submit(second)
    _run(engine)
    found = np.concatenate([progress.outputs["log_probabilities"] for progress in heard.progress])
    np.testing.assert_allclose(found, expected[:5], atol=1e-5)
    last = heard_second.only
    np.testing.assert_allclose(last.outputs["log_probabilities"], expected[-1:], atol=1e-5)
    np.testing.assert_allclose(last.states["hidden"][0], hidden.numpy(), atol=1e-5)
    np.testing.assert_allclose(last.states["cell"][0], cell.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("want", "steps", "positions"),
    [
        (Want.EVERY_STEP, [5, 5, 2], [5, 10, 12]),
        (Want.LAST, [1], [12]),
        (Want.NONE, [0], [12]),
    ],
)
def test_want_says_which_steps_answer(
    want: Want, steps: list[int], positions: list[int], make_model: Any, make_engine: Any, feed_of: Any
) -> None:
    """Calls that neither answer nor end a feed tell it nothing."""
    engine = make_engine(make_model().version)
    feed, heard = feed_of(engine.take_slot(), [1] * 12, Answer(want, top_k=2, gates=True))
    engine.submit(feed)
    assert _run(engine) == 3
    assert [progress.steps for progress in heard.progress] == steps
    assert [progress.position for progress in heard.progress] == positions
    assert [progress.done for progress in heard.progress] == [False] * (len(steps) - 1) + [True]
    assert [len(progress.top_ids) for progress in heard.progress] == [2 * count for count in steps]
    for progress in heard.progress:
        if progress.steps:
            assert progress.gates["forget"].shape == (progress.steps, 2, 8)
            assert progress.scores is progress.outputs is progress.states is None


def test_different_answers_share_a_batch(
    make_model: Any, make_engine: Any, make_alone: Any, feed_of: Any
) -> None:
    """Each row gets its own number of candidates for its own steps, whatever the row beside it asked for."""
    version = make_model().version
    engine, alone = make_engine(version), make_alone(version)
    asked = [(Want.EVERY_STEP, 2), (Want.LAST, 11), (Want.NONE, 5), (Want.LAST, 0), (Want.EVERY_STEP, 1)]
    heard = []
    for want, top_k in asked:
        feed, waiter = feed_of(engine.take_slot(), [1, 2, 3], Answer(want, top_k))
        engine.submit(feed)
        heard.append(waiter)
    assert _run(engine) == 1
    for (want, top_k), waiter in zip(asked, heard, strict=True):
        ends = {Want.EVERY_STEP: (1, 2, 3), Want.LAST: (3,), Want.NONE: ()}[want]
        outputs = [alone.after((1, 2, 3)[:end]).output for end in ends]
        best = [np.argsort(-output, kind="stable")[:top_k] for output in outputs]
        assert waiter.only.top_ids == [token for ids in best for token in ids.tolist()]
        assert waiter.only.top_log_probabilities == [
            value for output, ids in zip(outputs, best, strict=True) for value in output[ids].tolist()
        ]


@pytest.mark.parametrize("cuts", [(12,), (1,) * 12, (5, 1, 4, 2)])
def test_scores_are_those_of_a_plain_loop_however_feeds_are_cut(
    cuts: tuple[int, ...], make_model: Any, make_engine: Any, make_alone: Any, feed_of: Any
) -> None:
    """A log line's surprise must not depend on how the client cut it into messages."""
    version = make_model().version
    engine, alone = make_engine(version), make_alone(version)
    text = (1, 5, 2, 8, 10, 3, 3, 7, 0, 4, 6, 2)
    expected = [alone.after(text[:end]).output[text[end]].item() for end in range(1, len(text))]
    slot, scores, start = engine.take_slot(), [], 0
    for size in cuts:
        feed, heard = feed_of(slot, list(text[start : start + size]), Answer(Want.EVERY_STEP, 0, score=True))
        engine.submit(feed)
        _run(engine)
        scores += [score for progress in heard.progress for score in progress.scores]
        start += size
    assert math.isnan(scores[0])
    assert scores[1:] == expected


@pytest.mark.parametrize("size", [1, 2, 5, 6, 11])
def test_a_last_answer_scores_the_last_token(
    size: int, make_model: Any, make_engine: Any, make_alone: Any, feed_of: Any
) -> None:
    """One answering step, one score: of a feed of one token, of one call, and of a last call of one step."""
    version = make_model().version
    engine, alone = make_engine(version), make_alone(version)
    text = (1, 5, 2, 8, 10, 3, 3, 7, 0, 4, 6, 2)
    slot = engine.take_slot()
    for start, end in ((0, 1), (1, 1 + size)):
        feed, heard = feed_of(slot, list(text[start:end]), Answer(Want.LAST, 0, score=True))
        engine.submit(feed)
        _run(engine)
    assert heard.only.scores == [alone.after(text[:size]).output[text[size]]]


def test_values_answer_with_the_next_frame(
    make_model: Any, make_engine: Any, make_alone: Any, feed_of: Any
) -> None:
    """Meters and sensors: frames in, whole predictions out, over several calls."""
    version = make_model("gru", "values").version
    engine, alone = make_engine(version), make_alone(version)
    frames = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)
    feed, heard = feed_of(engine.take_slot(), frames, Answer(Want.EVERY_STEP, 0, log_probabilities=True))
    engine.submit(feed)
    assert _run(engine) == 2
    found = np.concatenate([progress.outputs["prediction"] for progress in heard.progress])
    rows = tuple(map(tuple, frames.tolist()))
    expected = np.stack([alone.after(rows[:end]).output for end in range(1, 8)])
    assert _bits(found) == _bits(expected)


# ---------------------------------------------------------------- making tokens


def _sampled_alone(alone: Any, prompt: tuple[int, ...], sampling: Sampling) -> list[int]:
    """Made tokens by a plain loop: greedy, or a draw among all at a temperature."""
    text = prompt
    for _ in range(sampling.max_tokens):
        row = alone.after(text).output.astype(np.float64)
        if sampling.temperature == 0:
            text += (int(row.argmax()),)
            continue
        sums = np.cumsum(np.exp((row - row.max()) / sampling.temperature))
        mask, z = 2**64 - 1, (sampling.seed + (len(text) + 1) * 0x9E3779B97F4A7C15) & (2**64 - 1)
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        uniform = ((z ^ (z >> 31)) >> 11) / 2**53
        text += (int(np.searchsorted(sums, uniform * sums[-1], side="right")),)
    return list(text[len(prompt) :])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("parts", [((1, 2, 3, 4, 5, 6, 7),), ((1, 2, 3), ()), ((1,), (2, 3))])
def test_made_tokens_are_those_of_a_plain_loop(
    temperature: float,
    parts: tuple[tuple[int, ...], ...],
    make_model: Any,
    make_engine: Any,
    make_alone: Any,
    feed_of: Any,
) -> None:
    """With a prompt, after an earlier feed, and from the stored state alone, beside a busy session."""
    version = make_model().version
    engine, alone = make_engine(version), make_alone(version)
    sampling = Sampling(max_tokens=6, temperature=temperature, top_k=0, top_p=1.0, seed=77)
    other, _ = feed_of(engine.take_slot(), [4] * 40, Answer(Want.EVERY_STEP))
    engine.submit(other)
    slot = engine.take_slot()
    for part in parts[:-1]:
        engine.submit(feed_of(slot, list(part), Answer(Want.NONE))[0])
        while slot in engine._scheduler.waiting:
            engine.turn()
    feed, heard = feed_of(slot, list(parts[-1]), Answer(Want.NONE), sampling=sampling)
    engine.submit(feed)
    _run(engine)
    prompt = tuple(token for part in parts for token in part)
    made = _sampled_alone(alone, prompt, sampling)
    assert [progress.made for progress in heard.progress] == [[token] for token in made]
    # Every token that is told has been absorbed.
    assert [progress.position for progress in heard.progress] == [len(prompt) + n for n in range(1, 7)]
    assert [progress.done for progress in heard.progress] == [False] * 5 + [True]
    assert feed.inputs == [*parts[-1], *made]
    assert feed.made == 6
    assert engine.position(slot) == len(prompt) + 6


def test_a_feed_that_samples_answers_too(
    make_model: Any, make_engine: Any, make_alone: Any, feed_of: Any
) -> None:
    """Scores and candidates of prompt and made tokens alike, bit for bit those of feeding the whole text."""
    version = make_model().version
    engine, alone = make_engine(version), make_alone(version)
    sampling = Sampling(max_tokens=4, temperature=1.0, top_k=0, top_p=1.0, seed=5)
    feed, heard = feed_of(
        engine.take_slot(), [1, 2, 3], Answer(Want.EVERY_STEP, 1, score=True), sampling=sampling
    )
    engine.submit(feed)
    _run(engine)
    text = (1, 2, 3, *_sampled_alone(alone, (1, 2, 3), sampling))
    scores = [score for progress in heard.progress for score in progress.scores]
    tops = [token for progress in heard.progress for token in progress.top_ids]
    assert scores[1:] == [alone.after(text[:end]).output[text[end]] for end in range(1, 7)]
    assert tops == [int(alone.after(text[:end]).output.argmax()) for end in range(1, 8)]


def test_a_feed_ends_when_its_waiter_has_enough(make_model: Any, make_engine: Any) -> None:
    """A stop text was found: no further token is drawn, and the session may be fed at once."""
    engine = make_engine(make_model().version)
    slot, told, after = engine.take_slot(), [], []

    def stop(feed: Feed, progress: Progress) -> None:
        told.append(progress.made)
        if len(told) == 3:
            feed.finished = True
            engine.submit(Feed(slot, [1], Answer(), lambda feed, progress: after.append(progress), 0.0))

    sampling = Sampling(max_tokens=100, temperature=1.0, top_k=0, top_p=1.0, seed=1)
    engine.submit(Feed(slot, [2], Answer(Want.NONE), stop, 0.0, sampling=sampling))
    _run(engine)
    assert len(told) == 3
    assert [progress.position for progress in after] == [1 + 3 + 1]
    assert engine.waiting == 0


def test_a_finished_feed_no_longer_holds_its_slot(make_model: Any, make_engine: Any) -> None:
    """Its waiter may end the session at once."""
    engine = make_engine(make_model().version)
    slot = engine.take_slot()

    def stop(feed: Feed, progress: Progress) -> None:
        feed.finished = True
        engine.reset(slot)
        engine.give_back(slot)

    sampling = Sampling(max_tokens=100, temperature=1.0, top_k=0, top_p=1.0, seed=1)
    engine.submit(Feed(slot, [2], Answer(Want.NONE), stop, 0.0, sampling=sampling))
    _run(engine)
    assert (engine.waiting, engine.slots_taken) == (0, 0)


# ---------------------------------------------------------------- what fails


@pytest.mark.parametrize(("bad", "error"), [(POISON, NonFinite), (OUTSIDE, StepFailed)])
@pytest.mark.parametrize("want", [Want.EVERY_STEP, Want.LAST])
@pytest.mark.parametrize("place", range(6))
def test_a_bad_token_fails_its_feed_alone(
    bad: int,
    error: type,
    want: Want,
    place: int,
    make_model: Any,
    make_engine: Any,
    make_alone: Any,
    feed_of: Any,
) -> None:
    """What comes before it is committed and answered, it is not, and the rows beside it never notice."""
    version = make_model(poisoned=True).version
    engine, alone = make_engine(version), make_alone(version)
    good, text = (1, 2, 3, 4, 5, 6, 7), [8, 7, 6, 5, 4, 3]
    text[place] = bad
    slot = engine.take_slot()
    neighbours = []
    for _ in range(2):
        feed, waiter = feed_of(engine.take_slot(), list(good), Answer(Want.EVERY_STEP, 1, score=True))
        engine.submit(feed)
        neighbours.append(waiter)
    failing, heard = feed_of(slot, text, Answer(want, 1, score=True))
    engine.submit(failing)
    _run(engine)
    assert heard.error is error
    assert engine.position(slot) == heard.progress[-1].position == failing.applied == place
    answered = sum(progress.steps for progress in heard.progress)
    assert answered == (place if want is Want.EVERY_STEP else 0)
    for waiter in neighbours:
        assert waiter.error is None
        tops = [token for progress in waiter.progress for token in progress.top_ids]
        assert tops == [int(alone.after(good[:end]).output.argmax()) for end in range(1, 8)]
        scores = [score for progress in waiter.progress for score in progress.scores]
        assert scores[1:] == [alone.after(good[:end]).output[good[end]] for end in range(1, 7)]
    # The session stands where it stood before the bad token, and goes on from there.
    again, heard = feed_of(slot, [1], Answer(Want.LAST, 0, log_probabilities=True, states=True))
    engine.submit(again)
    _run(engine)
    expected = alone.after((*text[:place], 1))
    assert _bits(heard.only.outputs["log_probabilities"][0]) == _bits(expected.output)
    for name, array in heard.only.states.items():
        assert _bits(array[0]) == _bits(expected.states[name])


def test_a_score_survives_the_failure_of_another_row(
    make_model: Any, make_engine: Any, make_alone: Any, feed_of: Any
) -> None:
    """A call that raised is run again in smaller pieces: the last token's score needs a prediction more."""
    version = make_model(poisoned=True).version
    engine, alone = make_engine(version), make_alone(version)
    text = (1, 2, 3, 4)
    scoring, heard = feed_of(engine.take_slot(), list(text), Answer(Want.LAST, 0, score=True))
    failing, _ = feed_of(engine.take_slot(), [1, OUTSIDE, 1, 1])
    engine.submit(scoring)
    engine.submit(failing)
    _run(engine)
    assert heard.only.scores == [alone.after(text[:3]).output[4]]


def test_the_head_graph_fails_only_who_needs_it(
    make_model: Any, make_engine: Any, feed_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prediction before a feed cannot be had: whoever does not ask for it never notices."""
    engine = make_engine(make_model().version)
    slots = [engine.take_slot() for _ in range(2)]
    for slot in slots:
        engine.submit(feed_of(slot, [1, 2])[0])
    _run(engine)

    def broken(states: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr(engine._graph, "head", broken)
    scoring, failed = feed_of(slots[0], [3, 4], Answer(Want.EVERY_STEP, 0, score=True))
    plain, heard = feed_of(slots[1], [3, 4])
    engine.submit(scoring)
    engine.submit(plain)
    _run(engine)
    assert failed.error is StepFailed
    assert engine.position(slots[0]) == 2
    assert heard.only.position == 4
    engine.check_integrity()


def test_values_that_overflow_fail_alone(make_graph_version: Any, make_engine: Any, feed_of: Any) -> None:
    """Finite frames, which the api takes, and finite predictions; but the state would be lost for good."""
    engine = make_engine(make_graph_version())
    answer = Answer(Want.EVERY_STEP, 0, log_probabilities=True)
    failing, heard = feed_of(engine.take_slot(), np.array([[1], [2], [3e38]], np.float32), answer)
    neighbour, heard_beside = feed_of(engine.take_slot(), np.array([[4], [8], [12]], np.float32), answer)
    engine.submit(failing)
    engine.submit(neighbour)
    _run(engine)
    assert heard.error is NonFinite
    assert [progress.position for progress in heard.progress] == [1, 2, 2]
    assert [progress.outputs["prediction"].item() for progress in heard.progress[:2]] == [0.25, 0.5]
    assert heard_beside.only.outputs["prediction"].tolist() == [[1], [2], [3]]


def test_large_finite_numbers_are_not_mistaken_for_infinite_ones(
    make_graph_version: Any, make_engine: Any, feed_of: Any
) -> None:
    """The quick check squares; what it suspects is looked at again before a feed fails."""
    engine = make_engine(make_graph_version())
    frames = np.array([[1e37]], np.float32)
    feed, heard = feed_of(engine.take_slot(), frames, Answer(Want.LAST, 0, log_probabilities=True))
    engine.submit(feed)
    _run(engine)
    assert heard.error is None
    assert heard.only.outputs["prediction"] == frames / 4


def test_a_waiter_that_raises_stops_nothing(make_model: Any, make_engine: Any, feed_of: Any) -> None:
    """One cancelled future once stopped a whole engine for good."""
    errors: list[BaseException] = []
    engine = make_engine(make_model().version, on_waiter_error=errors.append)

    def broken(feed: Feed, progress: Progress) -> None:
        raise RuntimeError("nobody listens")

    heard = []
    for place in range(3):
        feed, waiter = feed_of(engine.take_slot(), [1, 2, 3])
        if place == 1:
            feed.on_progress = broken
        engine.submit(feed)
        heard.append(waiter)
    _run(engine)
    assert [str(error) for error in errors] == ["nobody listens"]
    assert heard[0].only.done
    assert heard[2].only.done
    assert engine.waiting == 0


def test_an_interruption_waits_until_everyone_is_told(
    make_model: Any, make_engine: Any, feed_of: Any
) -> None:
    """Ctrl-C inside a waiter ends the turn, and nobody whose tokens were committed goes without an answer."""
    errors: list[BaseException] = []
    engine = make_engine(make_model().version, on_waiter_error=errors.append)

    def interrupted(feed: Feed, progress: Progress) -> None:
        raise KeyboardInterrupt

    first, _ = feed_of(engine.take_slot(), [1])
    first.on_progress = interrupted
    second, heard = feed_of(engine.take_slot(), [1])
    engine.submit(first)
    engine.submit(second)
    with pytest.raises(KeyboardInterrupt):
        engine.turn()
    assert heard.only.done
    engine.check_integrity()


def test_a_mistake_of_our_own_fails_the_call_and_not_the_engine(
    make_model: Any, make_engine: Any, feed_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever raises while answers are made: every feed of the call is told, no state has changed."""
    engine = make_engine(make_model().version)
    slots = [engine.take_slot() for _ in range(3)]
    heard = []
    for slot in slots:
        feed, waiter = feed_of(slot, [1, 2])
        engine.submit(feed)
        heard.append(waiter)

    def broken(*arguments: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("cellstream.engine.engine.settle", broken)
        assert engine.turn() is not None
    assert [waiter.error for waiter in heard] == [InternalError] * 3
    assert [engine.position(slot) for slot in slots] == [0, 0, 0]
    engine.check_integrity()
    feed, waiter = feed_of(slots[0], [1, 2])
    engine.submit(feed)
    _run(engine)
    assert waiter.error is None


# ---------------------------------------------------------------- fairness, bookkeeping, and whose slot it is


def test_a_long_feed_holds_a_short_one_for_no_more_than_the_call_that_runs(
    make_model: Any, make_engine: Any, feed_of: Any
) -> None:
    """10,000 tokens take one row of each call: a feed that arrives meanwhile is done after the next call."""
    engine = make_engine(make_model().version)
    long, heard_long = feed_of(engine.take_slot(), [1] * 10_000, Answer(Want.NONE))
    engine.submit(long)
    slot = engine.take_slot()
    for _ in range(50):
        engine.turn()  # The call that runs while the short feed arrives.
        short, heard = feed_of(slot, [2])
        engine.submit(short)
        engine.turn()
        assert heard.only.done
    assert not heard_long.progress
    assert long.applied == engine.position(long.slot) == 50 * (5 + 1)


def test_a_call_says_what_it_did(make_model: Any, make_engine: Any, feed_of: Any) -> None:
    """Metrics are made of it: tokens committed, and how long feeds waited for their first."""
    clock = [100.0]
    version = make_model(poisoned=True).version
    engine = make_engine(version, clock=lambda: clock[0])
    assert engine.turn() is None
    assert engine.oldest_received_at is None
    for received_at, tokens in ((97.0, [1, 2, 3]), (99.0, [1, 2]), (98.0, [OUTSIDE, 1])):
        feed, _ = feed_of(engine.take_slot(), tokens)
        feed.received_at = received_at
        engine.submit(feed)
    assert engine.waiting == 3
    assert engine.oldest_received_at == 97.0
    call = engine.turn()
    assert (call.rows, call.steps, call.tokens) == (3, 2, 4)
    assert call.queue_seconds == [3.0, 1.0]
    assert call.seconds == 0.0
    assert engine.waiting == 1
    assert engine.oldest_received_at is None  # What waits has begun.
    call = engine.turn()
    assert (call.rows, call.steps, call.tokens, call.queue_seconds) == (1, 1, 1, [])


def test_what_is_told_of_every_step_is_part_of_a_calls_time(
    make_model: Any, make_engine: Any, feed_of: Any
) -> None:
    """0.1 ms a step and 0.05 of telling it: three steps in 0.55 ms, where five have nothing to tell."""
    engine = make_engine(make_model().version, telling=Telling((1,), (0.05e-3,)))
    for answer, steps in [(Answer(Want.EVERY_STEP, 1), 3), (Answer(Want.LAST, 1), 5)]:
        feed, _ = feed_of(engine.take_slot(), [1] * 9, answer)
        engine.submit(feed)
        assert engine.turn().steps == steps
        engine.withdraw(feed)


def test_a_withdrawn_feed_goes_on_where_it_stopped(
    make_model: Any, make_engine: Any, make_alone: Any, feed_of: Any
) -> None:
    """A slow reader's feed rests between two tokens, scores and drawn tokens included."""
    version = make_model().version
    engine, alone = make_engine(version), make_alone(version)
    sampling = Sampling(max_tokens=6, temperature=1.0, top_k=0, top_p=1.0, seed=3)
    slot = engine.take_slot()
    feed, heard = feed_of(
        slot, [1, 2, 3, 4, 5, 6, 7], Answer(Want.EVERY_STEP, 0, score=True), sampling=sampling
    )
    engine.submit(feed)
    turns = 0
    while engine.turn() is not None:
        turns += 1
        engine.withdraw(feed)
        engine.withdraw(feed)  # Nothing to withdraw: no harm.
        engine.check_integrity()
        assert engine.turn() is None
        if not heard.progress[-1].done:
            engine.submit(feed)
    assert turns == 2 + 6
    text = (1, 2, 3, 4, 5, 6, 7, *_sampled_alone(alone, (1, 2, 3, 4, 5, 6, 7), sampling))
    assert tuple(feed.inputs) == text
    scores = [score for progress in heard.progress for score in progress.scores]
    assert scores[1:] == [alone.after(text[:end]).output[text[end]] for end in range(1, len(text))]


def test_a_waiter_may_withdraw_a_feed_of_the_same_call(
    make_model: Any, make_engine: Any, feed_of: Any
) -> None:
    """A stream ends while its sessions' results are being told: the others are not stepped further."""
    engine = make_engine(make_model().version)
    feeds, heard = [], []
    for _ in range(3):
        feed, waiter = feed_of(engine.take_slot(), [1] * 9, Answer(Want.EVERY_STEP, 1))
        feeds.append(feed)
        heard.append(waiter)
        engine.submit(feed)

    def end_all(feed: Feed, progress: Progress) -> None:
        for other in feeds:
            engine.withdraw(other)
            engine.give_back(other.slot)

    feeds[0].on_progress = end_all
    _run(engine)
    assert (engine.waiting, engine.slots_taken) == (0, 0)
    assert [progress.position for progress in heard[2].progress] == [5]  # Committed, so it is told.


def test_slots_are_checked(make_model: Any, make_engine: Any, feed_of: Any) -> None:
    """Two writers of one slot, or a reset in the middle of a feed, are mistakes of ours: stop."""
    engine = make_engine(make_model().version, slots_max=1)
    slot = engine.take_slot()
    with pytest.raises(TooManySessions):
        engine.take_slot()
    feed, _ = feed_of(slot, [1, 2])
    engine.submit(feed)
    for mistake in (
        lambda: engine.submit(feed_of(slot, [1])[0]),
        lambda: engine.reset(slot),
        lambda: engine.give_back(slot),
    ):
        with pytest.raises(AssertionError, match="waiting"):
            mistake()
    engine.withdraw(feed)
    engine.give_back(slot)
    with pytest.raises(AssertionError, match="not taken"):
        engine.submit(feed)
    assert engine.take_slot() == slot
    with pytest.raises(AssertionError, match="no token"):
        engine.submit(feed_of(slot, [])[0])


def test_it_says_what_it_holds(make_model: Any, make_engine: Any, feed_of: Any) -> None:
    """Someone who prints an engine in a debugger sees its load."""
    engine = make_engine(make_model().version)
    engine.submit(feed_of(engine.take_slot(), [1])[0])
    assert repr(engine) == "<Engine tiny/1: 1 of 8 slots taken, 1 feeds waiting>"
