import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata

from cellstream import errors
from cellstream.client.status import from_rpc_error, from_status


def packed(*details: object) -> list[any_pb2.Any]:
    """Details as they travel in a status."""
    every = []
    for detail in details:
        every.append(any_pb2.Any())
        every[-1].Pack(detail)
    return every


def status(reason: str, code: StatusCode, **metadata: str) -> status_pb2.Status:
    """A status as a server of ours makes it, written out by hand."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain="cellstream", metadata=metadata)
    return status_pb2.Status(code=code.value[0], message="what was wrong", details=packed(info))


def failed(
    code: StatusCode, text: str = "", details: status_pb2.Status | bytes | None = None
) -> grpc.aio.AioRpcError:
    """A failed call, as grpc.aio raises it."""
    trailing = Metadata()
    if details is not None:
        raw = details if isinstance(details, bytes) else details.SerializeToString()
        trailing.add("grpc-status-details-bin", raw)
    return AioRpcError(code, Metadata(), trailing, details=text)


@pytest.mark.parametrize("reason", sorted(errors.BY_REASON))
def test_every_reason_comes_back_as_its_class(reason: str) -> None:
    """Many errors share a status code: only the reason tells a caller what to do."""
    error = from_status(status(reason, StatusCode.FAILED_PRECONDITION, client_position="5"))
    assert type(error) is errors.BY_REASON[reason]
    assert error.message == str(error) == "what was wrong"
    assert error.values == {"client_position": "5"}


@pytest.mark.parametrize("reason", sorted(errors.BY_REASON))
def test_every_reason_comes_back_from_a_failed_call(reason: str) -> None:
    """What ends a call carries the same status in its trailing metadata."""
    error = from_rpc_error(failed(StatusCode.ABORTED, "text", status(reason, StatusCode.ABORTED)))
    assert type(error) is errors.BY_REASON[reason]


def test_how_long_to_wait_comes_from_retry_info() -> None:
    """RetryInfo is the standard detail; that it is ours too must not matter."""
    told = status("TOO_MANY_SESSIONS", StatusCode.RESOURCE_EXHAUSTED)
    told.details.extend(
        packed(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000)))
    )
    error = from_status(told)
    assert isinstance(error, errors.TooManySessions)
    assert error.retry_after_seconds == 2.5


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (StatusCode.INVALID_ARGUMENT, errors.RequestError),
        (StatusCode.NOT_FOUND, errors.SessionError),
        (StatusCode.ABORTED, errors.SessionError),
        (StatusCode.RESOURCE_EXHAUSTED, errors.CapacityError),
        (StatusCode.UNAVAILABLE, errors.CapacityError),
        (StatusCode.INTERNAL, errors.ServerError),
        (StatusCode.DATA_LOSS, errors.ServerError),
    ],
)
def test_a_newer_server_s_reason_falls_back_to_what_its_code_asks_for(
    code: StatusCode, kind: type[errors.CellstreamError]
) -> None:
    """An old client still has to know whether to change the request, look at positions, or wait."""
    error = from_status(status("SOMETHING_NEW", code))
    assert type(error) is kind
    assert error.values["reason"] == "SOMETHING_NEW"


@pytest.mark.parametrize(
    "code",
    [StatusCode.UNAVAILABLE, StatusCode.INTERNAL, StatusCode.CANCELLED, StatusCode.DEADLINE_EXCEEDED],
)
def test_what_proxies_say_of_a_dead_server_is_a_lost_connection(code: StatusCode) -> None:
    """Envoy and nginx say INTERNAL, HAProxy CANCELLED, gRPC UNAVAILABLE: one resumes after all of them."""
    error = from_rpc_error(failed(code, "upstream reset"))
    assert type(error) is errors.ConnectionLost
    assert "upstream reset" in error.message
    assert code.name in error.message


def test_a_message_refused_by_grpc_itself_is_too_large() -> None:
    """Beyond twice our bound the core refuses it before any server of ours sees it: no details."""
    error = from_rpc_error(
        failed(
            StatusCode.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9000000 vs. 8388608)"
        )
    )
    assert type(error) is errors.MessageTooLarge


@pytest.mark.parametrize("details", [b"\xff\xff no status", status_pb2.Status(code=14), b""])
def test_details_that_are_not_ours_are_passed_over(details: status_pb2.Status | bytes) -> None:
    """A proxy may put anything there; the code still speaks."""
    assert type(from_rpc_error(failed(StatusCode.UNAVAILABLE, "gone", details))) is errors.ConnectionLost


def test_an_error_info_of_another_domain_is_not_read_as_ours() -> None:
    """SESSION_UNKNOWN of some other service between says nothing about a session of ours."""
    info = error_details_pb2.ErrorInfo(reason="SESSION_UNKNOWN", domain="proxy.example")
    error = from_status(status_pb2.Status(code=StatusCode.UNKNOWN.value[0], details=packed(info)))
    assert type(error) is errors.ServerError


def test_the_way_there_and_back_changes_nothing() -> None:
    """The server's table and this one are inverses for every error that can reach the wire."""
    from cellstream.api.status import CODES, to_status

    for reason in CODES:
        sent = errors.BY_REASON[reason]("what, and what to do", position=7)
        back = from_status(to_status(sent))
        assert (type(back), back.message, back.values.get("position")) == (type(sent), sent.message, "7")
