"""Reflection: a tool that knows nothing learns everything from the server, and holds nothing of it.

The expectations are the comments of reflection.proto. Messages are read with grpcio-reflection's classes,
which is nobody of ours and knows v1alpha only; v1 has the same messages.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tests.api.call_in_memory import CallInMemory

from cellstream.api.reflection import (
    REQUEST_BYTES_MAX,
    REQUESTS_WAITING_MAX,
    Index,
    Reflection,
)
from cellstream.api.standard_protos import message_class
from cellstream.errors import Draining, MalformedMessage, MessageTooLarge, TooManyStreams
from cellstream.settings import Settings
from cellstream.transport.call import OK, Code, Method
from cellstream.v1 import model_pb2, prediction_pb2, session_pb2

Request, Response = reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse

OURS = tuple(
    service.full_name
    for file in (prediction_pb2, session_pb2, model_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
VERSIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


@pytest.fixture
def reflection() -> Reflection:
    """What a server of ours serves, for two tools at most."""
    return Reflection(OURS, Settings(watches_max=2))


@pytest.fixture
def methods(reflection: Reflection) -> dict[str, Method]:
    """Its methods, by path."""
    return reflection.methods()


@pytest.fixture(params=VERSIONS)
def method(request: pytest.FixtureRequest, methods: dict[str, Method]) -> Method:
    """Each version."""
    return methods[f"/{request.param}/ServerReflectionInfo"]


def ask(method: Method, *requests: Any) -> list[Any]:
    """All answers to these requests, in one call, which ends well."""
    call = CallInMemory(method)
    call.receive(*(request.SerializeToString() for request in requests))
    call.half_close()
    assert call.raised is None
    assert call.status == OK
    return [Response.FromString(message) for message in call.sent]


def files(response: Any) -> list[FileDescriptorProto]:
    """The files of an answer."""
    assert response.WhichOneof("message_response") == "file_descriptor_response"
    return [
        FileDescriptorProto.FromString(raw) for raw in response.file_descriptor_response.file_descriptor_proto
    ]


def names(response: Any) -> list[str]:
    """The names of the files of an answer."""
    return [file.name for file in files(response)]


def test_services_are_listed(method: Method) -> None:
    """All of them, its own too."""
    (response,) = ask(method, Request(list_services="*", host="here"))
    found = {service.name for service in response.list_services_response.service}
    assert found == {*OURS, "grpc.health.v1.Health", *VERSIONS}
    assert response.valid_host == "here"
    assert response.original_request == Request(list_services="*", host="here")


def test_a_file_comes_first_and_what_it_imports_behind_it(method: Method) -> None:
    """The proto: with transitive dependencies. A pool can be built of what is sent."""
    (response,) = ask(method, Request(file_by_filename="cellstream/v1/prediction.proto"))
    found = files(response)
    assert found[0].name == "cellstream/v1/prediction.proto"
    assert found[0] == FileDescriptorProto.FromString(prediction_pb2.DESCRIPTOR.serialized_pb)
    sent = {file.name for file in found}
    assert len(sent) == len(found), "none twice"
    assert all(imported in sent for file in found for imported in file.dependency)
    assert "google/protobuf/any.proto" in sent, "of google.rpc.Status, which it imports"


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("cellstream.v1.PredictionService", "cellstream/v1/prediction.proto"),
        ("cellstream.v1.PredictionService.Predict", "cellstream/v1/prediction.proto"),
        ("cellstream.v1.PredictRequest", "cellstream/v1/prediction.proto"),
        ("cellstream.v1.PredictRequest.feeds", "cellstream/v1/prediction.proto"),
        ("cellstream.v1.WANT_EVERY_STEP", "cellstream/v1/prediction.proto"),
        ("google.rpc.Status", "google/rpc/status.proto"),
        ("google.rpc.ErrorInfo", "google/rpc/error_details.proto"),
        ("google.protobuf.Any", "google/protobuf/any.proto"),
        ("grpc.health.v1.Health.List", "grpc/health/v1/health.proto"),
        ("grpc.health.v1.HealthCheckResponse.ServingStatus", "grpc/health/v1/health.proto"),
        ("grpc.health.v1.HealthCheckResponse.NOT_SERVING", "grpc/health/v1/health.proto"),
        ("grpc.health.v1.HealthListResponse.StatusesEntry", "grpc/health/v1/health.proto"),
        ("grpc.reflection.v1.ServerReflectionRequest.message_request", "grpc/reflection/v1/reflection.proto"),
        ("grpc.reflection.v1alpha.ErrorResponse", "grpc/reflection/v1alpha/reflection.proto"),
    ],
)
def test_each_kind_of_symbol_leads_to_its_file(method: Method, symbol: str, file: str) -> None:
    """Services, methods, messages, fields, enums and their values, oneofs; ours and the standard ones."""
    (response,) = ask(method, Request(file_containing_symbol=symbol))
    assert names(response)[0] == file


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (Request(file_by_filename="no/such.proto"), Code.NOT_FOUND),
        (Request(file_containing_symbol="no.Such"), Code.NOT_FOUND),
        (Request(file_containing_symbol="grpc.testing.TestService"), Code.NOT_FOUND),
        (
            Request(
                file_containing_extension=reflection_pb2.ExtensionRequest(
                    containing_type="cellstream.v1.PredictRequest", extension_number=1000
                )
            ),
            Code.NOT_FOUND,
        ),
        (Request(all_extension_numbers_of_type="no.Such"), Code.NOT_FOUND),
        (Request(host="nothing asked"), Code.INVALID_ARGUMENT),
    ],
)
def test_what_is_not_there_is_an_answer_and_the_call_goes_on(
    method: Method, request_: Any, code: Code
) -> None:
    """An error of one request is in its response; the next is answered."""
    failed, listed = ask(method, request_, Request(list_services=""))
    assert failed.WhichOneof("message_response") == "error_response"
    assert failed.error_response.error_code == code
    assert failed.error_response.error_message
    assert failed.original_request == request_
    assert listed.list_services_response.service


def test_a_message_without_extensions_has_no_numbers(method: Method) -> None:
    """Known and none is not the same as unknown."""
    (response,) = ask(method, Request(all_extension_numbers_of_type="cellstream.v1.PredictRequest"))
    assert response.WhichOneof("message_response") == "all_extension_numbers_response"
    assert response.all_extension_numbers_response.base_type_name == "cellstream.v1.PredictRequest"
    assert list(response.all_extension_numbers_response.extension_number) == []


def extended() -> FileDescriptor:
    """A file with extensions, at its top and within a message; none of ours has any."""
    proto = FileDescriptorProto(name="extended.proto", package="demo", syntax="proto2")
    base = proto.message_type.add(name="Base")
    base.extension_range.add(start=100, end=200)
    field = {
        "extendee": ".demo.Base",
        "type": FieldDescriptorProto.TYPE_INT32,
        "label": FieldDescriptorProto.LABEL_OPTIONAL,
    }
    proto.extension.add(name="outer", number=150, **field)
    proto.message_type.add(name="Nest").extension.add(name="inner", number=101, **field)
    return DescriptorPool().AddSerializedFile(proto.SerializeToString())


def test_extensions_are_found_by_number_and_by_name() -> None:
    """The two requests that are about them, on a file that has some."""
    index = Index([], [extended()])
    assert index.extension_numbers("demo.Base") == [101, 150]
    for number in (101, 150):
        found = index.file_of_extension("demo.Base", number)
        assert found is not None
        assert found.name == "extended.proto"
    assert index.file_of_extension("demo.Base", 102) is None
    for symbol in ("demo.outer", "demo.Nest.inner"):
        assert index.file_of_symbol(symbol) is not None


def test_answers_are_made_and_input_is_paid_when_there_is_room(methods: dict[str, Method]) -> None:
    """A client that asks and never reads gets no further than its window."""
    request = Request(list_services="").SerializeToString()
    call = CallInMemory(methods[f"/{VERSIONS[0]}/ServerReflectionInfo"], room=1)
    call.receive(*[request] * 5)
    call.half_close()
    assert len(call.sent) == 1
    assert call.consumed_bytes == len(request)
    assert call.status is None
    call.give_room(None)
    assert len(call.sent) == 5
    assert call.consumed_bytes == 5 * len(request)
    assert call.status == OK


def test_empty_requests_are_bounded_too(methods: dict[str, Method]) -> None:
    """No window counts messages of no bytes."""
    call = CallInMemory(methods[f"/{VERSIONS[0]}/ServerReflectionInfo"], room=0)
    call.receive(*[b""] * REQUESTS_WAITING_MAX)
    assert call.raised is None
    call.receive(b"")
    assert isinstance(call.raised, MessageTooLarge)


@pytest.mark.parametrize(
    ("raw", "kind"), [(b"\x3a\x05abc", MalformedMessage), (b"x" * (REQUEST_BYTES_MAX + 1), MessageTooLarge)]
)
def test_what_is_no_request_ends_the_call_in_our_words(
    method: Method, raw: bytes, kind: type[Exception]
) -> None:
    """Behind the answers to those before it."""
    call = CallInMemory(method)
    call.receive(Request(list_services="").SerializeToString())
    call.receive(raw)
    assert len(call.sent) == 1
    assert isinstance(call.raised, kind)


def test_calls_are_bounded_over_both_versions(methods: dict[str, Method]) -> None:
    """Each may stay open for ever; one that goes leaves its place."""
    request = Request(list_services="").SerializeToString()
    calls = [
        CallInMemory(methods[f"/{version}/ServerReflectionInfo"]) for version in (*VERSIONS, VERSIONS[0])
    ]
    for call in calls:
        call.receive(request)
    assert [type(call.raised) for call in calls] == [type(None), type(None), TooManyStreams]
    calls[0].half_close()
    another = CallInMemory(methods[f"/{VERSIONS[1]}/ServerReflectionInfo"])
    another.receive(request)
    assert len(another.sent) == 1


def test_a_shutdown_ends_calls_behind_their_answers_and_takes_no_more(
    reflection: Reflection, method: Method
) -> None:
    """A tool that stays open and asks nothing would hold up a drain to its last second."""
    request = Request(list_services="").SerializeToString()
    call = CallInMemory(method, room=0)
    call.receive(request)
    reflection.shutdown()
    call.turn()
    assert call.status is None
    call.give_room(2)
    assert len(call.sent) == 1
    assert call.status is not None
    assert call.status.code is Code.UNAVAILABLE
    late = CallInMemory(method)
    late.receive(request)
    assert isinstance(late.raised, Draining)
    assert repr(reflection).endswith(" 0 calls>")


def test_ours_and_the_packages_messages_live_side_by_side() -> None:
    """Two protos of one name in one pool would be an error at import, in whatever order."""
    ours = message_class("grpc.health.v1.HealthCheckResponse")
    theirs = health_pb2.HealthCheckResponse
    assert ours is not theirs
    assert theirs.FromString(ours(status=1).SerializeToString()).status == theirs.SERVING
    assert "List" in ours.DESCRIPTOR.file.services_by_name["Health"].methods_by_name
    both = message_class("grpc.reflection.v1alpha.ServerReflectionRequest"), Request
    assert [field.number for field in both[0].DESCRIPTOR.fields] == [
        field.number for field in both[1].DESCRIPTOR.fields
    ]


# ---------------------------------------------------------------- through a server


async def test_a_client_of_others_learns_the_services_from_the_server_alone(front: Any) -> None:
    """grpcio-reflection's own client fills an empty pool, over the wire, and calls what it found."""

    def learn() -> set[str]:
        with grpc.insecure_channel(front.running.target) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            pool = DescriptorPool(database)
            found = set(database.get_services())
            for name in found:
                service = pool.FindServiceByName(name)
                assert service.methods
            request = pool.FindMessageTypeByName("cellstream.v1.PredictRequest")
            assert {field.name for field in request.fields} >= {"opens", "feeds"}
            return found

    assert await asyncio.to_thread(learn) == {*OURS, "grpc.health.v1.Health", *VERSIONS}


async def test_a_malformed_request_is_invalid_on_the_wire(front: Any, log: Any) -> None:
    """And the log has no line of it."""
    for version in VERSIONS:
        call = front.channel.stream_stream(f"/{version}/ServerReflectionInfo")(iter([b"\x3a\x05abc"]))
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call.read()
        told = front.told(failed.value)
        assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    assert not [entry for entry in log.entries if entry["log_level"] != "info"]
