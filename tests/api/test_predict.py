"""Predict: what each field of its messages means, and that every answer is the one a lone session gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellstream.v1 import prediction_pb2 as pb

WHOLE = pb.Answer(want=pb.WANT_EVERY_STEP, top_k=0, log_probabilities=True)
"""Every step, bit for bit."""

TEXT = "To be, or not to be"


def sequence(oracle: Any, history: Any) -> np.ndarray:
    """The log-probabilities after each token of a history, alone."""
    return np.stack([step.log_probabilities for step in oracle.steps(list(history))[1:]])


@pytest.fixture
def lone(tiny: Path, alone: Any) -> Any:
    """The oracle of `tiny`."""
    return alone(tiny / "tiny" / "1")


async def test_a_whole_conversation(front: Any, lone: Any) -> None:
    """The one that the proto shows, word for word."""
    async with front.talk() as talk:
        await talk.say(opens=[pb.Open()], feeds=[pb.Feed(text="To be")])
        opened, result = await talk.hear(2)
        assert (opened.handle, opened.model, opened.version) == (0, "tiny", "1")
        assert (opened.position, opened.created) == (0, True)
        assert len(opened.session_id) >= 16, "an id that nobody guesses"
        assert not opened.HasField("previous")
        assert (result.position, result.done, result.predictions.steps) == (5, True, 1)
        await talk.say(feeds=[pb.Feed(text=", or not", position=5)])
        assert (await talk.next()).position == 13
        ended = await talk.end()
    assert ended.code.name == "OK"


async def test_top_k_is_five_best_first_unless_said(front: Any, lone: Any) -> None:
    """Absent: 5; 0: none; else as many; an independent sort finds the same ids and numbers."""
    expected = lone.after(list(b"To be")).log_probabilities
    order = np.argsort(-expected, kind="stable")
    async with front.talk() as talk:
        for handle, answer in enumerate((None, pb.Answer(top_k=0), pb.Answer(top_k=9), pb.Answer(top_k=256))):
            await talk.say(
                opens=[pb.Open(handle=handle)],
                feeds=[pb.Feed(handle=handle, id=handle, text="To be", answer=answer)],
            )
            found = (await talk.result(handle)).predictions
            count = (5, 0, 9, 256)[handle]
            assert (found.steps, found.top_k) == (1, count)
            assert list(found.top_ids) == order[:count].tolist()
            assert list(found.top_log_probabilities) == expected[order[:count]].tolist()


async def test_every_step_last_and_none(front: Any, lone: Any) -> None:
    """What the guide calls option 1 and option 2: take the prediction, or only pass the state on."""
    async with front.talk() as talk:
        await talk.open()
        every = await talk.feed(TEXT, id=1, answer=WHOLE)
        assert every.position == len(TEXT)
        assert sum(result.predictions.steps for result in talk.results(1)) == len(TEXT)
        np.testing.assert_array_equal(talk.arrays(1)["log_probabilities"], sequence(lone, TEXT.encode()))
        none = await talk.feed("x", id=2, answer=pb.Answer(want=pb.WANT_NONE))
        assert (none.position, none.done) == (len(TEXT) + 1, True)
        assert not none.HasField("predictions")
        last = await talk.feed("yz", id=3, answer=pb.Answer(log_probabilities=True))
        assert last.predictions.steps == 1
        expected = lone.after(list((TEXT + "xyz").encode())).log_probabilities
        np.testing.assert_array_equal(talk.arrays(3)["log_probabilities"], expected[np.newaxis])


async def test_an_opens_answer_holds_until_a_feed_says_otherwise(front: Any) -> None:
    """One in a Feed replaces the Open's whole: nothing of the two is merged."""
    async with front.talk() as talk:
        await talk.open(answer=pb.Answer(want=pb.WANT_EVERY_STEP, top_k=2, score=True))
        every = await talk.feed("abc", id=1)
        assert (every.predictions.steps, every.predictions.top_k, len(every.predictions.scores)) == (3, 2, 3)
        replaced = await talk.feed("abc", id=2, answer=pb.Answer())
        assert (replaced.predictions.steps, replaced.predictions.top_k) == (1, 5)
        assert not replaced.predictions.scores
        again = await talk.feed("abc", id=3)
        assert (again.predictions.steps, again.predictions.top_k) == (3, 2)


@pytest.mark.parametrize("cuts", [[1] * 19, [19], [7, 12], [1, 17, 1]])
async def test_scores_go_on_across_feeds(front: Any, lone: Any, cuts: list[int]) -> None:
    """Each is the log-probability of the token that came, given all before it: NaN for the very first."""
    tokens = list(TEXT.encode())
    before = sequence(lone, tokens)[:-1]
    expected = [before[place, token] for place, token in enumerate(tokens[1:])]
    scores: list[float] = []
    async with front.talk() as talk:
        await talk.open(answer=pb.Answer(want=pb.WANT_EVERY_STEP, top_k=0, score=True))
        first = 0
        for number, length in enumerate(cuts):
            await talk.feed(ids=tokens[first : first + length], id=number)
            first += length
            scores += [score for result in talk.results(number) for score in result.predictions.scores]
    assert np.isnan(scores[0])
    np.testing.assert_array_equal(np.float32(scores[1:]), np.float32(expected))


async def test_a_last_step_that_scores(front: Any, lone: Any) -> None:
    """Where only the last step answers, so does only its score."""
    tokens = list(TEXT.encode())
    async with front.talk() as talk:
        await talk.open(answer=pb.Answer(top_k=0, score=True))
        for number, cut in enumerate((tokens[:1], tokens[1:2], tokens[2:])):
            result = await talk.feed(ids=cut, id=number)
            assert len(result.predictions.scores) == 1
            before = len(tokens) - 2 if number == 2 else number - 1
            if before < 0:
                assert np.isnan(result.predictions.scores[0])
            else:
                expected = sequence(lone, tokens)[before, cut[-1]]
                assert np.float32(result.predictions.scores[0]) == expected


async def test_states_and_gates_are_those_of_the_step(front: Any, lone: Any) -> None:
    """A client gets its own C and h, and sees the gates of the very step that answered."""
    steps = lone.steps(list(TEXT.encode()))[1:]
    async with front.talk() as talk:
        answer = pb.Answer(want=pb.WANT_EVERY_STEP, top_k=0, states=True, gates=True)
        await talk.open(answer=answer)
        await talk.feed(TEXT, id=1)
        states, gates = talk.arrays(1, "states"), talk.arrays(1, "gates")
    assert set(states) == {"hidden", "cell"}
    assert set(gates) == {"forget", "input", "output", "candidate"}
    for name, found in states.items():
        np.testing.assert_array_equal(found, np.stack([step.states[name] for step in steps]))
    for name, found in gates.items():
        np.testing.assert_array_equal(found, np.stack([step.gates[name] for step in steps]))
    # And they are what they are called: C = f ⊙ C₋₁ + i ⊙ C̃, h = o ⊙ tanh(C).
    before = np.concatenate([np.zeros_like(states["cell"][:1]), states["cell"][:-1]])
    cell = gates["forget"] * before + gates["input"] * gates["candidate"]
    np.testing.assert_allclose(states["cell"], cell, atol=1e-6)
    np.testing.assert_allclose(states["hidden"], gates["output"] * np.tanh(cell), atol=1e-6)


async def test_a_model_of_values(serve: Any, many: Path, alone: Any) -> None:
    """Frames in, predicted frames out, by the manifest's names; the gates are a GRU's."""
    oracle = alone(many / "meter" / "1")
    frames = np.random.default_rng(0).uniform(-1, 1, (7, 3)).astype(np.float32)
    front = await serve(many, default_model="tiny")
    async with front.talk() as talk:
        answer = pb.Answer(want=pb.WANT_EVERY_STEP, log_probabilities=True, gates=True)
        opened = await talk.open(model="meter", answer=answer)
        assert (opened.model, opened.version) == ("meter", "1")
        for number, part in enumerate((frames[:2], frames[2:])):
            result = await talk.feed(id=number, values=pb.Values(data=part.astype("<f4").tobytes()))
            assert not result.predictions.top_ids, "frames have no most likely tokens"
        found = np.concatenate([talk.arrays(number)["prediction"] for number in (0, 1)])
        gates = np.concatenate([talk.arrays(number, "gates")["update"] for number in (0, 1)])
    steps = oracle.steps([tuple(frame) for frame in frames.tolist()])[1:]
    np.testing.assert_array_equal(found, np.stack([step.outputs["prediction"] for step in steps]))
    np.testing.assert_array_equal(gates, np.stack([step.gates["update"] for step in steps]))


async def test_the_highest_version_unless_another_is_named(serve: Any, many: Path) -> None:
    """A session's version never changes; a client that names none goes on with the session's own."""
    front = await serve(many, default_model="tiny")
    async with front.talk() as talk:
        assert (await talk.open(0, "alice")).version == "2"
        assert (await talk.open(1, "bob", version="1")).version == "1"
        await talk.say(closes=[pb.Close(handle=1, keep=True)])
        await talk.event(1)
        assert (await talk.open(2, "bob")).version == "1"


async def test_text_is_the_same_however_it_is_cut(front: Any, lone: Any) -> None:
    """Bytes are tokens, so cuts of text, and token ids, give the same answers; half a character too."""
    text = "Où est “Hamlet”?"
    tokens = list(text.encode())
    async with front.talk() as talk:
        for handle, cuts in enumerate(([text], list(text), [text[:5], text[5:]])):
            await talk.say(opens=[pb.Open(handle=handle, answer=WHOLE)])
            found = []
            for number, cut in enumerate(cuts):
                feed_id = 100 * handle + number
                await talk.feed(cut, handle=handle, id=feed_id)
                found.append(talk.arrays(feed_id)["log_probabilities"])
            np.testing.assert_array_equal(np.concatenate(found), sequence(lone, tokens))


async def test_many_sessions_share_a_message(front: Any, lone: Any) -> None:
    """The gateway's fast path: 40 sessions, 80 feeds, one message; each answered as if alone."""
    texts = {handle: (f"session {handle}", f" says {handle * 7}") for handle in range(40)}
    async with front.talk() as talk:
        await talk.say(
            opens=[pb.Open(handle=handle, answer=WHOLE) for handle in texts],
            feeds=[
                pb.Feed(handle=handle, id=2 * handle + part, text=texts[handle][part])
                for part in (0, 1)
                for handle in texts
            ],
        )
        for handle in texts:
            await talk.result(2 * handle + 1)
            found = [talk.arrays(2 * handle + part)["log_probabilities"] for part in (0, 1)]
            expected = sequence(lone, "".join(texts[handle]).encode())
            np.testing.assert_array_equal(np.concatenate(found), expected)
    assert len(talk.messages) < 40, "what is ready together is sent together"


async def test_feeds_of_one_session_run_in_order(front: Any) -> None:
    """Each may rely on the position that the one before it leaves, in the same message."""
    async with front.talk() as talk:
        feeds = [pb.Feed(id=number, position=3 * number, text="abc") for number in range(20)]
        await talk.say(opens=[pb.Open()], feeds=feeds)
        await talk.opened(0)
        results = await talk.hear(20)
    assert [result.feed_id for result in results] == list(range(20))
    assert [result.position for result in results] == list(range(3, 63, 3))
    assert not any(result.HasField("error") for result in results)


async def test_a_long_feed_gives_several_results_and_one_end(serve: Any, lone: Any) -> None:
    """No message is larger than it may be, positions rise, and exactly one result is done."""
    front = await serve(response_bytes_max=8000, slots_max=8)
    tokens = [number * 7 % 256 for number in range(700)]
    answer = pb.Answer(
        want=pb.WANT_EVERY_STEP, top_k=3, log_probabilities=True, score=True, states=True, gates=True
    )
    async with front.talk() as talk:
        await talk.open()
        await talk.feed(ids=tokens, id=1, answer=WHOLE)
        await talk.feed(ids=tokens, id=2, answer=answer)
        np.testing.assert_array_equal(
            np.concatenate([talk.arrays(feed)["log_probabilities"] for feed in (1, 2)]),
            sequence(lone, tokens + tokens),
        )
        for feed_id in (1, 2):
            results = talk.results(feed_id)
            assert len(results) > 50
            assert [result.done for result in results] == [False] * (len(results) - 1) + [True]
            ends = 700 * (feed_id - 1) + np.cumsum([result.predictions.steps for result in results])
            assert [result.position for result in results] == ends.tolist()
    assert max(message.ByteSize() for message in talk.messages) <= 8000


async def test_one_step_may_be_larger_than_a_message_should_be(serve: Any) -> None:
    """It cannot be cut, so it is sent alone."""
    front = await serve(response_bytes_max=500)
    async with front.talk() as talk:
        await talk.open(answer=WHOLE)
        await talk.feed("abc", id=1)
        assert [result.predictions.steps for result in talk.results(1)] == [1, 1, 1]


async def test_what_happened_first_is_told_first(front: Any) -> None:
    """A client applies opened, results, events; where things had another order, a new message begins."""
    async with front.talk() as talk:
        await talk.say(
            opens=[pb.Open(handle=0, session_id="alice")],
            resets=[pb.Reset(handle=0)],
            feeds=[pb.Feed(handle=0, id=1, text="abc")],
            closes=[pb.Close(handle=0)],
        )
        await talk.say(
            opens=[pb.Open(handle=1, session_id="alice")], feeds=[pb.Feed(handle=1, id=2, text="x")]
        )
        opened, reset, result, closed, again, last = await talk.hear(6)
    assert opened.created
    assert (reset.cause, reset.position) == (pb.CAUSE_RESET, 0)
    assert (result.feed_id, result.position) == (1, 3)
    assert (closed.cause, closed.position) == (pb.CAUSE_CLOSED, 3)
    assert (again.created, again.previous.cause, again.previous.position) == (True, pb.CAUSE_CLOSED, 3)
    assert (last.feed_id, last.position) == (2, 1)
    for message in talk.messages:
        for part in ("opened", "results", "events"):
            order = [talk.heard.index(item) for item in getattr(message, part)]
            assert order == sorted(order)


async def test_an_open_waits_for_a_close_that_is_queued(front: Any) -> None:
    """On the same stream, behind a feed: the session is closed first, then made anew, never taken over."""
    brake = front.brake()
    async with front.talk() as talk:
        await talk.open(0, "alice")
        brake.hold()
        await talk.say(feeds=[pb.Feed(id=1, text="abc")], closes=[pb.Close(handle=0)])
        await talk.say(
            opens=[pb.Open(handle=1, session_id="alice"), pb.Open(handle=2)],
            feeds=[pb.Feed(handle=1, id=2, text="x"), pb.Feed(handle=2, id=3, text="y")],
        )
        assert (await talk.next()).handle == 2, "another session is opened at once"
        brake.release()
        await talk.event(0)
        opened = await talk.opened(1)
        assert (opened.created, opened.previous.position) == (True, 3)
        assert (await talk.result(2)).position == 1
        assert talk.results(1)[0].position == 3


async def test_an_open_that_waited_and_cannot_be_done_tells_all_that_followed_it(front: Any) -> None:
    """CREATE behind a Close that keeps fails when its turn comes, and nothing behind it is silent."""
    brake = front.brake()
    async with front.talk() as talk:
        await talk.open(0, "alice")
        brake.hold()
        await talk.say(feeds=[pb.Feed(id=1, text="abc")], closes=[pb.Close(handle=0, keep=True)])
        await talk.say(
            opens=[pb.Open(handle=1, session_id="alice", mode=pb.MODE_CREATE)],
            resets=[pb.Reset(handle=1)],
            feeds=[pb.Feed(handle=1, id=2, text="x")],
            closes=[pb.Close(handle=1)],
        )
        brake.release()
        opened = await talk.opened(1)
        rest = await talk.hear(3)
    assert front.told(opened.error).reason == "SESSION_EXISTS"
    results = [item for item in rest if isinstance(item, pb.Result)]
    events = [item for item in rest if isinstance(item, pb.Event)]
    assert [front.told(item.error).reason for item in results] == ["SESSION_EXISTS"]
    assert [event.cause for event in events] == [pb.CAUSE_RESET, pb.CAUSE_CLOSED]
    assert {front.told(event.error).reason for event in events} == {"SESSION_EXISTS"}


async def test_take_over_in_the_middle_of_a_feed(front: Any, lone: Any) -> None:
    """The new writer goes on from the position it is told, and never runs the old one's remaining tokens."""
    brake = front.brake()
    old_tokens = list(b"The old writer's feed, cut off in the middle.")
    slow = pb.Answer(want=pb.WANT_EVERY_STEP, top_k=0, states=True, log_probabilities=True)
    async with front.talk() as old, front.talk() as new:
        await old.open(0, "alice")
        brake.hold()
        await old.say(
            feeds=[
                pb.Feed(id=1, tokens=pb.Tokens(ids=old_tokens), answer=slow),
                pb.Feed(id=2, text="never applied"),
            ]
        )
        await front.until(lambda: front.engine().waiting == 1)
        await brake.turns(5)
        opened = await new.open(7, "alice", mode=pb.MODE_ATTACH)
        assert (opened.position, opened.created) == (5, False)
        brake.release()
        await new.feed("and on", handle=7, id=3, position=5, answer=WHOLE)
        event = await old.event(0)
        assert (event.cause, event.position) == (pb.CAUSE_TAKEN_OVER, 5)
        cut, queued = old.results(1)[-1], old.results(2)[0]
        assert front.told(cut.error).reason == front.told(queued.error).reason == "TAKEN_OVER"
        assert cut.done
        assert queued.done
        assert cut.position == queued.position == 5
        assert front.told((await old.feed("late", id=4)).error).reason == "TAKEN_OVER"
        found = np.concatenate([old.arrays(1)["log_probabilities"], new.arrays(3)["log_probabilities"]])
        np.testing.assert_array_equal(found, sequence(lone, old_tokens[:5] + list(b"and on")))


async def test_another_handle_of_the_same_stream_takes_over_too(front: Any) -> None:
    """A stream may hold a session by one handle only; the other learns it by its event."""
    async with front.talk() as talk:
        await talk.open(0, "alice")
        await talk.feed("abc", id=1)
        await talk.say(opens=[pb.Open(handle=1, session_id="alice")])
        event, opened = await talk.hear(2)
        assert (event.handle, event.cause, event.position) == (0, pb.CAUSE_TAKEN_OVER, 3)
        assert (opened.handle, opened.created, opened.position) == (1, False, 3)
        assert (await talk.open(0, "bob")).created, "the handle is free again"


async def test_a_reset_waits_for_the_feeds_before_it(front: Any, lone: Any) -> None:
    """In the middle of a feed it changes nothing; then the session is as new, and its position 0."""
    brake = front.brake()
    async with front.talk() as talk:
        await talk.open(answer=WHOLE)
        brake.hold()
        await talk.say(feeds=[pb.Feed(id=1, text="before")])
        await front.until(lambda: front.engine().waiting == 1)
        await talk.say(resets=[pb.Reset()], feeds=[pb.Feed(id=2, text="after", position=0)])
        brake.release()
        await talk.result(2)
        kinds = [item.cause if isinstance(item, pb.Event) else item.feed_id for item in talk.heard[1:]]
        assert kinds == [1, pb.CAUSE_RESET, 2]
        np.testing.assert_array_equal(talk.arrays(2)["log_probabilities"], sequence(lone, b"after"))
        first = await talk.feed("x", id=3, answer=pb.Answer(score=True))
        assert not np.isnan(first.predictions.scores[0])
        await talk.say(resets=[pb.Reset()])
        await talk.event(0)
        first = await talk.feed("x", id=4, answer=pb.Answer(score=True))
        assert np.isnan(first.predictions.scores[0]), "a session that was reset has a very first token again"


async def test_sessions_without_a_name_end_with_their_stream(front: Any) -> None:
    """And the named ones stay, their state with them."""
    async with front.talk() as talk:
        await talk.say(opens=[pb.Open(handle=0), pb.Open(handle=1, session_id="alice")])
        anonymous, _ = await talk.hear(2)
        await talk.feed("abc", handle=1)
        await talk.end()
    await front.until(lambda: not front.registry.streams)
    assert len(front.registry) == 1
    async with front.talk() as talk:
        gone = await talk.open(0, anonymous.session_id, mode=pb.MODE_ATTACH)
        assert front.told(gone.error).reason == "SESSION_UNKNOWN"
        opened = await talk.open(1, "alice")
        assert (opened.created, opened.position) == (False, 3)


async def test_close_keeps_or_ends(front: Any, lone: Any) -> None:
    """`keep` lets go of the handle alone: the state goes on where it was."""
    async with front.talk() as talk:
        await talk.open(0, "alice")
        await talk.feed("abc", id=1)
        await talk.say(closes=[pb.Close(handle=0, keep=True)])
        kept = await talk.event(0)
        assert (kept.cause, kept.position) == (pb.CAUSE_KEPT, 3)
        assert kept.time.seconds > 1_700_000_000
        assert (await talk.open(0, "alice", answer=WHOLE)).position == 3
        await talk.feed("def", id=2)
        np.testing.assert_array_equal(talk.arrays(2)["log_probabilities"], sequence(lone, b"abcdef")[3:])
        await talk.say(closes=[pb.Close(handle=0)])
        closed = await talk.event(0)
        assert (closed.cause, closed.position) == (pb.CAUSE_CLOSED, 6)
        assert front.engine().slots_taken == 0
        opened = await talk.open(0, "alice")
        assert (opened.created, opened.previous.cause, opened.previous.position) == (True, pb.CAUSE_CLOSED, 6)
        assert abs(opened.previous.time.seconds - closed.time.seconds) <= 1
        await talk.say(closes=[pb.Close(handle=0)])
        await talk.event(0)


async def test_an_error_in_band_never_ends_the_stream(front: Any, lone: Any) -> None:
    """One message with every such mistake: each is told, and the session in its midst goes on."""
    async with front.talk() as talk:
        await talk.say(
            opens=[pb.Open(handle=0, answer=WHOLE), pb.Open(handle=1, model="nobody"), pb.Open(handle=2)],
            resets=[pb.Reset(handle=9)],
            feeds=[
                pb.Feed(handle=0, id=1, text="abc"),
                pb.Feed(handle=1, id=2, text="abc"),
                pb.Feed(handle=2, id=3, tokens=pb.Tokens(ids=[256])),
                pb.Feed(handle=9, id=4, text="abc"),
                pb.Feed(handle=0, id=5, text="def"),
            ],
            closes=[pb.Close(handle=9)],
        )
        await talk.say(feeds=[pb.Feed(handle=0, id=6, text="ghi")])
        await talk.result(6)
        reasons = {front.told(item.error).reason for item in talk.heard if item.HasField("error")}
        assert reasons == {"MODEL_UNKNOWN", "TOKEN_OUT_OF_RANGE", "HANDLE_UNKNOWN"}
        assert front.told(talk.results(2)[0].error).reason == "MODEL_UNKNOWN", "the same status as its Open"
        found = [talk.arrays(feed)["log_probabilities"] for feed in (1, 5, 6)]
        np.testing.assert_array_equal(np.concatenate(found), sequence(lone, b"abcdefghi"))
        ended = await talk.end()
    assert ended.code.name == "OK"


async def test_exactly_once_by_position_after_a_cancel(front: Any, lone: Any) -> None:
    """What a cancelled stream did, only the position tells: from there nothing is lost, nothing is twice."""
    brake = front.brake()
    tokens = list(b"cancelled in the middle of this")
    slow = pb.Answer(want=pb.WANT_EVERY_STEP, states=True)
    async with front.talk() as talk:
        await talk.open(0, "alice")
        brake.hold()
        await talk.say(feeds=[pb.Feed(id=1, tokens=pb.Tokens(ids=tokens), answer=slow)])
        await front.until(lambda: front.engine().waiting == 1)
        await brake.turns(7)
        talk.call.cancel()
        await front.until(lambda: not front.registry.streams)
    brake.release()
    async with front.talk() as talk:
        opened = await talk.open(0, "alice", mode=pb.MODE_ATTACH, answer=WHOLE)
        assert opened.position == 7
        behind = await talk.feed(ids=tokens, id=2, position=0)
        assert front.told(behind.error).metadata == {"client_position": "0", "server_position": "7"}
        await talk.feed(ids=tokens[7:], id=3, position=7)
        np.testing.assert_array_equal(talk.arrays(3)["log_probabilities"], sequence(lone, tokens)[7:])


async def test_what_was_read_before_the_end_of_input_is_answered(front: Any) -> None:
    """Half-close is no cancel: everything is applied and answered, then the stream is OK."""
    async with front.talk() as talk:
        await talk.say(
            opens=[pb.Open(session_id="alice")],
            feeds=[pb.Feed(id=number, text="abc") for number in range(50)],
        )
        ended = await talk.end()
    assert ended.code.name == "OK"
    assert [talk.results(number)[0].position for number in range(50)] == list(range(3, 153, 3))
