"""Sessions and models seen from outside a stream; health, reflection, what a scenario leaves in /metrics."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cellstream.v1 import model_pb2, session_pb2
from cellstream.v1 import prediction_pb2 as pb


async def listed(front: Any, **fields: Any) -> session_pb2.ListSessionsResponse:
    """A page of sessions."""
    return await front.session.ListSessions(session_pb2.ListSessionsRequest(**fields))


async def test_a_session_as_the_server_sees_it(front: Any) -> None:
    """Position, who serves it, whether a stream holds it, how long since its last feed; its id as a hash."""
    request = session_pb2.GetSessionRequest(session_id="alice")
    async with front.talk() as talk:
        await talk.open(0, "alice")
        await talk.feed("abc", id=1)
        front.clock.advance(12.5)
        session = (await front.session.GetSession(request)).session
        assert (session.model, session.version, session.position, session.held) == ("tiny", "1", 3, True)
        assert session.idle.ToTimedelta().total_seconds() == 12.5
        assert "alice" not in str(session)
        await talk.feed("d", id=2)
        await talk.end()
    await front.until(lambda: not front.registry.streams)
    later = (await front.session.GetSession(request)).session
    assert (later.position, later.held) == (4, False)
    assert later.idle.ToTimedelta().total_seconds() == 0
    assert later.session_hash == session.session_hash


async def test_a_hash_leads_to_the_log_and_not_to_the_id(serve: Any, log: Any) -> None:
    """The same in logs and listings; another on another server, so that no table of hashes helps."""
    hashes = []
    for _ in range(2):
        front = await serve()
        async with front.talk() as talk:
            await talk.open(0, "alice")
            (session,) = (await listed(front)).sessions
            hashes.append(session.session_hash)
    assert hashes[0] != hashes[1]
    assert hashlib.blake2b(b"alice", digest_size=8).hexdigest() not in hashes
    assert {entry["session"] for entry in log.of("session_opened")} == set(hashes)
    assert "alice" not in str(log.entries)


async def test_all_sessions_page_by_page(front: Any) -> None:
    """The oldest first; what is made or ended in between neither repeats nor hides another."""
    async with front.talk() as talk:
        for handle in range(7):
            await talk.open(handle, f"session {handle}")
            await talk.feed("a" * (handle + 1), handle=handle, id=handle)
        whole = await listed(front)
        assert [session.position for session in whole.sessions] == list(range(1, 8))
        assert whole.next_page_token == ""
        assert (await listed(front, page_size=7)).next_page_token == "", "no empty page follows a full one"
        first = await listed(front, page_size=3)
        assert [session.position for session in first.sessions] == [1, 2, 3]
        await front.session.CloseSession(session_pb2.CloseSessionRequest(session_id="session 1"))
        await front.session.CloseSession(session_pb2.CloseSessionRequest(session_id="session 4"))
        await talk.feed("x", handle=0, id=100)  # the order is not that of use
        await talk.open(9, "session 9")
        second = await listed(front, page_size=3, page_token=first.next_page_token)
        assert [session.position for session in second.sessions] == [4, 6, 7]
        third = await listed(front, page_size=3, page_token=second.next_page_token)
        assert [session.position for session in third.sessions] == [0]
        assert third.next_page_token == ""


async def test_a_page_is_bounded(serve: Any) -> None:
    """Whatever is asked for; unasked, it is 100."""
    front = await serve(slots_max=120, sessions_page_max=110)
    async with front.talk() as talk:
        await talk.say(opens=[pb.Open(handle=handle) for handle in range(120)])
        await talk.opened(119)
        assert len((await listed(front)).sessions) == 100
        assert len((await listed(front, page_size=5000)).sessions) == 110


async def test_closing_from_outside_tells_the_holder(front: Any) -> None:
    """Held or not, it ends; its unapplied feeds with it, and its slot is free."""
    brake = front.brake()
    async with front.talk() as talk:
        await talk.open(0, "alice")
        await talk.feed("abc", id=1)
        brake.hold()
        await talk.say(feeds=[pb.Feed(id=2, text="unapplied")])
        await front.until(lambda: front.engine().waiting == 1)
        closed = await front.session.CloseSession(session_pb2.CloseSessionRequest(session_id="alice"))
        assert closed.position == 3
        assert front.engine().slots_taken == front.engine().waiting == 0
        brake.release()
        result = await talk.result(2)
        assert (front.told(result.error).reason, result.position) == ("SESSION_CLOSED", 3)
        event = await talk.event(0)
        assert (event.cause, event.position) == (pb.CAUSE_CLOSED, 3)
        assert (await talk.open(0, "bob")).created, "the handle is free"
        await talk.say(closes=[pb.Close(handle=0, keep=True)])
        await talk.event(0)
        closed = await front.session.CloseSession(session_pb2.CloseSessionRequest(session_id="bob"))
        assert closed.position == 0


async def test_what_each_model_is(serve: Any, many: Path) -> None:
    """All that a client must know to feed it, and where its numbers come from."""
    front = await serve(many, default_model="tiny")
    models = (await front.model.ListModels(model_pb2.ListModelsRequest())).models
    assert [(model.name, model.version) for model in models] == [
        ("letters", "1"),
        ("meter", "1"),
        ("tiny", "2"),
        ("tiny", "1"),
    ]
    assert [model.is_default for model in models] == [False, False, True, False]
    letters, meter, tiny, _ = models
    assert (letters.input_kind, letters.vocabulary_size, letters.features) == (1, 40, 0)
    assert (meter.input_kind, meter.vocabulary_size, meter.features) == (2, 0, 3)
    assert [(state.name, state.dtype, list(state.shape)) for state in tiny.states] == [
        ("hidden", "float32", [2, 16]),
        ("cell", "float32", [2, 16]),
    ]
    assert list(tiny.gates) == ["forget", "input", "output", "candidate"]
    assert list(meter.gates) == ["reset", "update", "candidate"]
    assert list(letters.gates) == []
    manifest = (many / "tiny" / "2" / "manifest.json").read_bytes()
    assert tiny.manifest_digest == hashlib.sha256(manifest).hexdigest()
    assert len({model.numerics_digest for model in models}) == 4
    for asked, answered in (({}, "2"), ({"name": "tiny"}, "2"), ({"name": "tiny", "version": "1"}, "1")):
        model = (await front.model.GetModel(model_pb2.GetModelRequest(**asked))).model
        assert (model.name, model.version) == ("tiny", answered)


async def test_equal_digests_mean_equal_answers(serve: Any, tiny: Path, many: Path) -> None:
    """Two servers of the same weights have the same numerics digest; of other weights, another."""
    digests = [
        {served.version: served.engine.numerics_digest for served in front.registry.catalogue}
        for front in (await serve(tiny), await serve(tiny))
    ]
    assert digests[0] == digests[1]
    other = await serve(many, default_model="tiny")
    found = {
        served.version: served.engine.numerics_digest
        for served in other.registry.catalogue
        if served.name == "tiny"
    }
    assert found["1"] == digests[0]["1"]
    assert found["2"] != found["1"]


@pytest.mark.parametrize(
    "service",
    ["", "cellstream.v1.PredictionService", "cellstream.v1.SessionService", "cellstream.v1.ModelService"],
)
async def test_health(front: Any, service: str) -> None:
    """SERVING once it answers at all: it listens only when every model is loaded and checked."""
    stub = health_pb2_grpc.HealthStub(front.channel)
    found = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    assert found.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection(front: Any) -> None:
    """A tool like grpcurl finds every service, and the messages, from the server alone."""
    stub = reflection_pb2_grpc.ServerReflectionStub(front.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="cellstream.v1.PredictRequest"),
    ]
    call = stub.ServerReflectionInfo(iter(asked))
    names, file = [response async for response in call]
    assert {service.name for service in names.list_services_response.service} >= {
        "cellstream.v1.PredictionService",
        "cellstream.v1.SessionService",
        "cellstream.v1.ModelService",
        "grpc.health.v1.Health",
    }
    assert b"EVERY_STEP" in file.file_descriptor_response.file_descriptor_proto[0]


async def test_every_metric_moves_as_it_should(front: Any) -> None:
    """One scenario, counted by hand, read over HTTP."""
    brake = front.brake()
    before = await front.scrape()
    async with front.talk() as talk, front.talk() as other:
        await talk.say(
            opens=[pb.Open(handle=0, session_id="alice"), pb.Open(handle=1), pb.Open(handle=2)],
            feeds=[pb.Feed(handle=handle, id=handle, text="abcd") for handle in range(3)],
        )
        for handle in range(3):
            await talk.result(handle)
        await talk.say(resets=[pb.Reset(handle=1)], closes=[pb.Close(handle=2)])
        await talk.event(1)
        await talk.event(2)
        await talk.feed(ids=[999], handle=1, id=3)
        await talk.feed("x", handle=1, id=4, position=77)
        assert (await other.open(0, "alice")).position == 4
        await talk.event(0)
        brake.hold()
        front.clock.advance(0.25)
        await other.say(feeds=[pb.Feed(id=5, text="zz"), pb.Feed(id=6, text="z")])
        await front.until(lambda: front.engine().waiting == 1)
        front.clock.advance(0.75)
        during = await front.scrape()
        brake.release()
        await other.result(6)
        await front.generate(text="To be", max_tokens=7, seed=1)
        await front.until(lambda: len(front.registry.streams) == 2)
        await talk.feed("y", handle=1, id=7, position=0)
        after = await front.scrape()

    def moved(name: str) -> float:
        return after[f"cellstream_{name}"] - before[f"cellstream_{name}"]

    assert moved("streams_opened_total") == 3, "a generation is one too"
    assert moved("sessions_opened_total") == 4
    assert moved('sessions_ended_total{cause="closed"}') == 2, "the generation's own too"
    assert moved("takeovers_total") == 1
    assert moved("resets_total") == 1
    assert moved('refusals_total{reason="TOKEN_OUT_OF_RANGE"}') == 1
    assert moved('errors_total{reason="POSITION_MISMATCH"}') == 1
    assert moved("waiter_errors_total") == 0
    tokens = 3 * 4 + 3 + (5 + 7) + 1
    assert moved("tokens_total") == tokens
    assert 0 < moved("calls_total") <= moved("steps_total") <= tokens
    assert moved("call_seconds_count") == moved("batch_rows_count") == moved("calls_total")
    assert moved("batch_rows_sum") <= tokens
    fed = 3 + 2 + 1
    assert moved("feed_seconds_count") == fed, "a refusal says nothing about latency"
    assert moved("queue_seconds_count") == 3 + 2 + 1 + 1, "those that took a token; the generation's is one"
    assert math.isclose(moved("feed_seconds_sum"), 2 * 0.75), "by the server's clock, which stood still else"
    assert math.isclose(moved("queue_seconds_sum"), 2 * 0.75)
    assert moved("generate_first_piece_seconds_count") == 1
    assert moved("generate_piece_seconds_count") <= 6

    assert before["cellstream_sessions"] == before["cellstream_streams"] == before["cellstream_slots"] == 0
    assert during["cellstream_feeds_waiting"] == 1
    assert during["cellstream_queue_age_seconds"] == 0.75
    assert (during["cellstream_sessions"], during["cellstream_slots"]) == (2, 2)
    assert (during["cellstream_sessions_held"], during["cellstream_streams"]) == (2, 2)
    assert after["cellstream_feeds_waiting"] == after["cellstream_queue_age_seconds"] == 0
    assert after["cellstream_slots_max"] == 64
    assert after["cellstream_model_info"] == 1
    assert after["cellstream_draining"] == 0
    assert after["process_cpu_seconds_total"] > 0
    assert not np.isnan(list(after.values())).any()


async def test_sessions_that_end_are_counted_by_cause(front: Any) -> None:
    """Closed, expired, ended with their stream: no session leaves without a word on the dashboard."""
    async with front.talk() as talk:
        await talk.say(opens=[pb.Open(handle=0), pb.Open(handle=1), pb.Open(handle=2, session_id="alice")])
        await talk.opened(2)
        await talk.say(closes=[pb.Close(handle=0)])
        await talk.event(0)
        await talk.end()
    await front.until(lambda: not front.registry.streams)
    front.sweep_after(3600)
    found = await front.scrape()
    ended = {
        cause: found[f'cellstream_sessions_ended_total{{cause="{cause}"}}']
        for cause in ("closed", "expired", "stream_ended", "drained")
    }
    assert ended == {"closed": 1, "expired": 1, "stream_ended": 1, "drained": 0}
    assert found["cellstream_sessions"] == 0
