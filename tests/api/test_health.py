"""Health: who asks is told whether this server takes calls now, and no watch costs the server anything.

The expectations are health.proto's comments and gRPC's health-checking.md. The messages are read with the
classes of grpcio-health-checking, which is nobody of ours; only List, which it lacks, with our own.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.api.call_in_memory import CallInMemory

from cellstream.api.health import LISTED_MAX, REQUEST_BYTES_MAX, Health
from cellstream.api.standard_protos import message_class
from cellstream.errors import MalformedMessage, MessageTooLarge, TooManyStreams
from cellstream.settings import Settings
from cellstream.transport.call import OK, Code, Why

Response = health_pb2.HealthCheckResponse
SERVING, NOT_SERVING, SERVICE_UNKNOWN = Response.SERVING, Response.NOT_SERVING, Response.SERVICE_UNKNOWN
LISTING = message_class("grpc.health.v1.HealthListResponse")

SECONDS = 20.0
"""Longer than anything takes."""


@pytest.fixture
def health() -> Health:
    """A server that is up, with one service that is served and one that is not."""
    health = Health(Settings(watches_max=2))
    health.set("", serving=True)
    health.set("one.Service", serving=True)
    health.set("other.Service", serving=False)
    return health


def request(service: str = "") -> bytes:
    """A request, of Check or Watch."""
    return health_pb2.HealthCheckRequest(service=service).SerializeToString()


def call(health: Health, method: str, raw: bytes, room: int | None = None) -> CallInMemory:
    """A call of this method, its request sent."""
    made = CallInMemory(health.methods()[f"/grpc.health.v1.Health/{method}"], room)
    made.ask(raw)
    return made


def statuses(watch: CallInMemory) -> list[int]:
    """What a watch, or a check, was told."""
    return [Response.FromString(message).status for message in watch.sent]


@pytest.mark.parametrize(
    ("service", "status"), [("", SERVING), ("one.Service", SERVING), ("other.Service", NOT_SERVING)]
)
def test_check_tells_the_status_now(health: Health, service: str, status: int) -> None:
    """What a load balancer acts on."""
    check = call(health, "Check", request(service))
    assert statuses(check) == [status]
    assert check.status == OK


def test_check_of_an_unknown_service_is_not_found(health: Health) -> None:
    """The proto: the call will fail with status NOT_FOUND."""
    check = call(health, "Check", request("no.Such"))
    assert check.sent == []
    assert check.status is not None
    assert check.status.code is Code.NOT_FOUND


def test_list_tells_all(health: Health) -> None:
    """A map from each name to its status."""
    listed = call(health, "List", b"")
    found = {name: entry.status for name, entry in LISTING.FromString(listed.sent[0]).statuses.items()}
    assert found == {"": SERVING, "one.Service": SERVING, "other.Service": NOT_SERVING}
    assert listed.status == OK


def test_list_of_too_many_is_refused(health: Health) -> None:
    """The proto: RESOURCE_EXHAUSTED beyond the maximum, and the maximum itself is still told."""
    for number in range(LISTED_MAX - 3):
        health.set(f"service.{number}", serving=True)
    full = call(health, "List", b"")
    assert len(LISTING.FromString(full.sent[0]).statuses) == LISTED_MAX
    health.set("one.too.many", serving=True)
    refused = call(health, "List", b"")
    assert refused.sent == []
    assert refused.status is not None
    assert refused.status.code is Code.RESOURCE_EXHAUSTED


def test_watch_tells_the_status_now_and_each_that_follows(health: Health) -> None:
    """A change of another service is none of its business, and no change is no message."""
    watch = call(health, "Watch", request("one.Service"))
    assert statuses(watch) == [SERVING]
    health.set("one.Service", serving=True)
    health.set("other.Service", serving=True)
    watch.turn()
    assert statuses(watch) == [SERVING]
    health.set("one.Service", serving=False)
    watch.turn()
    assert statuses(watch) == [SERVING, NOT_SERVING]
    assert watch.status is None


def test_watch_of_an_unknown_service_goes_on_until_it_is_known(health: Health) -> None:
    """The proto: SERVICE_UNKNOWN, and the call is not terminated."""
    watch = call(health, "Watch", request("late.Service"))
    assert statuses(watch) == [SERVICE_UNKNOWN]
    health.set("late.Service", serving=True)
    watch.turn()
    assert statuses(watch) == [SERVICE_UNKNOWN, SERVING]
    assert watch.status is None


def test_a_slow_watch_is_told_the_newest_only(health: Health) -> None:
    """A million changes cost nothing where nobody reads them."""
    watch = call(health, "Watch", request("one.Service"), room=1)
    for serving in (False, True, False):
        health.set("one.Service", serving=serving)
        watch.turn()
    assert statuses(watch) == [SERVING]
    watch.give_room(None)
    assert statuses(watch) == [SERVING, NOT_SERVING]


def test_watches_are_bounded_and_leave_their_place(health: Health) -> None:
    """Each holds memory for as long as its client likes; a check costs nothing afterwards, and goes on."""
    first, second = (call(health, "Watch", request()) for _ in range(2))
    third = call(health, "Watch", request())
    assert isinstance(third.raised, TooManyStreams)
    assert third.sent == []
    assert statuses(call(health, "Check", request())) == [SERVING]
    first.break_off(Why.LOST)
    fourth = call(health, "Watch", request())
    assert statuses(fourth) == [SERVING]
    assert second.raised is None
    assert isinstance(call(health, "Watch", request()).raised, TooManyStreams)


def test_a_shutdown_tells_every_watch_and_ends_it(health: Health) -> None:
    """A Watch never ends by itself; one that went on would hold up a drain to its last second."""
    known, unknown = call(health, "Watch", request("one.Service")), call(health, "Watch", request("no.Such"))
    health.shutdown()
    health.set("one.Service", serving=True)  # too late to change anything
    for watch in (known, unknown):
        watch.turn()
        assert watch.status is not None
        assert watch.status.code is Code.UNAVAILABLE
    assert statuses(known) == [SERVING, NOT_SERVING]
    assert statuses(unknown) == [SERVICE_UNKNOWN]
    assert repr(health) == "<Health: 0 of 3 services serving, 0 watches>"


def test_a_slow_watch_hears_not_serving_before_its_end(health: Health) -> None:
    """The end waits for the message, not the other way round."""
    watch = call(health, "Watch", request(), room=1)
    health.shutdown()
    watch.turn()
    assert watch.status is None
    watch.give_room(None)
    assert statuses(watch) == [SERVING, NOT_SERVING]
    assert watch.status is not None


def test_after_a_shutdown_the_answer_is_not_serving(health: Health) -> None:
    """A drain keeps listening, so it is asked."""
    health.shutdown()
    assert statuses(call(health, "Check", request())) == [NOT_SERVING]
    late = call(health, "Watch", request())
    assert statuses(late) == [NOT_SERVING]
    assert late.status is not None
    assert late.status.code is Code.UNAVAILABLE


@pytest.mark.parametrize("method", ["Check", "Watch", "List"])
@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"\x0a\x05abc", MalformedMessage),  # a name of five bytes, of which there are three
        (b"\x07", MalformedMessage),  # there is no wire type 7
        (b"\x0a\x81\x08" + b"x" * (REQUEST_BYTES_MAX + 1), MessageTooLarge),
    ],
)
def test_a_malformed_request_is_refused_in_our_words(
    health: Health, method: str, raw: bytes, kind: type[Exception]
) -> None:
    """It was UNKNOWN and ten lines in the log."""
    refused = call(health, method, raw)
    assert isinstance(refused.raised, kind)
    assert refused.sent == []
    assert "0 watches" in repr(health)


def test_a_name_that_is_no_utf_8_is_refused(health: Health) -> None:
    """Protobuf: a string must be UTF-8."""
    assert isinstance(call(health, "Check", b"\x0a\x02\xff\xfe").raised, MalformedMessage)


# ---------------------------------------------------------------- through a server


async def test_a_drain_tells_watches_and_waits_for_none(serve: Any) -> None:
    """The published stubs against our handlers; nor does a call of reflection that asks nothing more."""
    front = await serve(drain_seconds=3600.0)
    watch = health_pb2_grpc.HealthStub(front.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(front.channel).ServerReflectionInfo()
    await reflection.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    assert (await reflection.read()).list_services_response.service
    async with asyncio.timeout(SECONDS):
        stopping = asyncio.create_task(front.server.stop())
        assert (await watch.read()).status == NOT_SERVING
        for call in (watch, reflection):
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await call.read()
            assert ended.value.code() is StatusCode.UNAVAILABLE
            assert "going away" in (ended.value.details() or "")
        await stopping


async def test_an_unknown_service_is_not_found_on_the_wire(front: Any) -> None:
    """As above, for Check."""
    stub = health_pb2_grpc.HealthStub(front.channel)
    failed = await front.failure(stub.Check(health_pb2.HealthCheckRequest(service="no.Such")))
    assert failed.code is StatusCode.NOT_FOUND


async def test_malformed_requests_are_invalid_on_the_wire(front: Any, log: Any) -> None:
    """And the log has no line of them."""
    for method in ("Check", "List"):
        check = front.channel.unary_unary(f"/grpc.health.v1.Health/{method}")
        failed = await front.failure(check(b"\x0a\x05abc"))
        assert (failed.code, failed.reason) == (StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    assert not [entry for entry in log.entries if entry["log_level"] != "info"]


async def test_list_on_the_wire(front: Any) -> None:
    """The whole server and each of our services."""
    listed = await front.channel.unary_unary("/grpc.health.v1.Health/List")(b"")
    found = {name: entry.status for name, entry in LISTING.FromString(listed).statuses.items()}
    services = {f"cellstream.v1.{name}Service" for name in ("Prediction", "Session", "Model")}
    assert found == dict.fromkeys({"", *services}, SERVING)
