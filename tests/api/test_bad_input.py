"""What bad input gets: a status, a reason and words to act on; and nobody else notices.

One table of cases, each run on a server where two innocents are fed before, meanwhile and after: one on a
stream of its own, one on the culprit's stream and in the culprit's message. Their answers are, bit for bit,
those of a lone session. Every row of the server's error table is reached.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode

from cellstream.api import convert
from cellstream.api.status import CODES
from cellstream.cells.config import StackConfig
from cellstream.errors import BY_REASON, CapacityError, RequestError, ServerError, SessionError
from cellstream.export.writing import write_version
from cellstream.v1 import model_pb2, session_pb2
from cellstream.v1 import prediction_pb2 as pb

BOUNDS: dict[str, Any] = {
    "default_model": "tiny",
    "message_bytes_max": 6000,
    "message_items_max": 32,
    "feed_tokens_max": 300,
    "session_id_bytes_max": 16,
    "slots_max": 8,
    "generate_tokens_max": 1000,
    "stop_texts_max": 2,
    "stop_bytes_max": 8,
    "session_idle_seconds": 100.0,
    "feed_wait_seconds_max": 30.0,
    "retry_after_seconds": 2.5,
}
"""Small, so that each is easily passed."""

ANY: Any = ...
"""A value of ErrorInfo.metadata that is another each time."""

INNOCENT, CULPRIT = 0, 1
BAD = 666
"""The culprit's feed."""

WHOLE = pb.Answer(want=pb.WANT_EVERY_STEP, top_k=0, log_probabilities=True)
ATTACH, CREATE = pb.MODE_ATTACH, pb.MODE_CREATE


class Innocent:
    """A session that does nothing wrong, and must get what it would get alone."""

    def __init__(self, talk: Any, oracle: Any) -> None:
        self.talk = talk
        self._oracle = oracle
        self._sent: dict[int, list[int]] = {}

    def feed(self) -> pb.Feed:
        """Its next feed, to be sent in any message."""
        number = 1000 + len(self._sent)  # no other feed of the stream has such an id
        tokens = [(7 * number + place) % 256 for place in range(4)]
        self._sent[number] = tokens
        return pb.Feed(handle=INNOCENT, id=number, tokens=pb.Tokens(ids=tokens), answer=WHOLE)

    async def say(self) -> None:
        """Send a feed, and do not wait."""
        await self.talk.say(feeds=[self.feed()])

    async def check(self) -> None:
        """Everything that was sent has been answered, and rightly."""
        for number in self._sent:
            await self.talk.result(number)
        found = np.concatenate([self.talk.arrays(number)["log_probabilities"] for number in self._sent])
        history = list(itertools.chain.from_iterable(self._sent.values()))
        expected = [step.log_probabilities for step in self._oracle.steps(history)[1:]]
        np.testing.assert_array_equal(found, np.stack(expected))


@dataclass
class Scene:
    """A server with its innocents, on which something bad is about to be done.

    Attributes:
        front: The server.
        talk: The culprit's stream, which the near innocent shares.
        near: The innocent on it, whose feeds stand in the culprit's messages.
        far: The innocent on a stream and a connection of its own.
        log: What the server logs.
        patch: For faults.
    """

    front: Any
    talk: Any
    near: Innocent
    far: Innocent
    log: Any
    patch: pytest.MonkeyPatch

    async def say(self, **lists: Any) -> None:
        """Send the culprit's message, an innocent feed before and behind its own, another elsewhere."""
        await self.far.say()
        feeds = [self.near.feed(), *lists.pop("feeds", ()), self.near.feed()]
        await self.talk.say(feeds=feeds, **lists)

    async def bad_feed(self, position: int = 0, **fields: Any) -> Any:
        """Send the culprit's feed and say what it was told; the session stays at `position`."""
        await self.say(feeds=[pb.Feed(handle=CULPRIT, id=BAD, **fields)])
        return await self.bad_result(position)

    async def bad_result(self, position: int = 0) -> Any:
        """What the culprit's feed was told."""
        result = await self.talk.result(BAD)
        assert result.position == position
        return self.front.told(result.error)


Provoke = Callable[[Scene], Awaitable[Any]]


@dataclass(frozen=True)
class Case:
    """A mistake, and what it gets.

    Attributes:
        reason: Of the ErrorInfo.
        code: Of the status.
        words: In its message.
        metadata: Of the ErrorInfo, all of it.
        provoke: Does it, and gives back what was told.
        settings: Beside BOUNDS.
        mistakes: Events of the log that are errors of the server, provoked.
        last: The server is gone afterwards.
    """

    reason: str
    code: StatusCode
    words: str
    metadata: dict[str, Any]
    provoke: Provoke
    settings: dict[str, Any] = field(default_factory=dict)
    mistakes: tuple[str, ...] = ()
    last: bool = False


# ---------------------------------------------------------------- ways to provoke


def feeding(session: dict[str, Any] | None = None, **fields: Any) -> Provoke:
    """A feed of a session that has just been opened, in the same message."""

    async def provoke(scene: Scene) -> Any:
        await scene.say(
            opens=[pb.Open(handle=CULPRIT, **(session or {}))],
            feeds=[pb.Feed(handle=CULPRIT, id=BAD, **fields)],
        )
        return await scene.bad_result()

    return provoke


def opening(**fields: Any) -> Provoke:
    """An Open; a feed behind it ends with the same status, and so does a later one."""

    async def provoke(scene: Scene) -> Any:
        await scene.say(
            opens=[pb.Open(handle=CULPRIT, **fields)],
            feeds=[pb.Feed(handle=CULPRIT, id=BAD, text="never applied")],
        )
        opened = await scene.talk.opened(CULPRIT)
        error = scene.front.told(opened.error)
        assert await scene.bad_result() == error
        later = await scene.talk.feed("never applied", handle=CULPRIT, id=BAD + 1)
        assert scene.front.told(later.error) == error
        return error

    return provoke


def asking(method: str, request: Any) -> Provoke:
    """A call of SessionService or ModelService."""

    async def provoke(scene: Scene) -> Any:
        stub = scene.front.model if "Model" in method else scene.front.session
        await scene.say()
        return await scene.front.failure(getattr(stub, method)(request))

    return provoke


def generating(**fields: Any) -> Provoke:
    """A Generate call."""

    async def provoke(scene: Scene) -> Any:
        await scene.say()
        return await scene.front.failure(
            scene.front.generate(**{"text": "ROMEO:", "max_tokens": 5, **fields})
        )

    return provoke


def ending_the_stream(last: bytes) -> Provoke:
    """A message that ends its stream, after the results of all that was read before it."""

    async def provoke(scene: Scene) -> Any:
        await scene.say()
        async with scene.front.raw_talk() as talk:
            await talk.say(opens=[pb.Open()], feeds=[pb.Feed(id=1, text="read before")])
            await talk.call.write(last)
            ending = await talk.ending()
            assert talk.results(1)[0].position == len("read before")
            return ending

    return provoke


def raw(path: str, message: bytes) -> Provoke:
    """Bytes that are no message, to a call that takes one."""

    async def provoke(scene: Scene) -> Any:
        await scene.say()
        if path.endswith("Generate"):
            call = scene.front.channel.unary_stream(f"/cellstream.v1.{path}")(message)
            return await scene.front.failure(call.read())
        return await scene.front.failure(scene.front.channel.unary_unary(f"/cellstream.v1.{path}")(message))

    return provoke


# ---------------------------------------------------------------- stories


async def _feed_after_close(scene: Scene) -> Any:
    """Behind a queued Close, and after it was done."""
    await scene.say(
        opens=[pb.Open(handle=CULPRIT)],
        closes=[pb.Close(handle=CULPRIT)],
    )
    await scene.talk.event(CULPRIT)
    return await scene.bad_feed(text="late")


async def _feed_behind_close(scene: Scene) -> Any:
    brake = scene.front.brake()
    await scene.talk.open(CULPRIT)
    brake.hold()
    await scene.say(feeds=[pb.Feed(handle=CULPRIT, id=1, text="abc")], closes=[pb.Close(handle=CULPRIT)])
    await scene.say(feeds=[pb.Feed(handle=CULPRIT, id=BAD, text="late")])
    error = await scene.bad_result()
    brake.release()
    assert (await scene.talk.event(CULPRIT)).position == 3, "what came before the Close is applied"
    return error


def _unanswerable(**lists: Any) -> Provoke:
    async def provoke(scene: Scene) -> Any:
        await scene.say(**lists)
        event = await scene.talk.event(CULPRIT)
        assert event.cause == (pb.CAUSE_RESET if "resets" in lists else pb.CAUSE_KEPT)
        return scene.front.told(event.error)

    return provoke


async def _expire(scene: Scene) -> None:
    """The culprit's session has been idle too long; the innocents have not."""
    await scene.talk.open(CULPRIT, "alice")
    await scene.talk.feed("abc", handle=CULPRIT, id=1)
    for _ in range(2):
        scene.front.sweep_after(60)
        await scene.say()
        await scene.far.check()
        await scene.near.check()
    event = next(item for item in scene.talk.heard if isinstance(item, pb.Event))
    assert (event.handle, event.cause, event.position) == (CULPRIT, pb.CAUSE_EXPIRED, 3)


async def _feed_an_expired_session(scene: Scene) -> Any:
    await _expire(scene)
    return await scene.bad_feed(text="late")


async def _attach_to_an_expired_session(scene: Scene) -> Any:
    await _expire(scene)
    error = await opening(session_id="alice", mode=ATTACH)(scene)
    opened = await scene.talk.open(CULPRIT, "alice")
    assert (opened.created, opened.previous.cause, opened.previous.position) == (True, pb.CAUSE_EXPIRED, 3)
    return error


async def _close(scene: Scene) -> None:
    await scene.talk.open(CULPRIT, "alice")
    await scene.talk.feed("abc", handle=CULPRIT, id=1)
    await scene.front.session.CloseSession(session_pb2.CloseSessionRequest(session_id="alice"))
    event = await scene.talk.event(CULPRIT)
    assert (event.cause, event.position) == (pb.CAUSE_CLOSED, 3)


async def _feed_a_session_closed_from_outside(scene: Scene) -> Any:
    await _close(scene)
    return await scene.bad_feed(text="late")


async def _attach_to_a_closed_session(scene: Scene) -> Any:
    await _close(scene)
    return await opening(session_id="alice", mode=ATTACH)(scene)


async def _get_a_closed_session(scene: Scene) -> Any:
    await _close(scene)
    return await asking("GetSession", session_pb2.GetSessionRequest(session_id="alice"))(scene)


async def _forgotten(scene: Scene) -> Any:
    """A tombstone lasts so long and no longer."""
    await _close(scene)
    scene.front.sweep_after(3600)
    await scene.talk.open(INNOCENT + 2)
    return await scene.front.failure(
        scene.front.session.GetSession(session_pb2.GetSessionRequest(session_id="alice"))
    )


async def _create_what_exists(scene: Scene) -> Any:
    await scene.talk.open(2, "alice")
    await scene.talk.feed("abc", handle=2, id=1)
    error = await opening(session_id="alice", mode=CREATE)(scene)
    assert (await scene.talk.feed("d", handle=2, id=2)).position == 4, "it was not even touched"
    return error


async def _attach_as_another_model(scene: Scene) -> Any:
    await scene.talk.open(2, "alice")
    return await opening(session_id="alice", model="letters")(scene)


async def _taken_over(scene: Scene) -> Any:
    brake = scene.front.brake()
    await scene.talk.open(CULPRIT, "alice")
    await scene.talk.feed("abc", handle=CULPRIT, id=1)
    brake.hold()
    await scene.say(feeds=[pb.Feed(handle=CULPRIT, id=BAD, text="unapplied")])
    async with scene.front.talk() as thief:
        assert (await thief.open(0, "alice")).position == 3
        brake.release()
        return await scene.bad_result(3)


async def _generation_taken_over(scene: Scene) -> Any:
    brake = scene.front.brake()
    brake.hold()
    generation = scene.front.prediction.Generate(
        pb.GenerateRequest(session_id="alice", text="ROMEO:", max_tokens=900, seed=1)
    )
    await scene.front.until(lambda: scene.front.engine().waiting == 1)
    await brake.turns(10)
    first = await generation.read()
    await scene.talk.open(CULPRIT, "alice")
    brake.release()
    assert first.seed == 1

    async def rest() -> None:
        while await generation.read() is not grpc.aio.EOF:
            pass

    return await scene.front.failure(rest())


async def _wrong_position(scene: Scene) -> Any:
    await scene.talk.open(CULPRIT)
    await scene.talk.feed("abc", handle=CULPRIT, id=1)
    await scene.say(feeds=[pb.Feed(handle=CULPRIT, id=BAD, text="def", position=2)])
    return await scene.bad_result(3)


async def _feed_after_failure(scene: Scene) -> Any:
    """And what clears it: a feed that carries its position, or a reset."""
    front, talk = scene.front, scene.talk
    await talk.open(CULPRIT)
    await scene.say(
        feeds=[
            pb.Feed(handle=CULPRIT, id=1, text="abc"),
            pb.Feed(handle=CULPRIT, id=2, tokens=pb.Tokens(ids=[256])),
            pb.Feed(handle=CULPRIT, id=BAD, text="def"),
        ]
    )
    error = await scene.bad_result(3)
    assert front.told((await talk.result(2)).error).reason == "TOKEN_OUT_OF_RANGE"
    again = await talk.feed("def", handle=CULPRIT, id=3)
    assert front.told(again.error) == error, "until it is cleared"
    assert (await talk.feed("def", handle=CULPRIT, id=4, position=3)).position == 6
    assert (await talk.feed("ghi", handle=CULPRIT, id=5)).position == 9
    refused = await talk.feed(ids=[256], handle=CULPRIT, id=6)
    assert refused.HasField("error")
    await talk.say(resets=[pb.Reset(handle=CULPRIT)])
    await talk.event(CULPRIT)
    assert (await talk.feed("abc", handle=CULPRIT, id=7)).position == 3
    return error


async def _non_finite(scene: Scene) -> Any:
    """The frames before the bad one are applied, whoever shares the call."""
    await scene.talk.open(CULPRIT, model="glass")
    frames = np.zeros((4, 3), "<f4")
    frames[2] = 3e38
    error = await scene.bad_feed(position=2, values=pb.Values(data=frames.tobytes()))
    good = pb.Values(data=frames[3].tobytes())
    assert (await scene.talk.feed(handle=CULPRIT, id=2, position=2, values=good)).position == 3
    return error


async def _step_fails(scene: Scene) -> Any:
    """A graph that raises at one token, in a batch that both innocents share."""
    graph = scene.front.engine()._graph
    run = graph.run

    def faulty(buffers: Any) -> None:
        if (buffers.inputs == 255).any():
            raise RuntimeError("what the user sent: 255")
        run(buffers)

    scene.patch.setattr(graph, "run", faulty)
    brake = scene.front.brake()
    await scene.talk.open(CULPRIT)
    brake.hold()
    await scene.say(feeds=[pb.Feed(handle=CULPRIT, id=BAD, tokens=pb.Tokens(ids=[1, 2, 255, 3]))])
    await scene.front.until(lambda: scene.front.engine().waiting == 3)
    brake.release()
    error = await scene.bad_result(2)
    assert (await scene.talk.feed(ids=[4], handle=CULPRIT, id=1, position=2)).position == 3
    (entry,) = (entry for entry in scene.log.of("feed_failed") if "exc_info" in entry)
    assert entry["error_id"] == error.metadata["error_id"]
    assert (entry["feed"], entry["reason"]) == (BAD, "STEP_FAILED")
    assert "255" in str(entry["exc_info"].__cause__), "the log has what the wire has not"
    assert "255" not in error.message
    return error


async def _unforeseen_in_a_feed(scene: Scene) -> Any:
    served = scene.front.registry.catalogue.find("letters", "")

    def broken(text: str) -> list[int]:
        raise RuntimeError(f"what the user sent: {text}")

    scene.patch.setattr(served.tokenizer, "encode", broken)
    error = await feeding({"model": "letters"}, text="SECRET")(scene)
    _check_log(scene, error, "feed_failed")
    return error


async def _unforeseen_in_an_answer(scene: Scene) -> Any:
    """The tokens were applied and the answer cannot be told: that is said, and the position with it."""
    write = convert.write_predictions

    def broken(message: Any, progress: Any, *steps: Any) -> None:
        if progress.gates:
            raise RuntimeError("SECRET")
        write(message, progress, *steps)

    scene.patch.setattr(convert, "write_predictions", broken)
    await scene.talk.open(CULPRIT)
    answer = pb.Answer(want=pb.WANT_EVERY_STEP, gates=True)
    await scene.say(
        feeds=[
            pb.Feed(handle=CULPRIT, id=BAD, text="abc", answer=answer),
            pb.Feed(handle=CULPRIT, id=1, text="def"),
        ]
    )
    result = await scene.talk.result(BAD)
    assert 1 <= result.position <= 3
    error = scene.front.told(result.error)
    # What was applied stays applied, so a feed behind one that was applied whole goes on.
    behind = await scene.talk.result(1)
    if result.position == 3:
        assert behind.position == 6
    else:
        assert scene.front.told(behind.error).reason == "FEED_AFTER_FAILURE"
    assert [one.done for one in scene.talk.results(BAD)].count(True) == 1
    again = await scene.talk.feed("d", handle=CULPRIT, id=2, position=behind.position)
    assert again.position == behind.position + 1
    _check_log(scene, error, "feed_failed")
    return error


async def _unforeseen_in_a_stream(scene: Scene) -> Any:
    def broken(*_: Any) -> None:
        raise RuntimeError("SECRET")

    await scene.say()
    async with scene.front.talk() as talk:
        await talk.open()
        scene.patch.setattr(scene.front.registry, "reset", broken)
        await talk.say(resets=[pb.Reset()])
        error = await talk.ending()
    _check_log(scene, error, "unforeseen")
    return error


async def _unforeseen_in_a_call(scene: Scene) -> Any:
    def broken(*_: Any) -> None:
        raise RuntimeError("SECRET")

    scene.patch.setattr(scene.front.registry, "page", broken)
    error = await asking("ListSessions", session_pb2.ListSessionsRequest())(scene)
    _check_log(scene, error, "unforeseen")
    return error


def _check_log(scene: Scene, error: Any, event: str) -> None:
    """The id is in the log, and the rest of it only there."""
    (entry,) = (entry for entry in scene.log.of(event) if "exc_info" in entry)
    assert entry["error_id"] == error.metadata["error_id"]
    assert entry["exc_info"]
    assert "SECRET" not in error.message
    assert error.metadata["error_id"] in error.message


async def _too_many_streams(scene: Scene) -> Any:
    await scene.say()
    async with scene.front.talk() as talk:
        await talk.say(opens=[pb.Open()])
        return await talk.ending()


async def _queue_timeout(scene: Scene) -> Any:
    """The innocents came later and have time; what waited behind the overdue feed must say its position."""
    front, talk = scene.front, scene.talk
    brake = front.brake()
    await talk.open(CULPRIT)
    brake.hold()
    await talk.say(feeds=[pb.Feed(handle=CULPRIT, id=BAD, text="abc")])
    await front.until(lambda: front.engine().waiting == 1)
    front.clock.advance(20)
    await scene.say(feeds=[pb.Feed(handle=CULPRIT, id=1, text="def")])
    await front.until(lambda: front.engine().waiting == 3)
    front.sweep_after(10)
    error = await scene.bad_result()
    brake.release()
    assert front.told((await talk.result(1)).error).reason == "FEED_AFTER_FAILURE"
    assert (await talk.feed("abc", handle=CULPRIT, id=2, position=0)).position == 3
    return error


async def _drained(scene: Scene) -> Any:
    """A feed that was queued when the server was told to go; then the stream ends the same way."""
    front, talk = scene.front, scene.talk
    brake = front.brake()
    await talk.open(CULPRIT, "alice")
    await talk.feed("abc", handle=CULPRIT, id=1)
    brake.hold()
    await talk.say(feeds=[pb.Feed(handle=CULPRIT, id=BAD, text="unapplied")])
    await front.until(lambda: front.engine().waiting == 1)
    await front.server.stop()
    error = await scene.bad_result(3)
    event = await talk.event(CULPRIT)
    assert (event.cause, event.position) == (pb.CAUSE_DRAINING, 3)
    ending = await talk.ending()
    assert (ending.code, ending.reason) == (error.code, error.reason)
    assert ending.retry_seconds == error.retry_seconds
    return error


# ---------------------------------------------------------------- the table

BAD_TEXT = b"\x0a\x03\x12\x01\xff"
"""A PredictRequest with an Open whose session_id is the byte FF; a GetSessionRequest that is as bad."""

FRAME = np.zeros(3, "<f4").tobytes()
NAN, INFINITE = (np.array([0, 1, value], "<f4").tobytes() for value in (np.nan, -np.inf))
METER, LETTERS = {"model": "meter"}, {"model": "letters"}
RETRY = {"retry_after_seconds": "2.5"}
INVALID, MISSING = StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND
PRECONDITION, EXHAUSTED = StatusCode.FAILED_PRECONDITION, StatusCode.RESOURCE_EXHAUSTED


def ids(*tokens: int) -> pb.Tokens:
    """Token ids."""
    return pb.Tokens(ids=tokens)


# fmt: off
CASES: dict[str, Case] = {
    "bytes that are no message": Case("MALFORMED_MESSAGE", INVALID, "no cellstream.v1.PredictRequest", {},
        ending_the_stream(b"\xff\xff\xff")),
    "text that is no UTF-8": Case("MALFORMED_MESSAGE", INVALID, "UTF-8", {}, ending_the_stream(BAD_TEXT)),
    "a mode that there is not": Case("MALFORMED_MESSAGE", INVALID, "mode is 7", {},
        ending_the_stream(pb.PredictRequest(opens=[pb.Open(handle=5, mode=7)]).SerializeToString())),
    "Generate: bytes that are no message": Case("MALFORMED_MESSAGE", INVALID, "GenerateRequest", {},
        raw("PredictionService/Generate", b"\xff")),
    "Generate: a mode that there is not": Case("MALFORMED_MESSAGE", INVALID, "mode is 7", {},
        generating(mode=7)),
    "GetSession: text that is no UTF-8": Case("MALFORMED_MESSAGE", INVALID, "UTF-8", {},
        raw("SessionService/GetSession", b"\x0a\x01\xff")),
    "too many bytes": Case("MESSAGE_TOO_LARGE", INVALID, "at most 6000", {"message_bytes_max": "6000"},
        ending_the_stream(pb.PredictRequest(feeds=[pb.Feed(text="a" * 6000)]).SerializeToString())),
    "too many items": Case("MESSAGE_TOO_LARGE", INVALID, "more than 32 opens", {"message_items_max": "32"},
        ending_the_stream(pb.PredictRequest(feeds=[pb.Feed(text="a")] * 33).SerializeToString())),
    "Generate: too many bytes": Case("MESSAGE_TOO_LARGE", INVALID, "at most 6000",
        {"message_bytes_max": "6000"}, generating(text="a" * 6000)),
    "GetModel: too many bytes": Case("MESSAGE_TOO_LARGE", INVALID, "at most 6000",
        {"message_bytes_max": "6000"}, asking("GetModel", model_pb2.GetModelRequest(name="a" * 6000))),
    "a handle that is in use": Case("HANDLE_IN_USE", INVALID, "handle 0 is in use", {"handle": "0"},
        ending_the_stream(pb.PredictRequest(opens=[pb.Open()]).SerializeToString())),

    "a feed of an unknown handle": Case("HANDLE_UNKNOWN", INVALID, "not in use", {"handle": "1"},
        lambda scene: scene.bad_feed(text="abc")),
    "a reset of an unknown handle": Case("HANDLE_UNKNOWN", INVALID, "not in use", {"handle": "1"},
        _unanswerable(resets=[pb.Reset(handle=CULPRIT)])),
    "a close of an unknown handle": Case("HANDLE_UNKNOWN", INVALID, "not in use", {"handle": "1"},
        _unanswerable(closes=[pb.Close(handle=CULPRIT, keep=True)])),
    "a feed after a close": Case("HANDLE_UNKNOWN", INVALID, "was closed", {"handle": "1"}, _feed_after_close),
    "a feed behind a close": Case("HANDLE_UNKNOWN", INVALID, "is being closed", {"handle": "1"},
        _feed_behind_close),

    "a session id that is too long": Case("SESSION_ID_INVALID", INVALID, "18 bytes",
        {"session_id_bytes_max": "16"}, opening(session_id="é" * 9)),
    "attaching to no name": Case("SESSION_ID_INVALID", INVALID, "session_id is empty", {},
        opening(mode=ATTACH)),
    "getting no name": Case("SESSION_ID_INVALID", INVALID, "session_id is empty", {},
        asking("GetSession", session_pb2.GetSessionRequest())),
    "closing no name": Case("SESSION_ID_INVALID", INVALID, "session_id is empty", {},
        asking("CloseSession", session_pb2.CloseSessionRequest())),

    "an unknown model": Case("MODEL_UNKNOWN", MISSING, "letters, meter, tiny", {"model": "nobody"},
        opening(model="nobody")),
    "generating with an unknown model": Case("MODEL_UNKNOWN", MISSING, "'nobody'", {"model": "nobody"},
        generating(model="nobody")),
    "asking for an unknown model": Case("MODEL_UNKNOWN", MISSING, "'nobody'", {"model": "nobody"},
        asking("GetModel", model_pb2.GetModelRequest(name="nobody"))),
    "an unknown version": Case("VERSION_UNKNOWN", MISSING, "it has: 1, 2",
        {"model": "tiny", "version": "3"}, opening(version="3")),
    "a version that is no number": Case("VERSION_UNKNOWN", MISSING, "it has: 1",
        {"model": "meter", "version": "²"}, opening(model="meter", version="²")),
    "a version with a leading zero": Case("VERSION_UNKNOWN", MISSING, "it has: 1",
        {"model": "meter", "version": "01"}, opening(model="meter", version="01")),
    "a version longer than Python counts": Case("VERSION_UNKNOWN", MISSING, "1…'; it has: 1",
        {"model": "meter", "version": "1" * 64 + "…"}, opening(model="meter", version="1" * 5000)),
    "a model's name longer than a status may be": Case("MODEL_UNKNOWN", MISSING, "n…'",
        {"model": "n" * 64 + "…"}, asking("GetModel", model_pb2.GetModelRequest(name="n" * 5900))),
    "another model than the session's": Case("MODEL_MISMATCH", PRECONDITION, "served by tiny/2",
        {"model": "tiny", "version": "2"}, _attach_as_another_model),

    "a feed without input": Case("FEED_EMPTY", INVALID, "no input", {}, feeding()),
    "a feed of no tokens": Case("FEED_EMPTY", INVALID, "no tokens", {}, feeding(tokens=ids())),
    "a feed of empty text": Case("FEED_EMPTY", INVALID, "text is empty", {}, feeding(text="")),
    "a feed of no frames": Case("FEED_EMPTY", INVALID, "no frames", {}, feeding(METER, values=pb.Values())),
    "a feed of too many tokens": Case("FEED_TOO_LONG", INVALID, "301 tokens", {"feed_tokens_max": "300"},
        feeding(tokens=ids(*[1] * 301))),
    "a feed of too much text": Case("FEED_TOO_LONG", INVALID, "302 tokens", {"feed_tokens_max": "300"},
        feeding(text="é" * 151)),
    "a feed of too many frames": Case("FEED_TOO_LONG", INVALID, "301 tokens or frames",
        {"feed_tokens_max": "300"}, feeding(METER, values=pb.Values(data=FRAME * 301))),
    "a prompt of too many tokens": Case("FEED_TOO_LONG", INVALID, "301 tokens", {"feed_tokens_max": "300"},
        generating(text="a" * 301)),
    "a token out of range": Case("TOKEN_OUT_OF_RANGE", INVALID, "token 256 at place 1",
        {"token": "256", "place": "1", "vocabulary_size": "256"}, feeding(tokens=ids(255, 256, 300))),
    "the largest token there is": Case("TOKEN_OUT_OF_RANGE", INVALID, "token 4294967295",
        {"token": "4294967295", "place": "0", "vocabulary_size": "256"}, feeding(tokens=ids(2**32 - 1))),
    "a prompt's token out of range": Case("TOKEN_OUT_OF_RANGE", INVALID, "token 256",
        {"token": "256", "place": "0", "vocabulary_size": "256"}, generating(tokens=ids(256))),
    "text that the tokeniser cannot take": Case("TEXT_NOT_ENCODABLE", INVALID, "none of the 40",
        {"character": "é", "place": "1"},
        feeding(LETTERS, text="!é")),
    "frames for a model of tokens": Case("INPUT_KIND_MISMATCH", INVALID, "takes tokens",
        {"expected": "tokens"}, feeding(values=pb.Values(data=FRAME))),
    "tokens for a model of values": Case("INPUT_KIND_MISMATCH", INVALID, "frames of 3 values",
        {"expected": "values"}, feeding(METER, tokens=ids(1))),
    "text for a model of values": Case("INPUT_KIND_MISMATCH", INVALID, "frames of 3 values",
        {"expected": "values"}, feeding(METER, text="abc")),
    "generating with a model of values": Case("INPUT_KIND_MISMATCH", INVALID, "only tokens can be generated",
        {"expected": "values"}, generating(model="meter")),
    "half a frame": Case("VALUES_MISSHAPEN", INVALID, "13 bytes", {"features": "3"},
        feeding(METER, values=pb.Values(data=FRAME + b"\0"))),
    "a value that is no number": Case("VALUES_NOT_FINITE", INVALID, "feature 2 of frame 1 is nan",
        {"frame": "1", "feature": "2"}, feeding(METER, values=pb.Values(data=FRAME + NAN))),
    "a value that is infinite": Case("VALUES_NOT_FINITE", INVALID, "feature 2 of frame 0 is -inf",
        {"frame": "0", "feature": "2"}, feeding(METER, values=pb.Values(data=INFINITE))),

    "more likely tokens than there are": Case("ANSWER_UNSUPPORTED", INVALID, "top_k is 41",
        {"vocabulary_size": "40"}, opening(model="letters", answer=pb.Answer(top_k=41))),
    "scores of frames": Case("ANSWER_UNSUPPORTED", INVALID, "only tokens can be scored", {},
        opening(model="meter", answer=pb.Answer(score=True))),
    "gates of a model without": Case("ANSWER_UNSUPPORTED", INVALID, "no gates", {},
        feeding(LETTERS, text="!", answer=pb.Answer(gates=True))),
    "a want that there is not": Case("ANSWER_UNSUPPORTED", INVALID, "want is 9", {},
        feeding(text="abc", answer=pb.Answer(want=9))),

    "no prompt at position 0": Case("PROMPT_EMPTY", INVALID, "no prompt", {}, generating(text="")),
    "no tokens to make": Case("GENERATION_INVALID", INVALID, "max_tokens is 0",
        {"generate_tokens_max": "1000"}, generating(max_tokens=0)),
    "too many tokens to make": Case("GENERATION_INVALID", INVALID, "max_tokens is 1001",
        {"generate_tokens_max": "1000"}, generating(max_tokens=1001)),
    "a negative temperature": Case("GENERATION_INVALID", INVALID, "temperature is -1", {},
        generating(temperature=-1)),
    "a temperature that is no number": Case("GENERATION_INVALID", INVALID, "temperature is nan", {},
        generating(temperature=float("nan"))),
    "a share of nothing": Case("GENERATION_INVALID", INVALID, "top_p is 0", {}, generating(top_p=0)),
    "a share of more than all": Case("GENERATION_INVALID", INVALID, "top_p is 1.5", {},
        generating(top_p=1.5)),
    "too many stop texts": Case("GENERATION_INVALID", INVALID, "3 stop texts", {"stop_texts_max": "2"},
        generating(stop=["a", "b", "c"])),
    "an empty stop text": Case("GENERATION_INVALID", INVALID, "0 bytes", {"stop_bytes_max": "8"},
        generating(stop=[""])),
    "a long stop text": Case("GENERATION_INVALID", INVALID, "10 bytes", {"stop_bytes_max": "8"},
        generating(stop=["é" * 5])),
    "a page token made up": Case("PAGE_TOKEN_INVALID", INVALID, "earlier page", {},
        asking("ListSessions", session_pb2.ListSessionsRequest(page_token="x"))),

    "attaching to nobody": Case("SESSION_UNKNOWN", MISSING, "no session of this id", {},
        opening(session_id="nobody", mode=ATTACH)),
    "generating with nobody": Case("SESSION_UNKNOWN", MISSING, "no session of this id", {},
        generating(session_id="nobody", mode=ATTACH)),
    "getting nobody": Case("SESSION_UNKNOWN", MISSING, "no session of this id", {},
        asking("GetSession", session_pb2.GetSessionRequest(session_id="nobody"))),
    "closing nobody": Case("SESSION_UNKNOWN", MISSING, "no session of this id", {},
        asking("CloseSession", session_pb2.CloseSessionRequest(session_id="nobody"))),
    "a session whose end is forgotten": Case("SESSION_UNKNOWN", MISSING, "none is remembered", {}, _forgotten,
        settings={"session_idle_seconds": 1e6}),
    "feeding an expired session": Case("SESSION_EXPIRED", MISSING, "idle for 100 s", {"position": "3"},
        _feed_an_expired_session),
    "attaching to an expired session": Case("SESSION_EXPIRED", MISSING, "idle too long", {"position": "3"},
        _attach_to_an_expired_session),
    "feeding a session closed from outside": Case("SESSION_CLOSED", MISSING, "was closed", {"position": "3"},
        _feed_a_session_closed_from_outside),
    "attaching to a closed session": Case("SESSION_CLOSED", MISSING, "was closed", {"position": "3"},
        _attach_to_a_closed_session),
    "getting a closed session": Case("SESSION_CLOSED", MISSING, "was closed", {"position": "3"},
        _get_a_closed_session),
    "creating what exists": Case("SESSION_EXISTS", StatusCode.ALREADY_EXISTS, "at position 3",
        {"position": "3"}, _create_what_exists),
    "a feed of a session taken over": Case("TAKEN_OVER", StatusCode.ABORTED, "writer now",
        {"position": "3"}, _taken_over),
    "a generation taken over": Case("TAKEN_OVER", StatusCode.ABORTED, "writer now", {"position": ANY},
        _generation_taken_over),
    "a wrong position": Case("POSITION_MISMATCH", PRECONDITION, "holds 2 tokens to be applied, the session",
        {"client_position": "2", "server_position": "3"}, _wrong_position),
    "generating from a wrong position": Case("POSITION_MISMATCH", PRECONDITION, "holds 2 tokens",
        {"client_position": "2", "server_position": "0"}, generating(position=2)),
    "a feed after a failure": Case("FEED_AFTER_FAILURE", PRECONDITION, "send the position", {"position": "3"},
        _feed_after_failure),
    "numbers that leave the finite ones": Case("NON_FINITE", StatusCode.OUT_OF_RANGE, "token 2 of the feed",
        {"position": "2"}, _non_finite),

    "one stream too many": Case("TOO_MANY_STREAMS", EXHAUSTED, "2 streams are open",
        {"streams_max": "2", **RETRY}, _too_many_streams, settings={"streams_max": 2}),
    "one generation too many": Case("TOO_MANY_STREAMS", EXHAUSTED, "2 streams are open",
        {"streams_max": "2", **RETRY}, generating(), settings={"streams_max": 2}),
    "one handle too many": Case("TOO_MANY_HANDLES", EXHAUSTED, "uses 1 handles",
        {"handles_max": "1", **RETRY}, opening(), settings={"stream_handles_max": 1}),
    "one session too many": Case("TOO_MANY_SESSIONS", EXHAUSTED, "all 2 slots of tiny/2",
        {"slots_max": "2", **RETRY}, opening(), settings={"slots_max": 2}),
    "one generation's session too many": Case("TOO_MANY_SESSIONS", EXHAUSTED, "all 2 slots of tiny/2",
        {"slots_max": "2", **RETRY}, generating(), settings={"slots_max": 2}),
    "a feed that waited too long": Case("QUEUE_TIMEOUT", StatusCode.DEADLINE_EXCEEDED, "waited 30 s",
        RETRY, _queue_timeout),
    "a server that goes away": Case("DRAINING", StatusCode.UNAVAILABLE, "going away", RETRY, _drained,
        last=True),
    "a step that raises": Case("STEP_FAILED", StatusCode.INTERNAL, "token 2 of the feed",
        {"error_id": ANY}, _step_fails, mistakes=("feed_failed",)),
    "the unforeseen, in a feed": Case("INTERNAL", StatusCode.INTERNAL, "the log", {"error_id": ANY},
        _unforeseen_in_a_feed, mistakes=("feed_failed",)),
    "the unforeseen, in an answer": Case("INTERNAL", StatusCode.INTERNAL, "the log", {"error_id": ANY},
        _unforeseen_in_an_answer, mistakes=("feed_failed", "waiter_failed")),
    "the unforeseen, in a stream": Case("INTERNAL", StatusCode.INTERNAL, "the log", {"error_id": ANY},
        _unforeseen_in_a_stream, mistakes=("unforeseen",)),
    "the unforeseen, in a call": Case("INTERNAL", StatusCode.INTERNAL, "the log", {"error_id": ANY},
        _unforeseen_in_a_call, mistakes=("unforeseen",)),
}
# fmt: on


@pytest.fixture(scope="module")
def fragile(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of `many`, and `glass`: an RNN over values whose prediction is infinite once h is 1."""
    models = shutil.copytree(many, tmp_path_factory.mktemp("fragile") / "models")
    config = StackConfig(
        cell="rnn",
        layers=1,
        hidden_size=16,
        input="values",
        embedding_size=8,
        vocabulary_size=None,
        features=3,
    )
    weights = {key: np.zeros(shape, np.float32) for key, shape in config.weight_shapes().items()}
    for key, array in weights.items():
        if key in ("input.weight", "layers.0.weight_ih"):
            array[:] = 1e-3
        elif key.startswith("head") and array.ndim == 2:
            array[:] = 1e38
    write_version(models, config, weights, name="glass", version=1, tokenizer_json=None)
    return models


@pytest.mark.parametrize("name", CASES)
async def test_bad_input_is_told_and_harms_nobody(
    name: str,
    serve: Any,
    many: Path,
    fragile: Path,
    alone: Any,
    log: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code, reason, words, facts and when to try again; innocents before, meanwhile and after."""
    case = CASES[name]
    log.expected.update(case.mistakes)
    models = fragile if case.reason == "NON_FINITE" else many
    front = await serve(models, **{**BOUNDS, **case.settings})
    oracle = alone(many / "tiny" / "2")
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(front.running.target))
        talk = await stack.enter_async_context(front.talk())
        far = await stack.enter_async_context(front.talk(channel))
        scene = Scene(front, talk, Innocent(talk, oracle), Innocent(far, oracle), log, monkeypatch)
        for innocent in (scene.near, scene.far):
            await innocent.talk.open(INNOCENT)
            await innocent.say()
        before = await front.scrape()
        error = await case.provoke(scene)
        assert (error.reason, error.code) == (case.reason, case.code)
        assert error.domain == "cellstream"
        assert case.words in error.message
        if case.metadata is not ANY:
            assert error.metadata.keys() == case.metadata.keys()
            for key, expected in case.metadata.items():
                assert expected is ANY or error.metadata[key] == expected
        kind = BY_REASON[case.reason]
        assert error.retry_seconds == (2.5 if issubclass(kind, CapacityError) else None)
        if case.last:
            return
        counter = "refusals" if issubclass(kind, RequestError | CapacityError) else "errors"
        sample = f'cellstream_{counter}_total{{reason="{case.reason}"}}'
        assert (await front.scrape())[sample] > before[sample], "nothing is refused uncounted"
        for innocent in (scene.near, scene.far):
            await innocent.say()
            await innocent.check()


def test_every_row_of_the_error_table_is_reached() -> None:
    """By the cases above, each of which reaches its reason; and every error that can travel has a row."""
    assert {case.reason for case in CASES.values()} == set(CODES)
    travelling = (RequestError, SessionError, CapacityError, ServerError)
    assert {reason for reason, kind in BY_REASON.items() if issubclass(kind, travelling)} == set(CODES)
    assert all(CODES[case.reason].name == case.code.name for case in CASES.values())
