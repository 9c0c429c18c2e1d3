"""The one table from an error's reason to its gRPC status code, and what an error is on the wire.

| code                | means                                                                  |
|---------------------|------------------------------------------------------------------------|
| INVALID_ARGUMENT    | the request is wrong; waiting cannot mend it                           |
| NOT_FOUND           | what it names is not here                                              |
| ALREADY_EXISTS      | what it would create is here                                           |
| FAILED_PRECONDITION | the session is not where the client believes; its position is told     |
| ABORTED             | somebody else became the writer                                        |
| OUT_OF_RANGE        | the numbers of the model left the finite ones                          |
| RESOURCE_EXHAUSTED  | waiting can mend it; RetryInfo says how long                           |
| DEADLINE_EXCEEDED   | it waited its longest                                                  |
| UNAVAILABLE         | the server is going away                                               |
| INTERNAL            | the server's fault                                                     |

One exception: a message beyond twice `message_bytes_max` is refused by gRPC itself, before we see it:
RESOURCE_EXHAUSTED without details.
"""

from __future__ import annotations

from typing import Any, NoReturn

from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from grpc.aio import ServicerContext

from cellstream.errors import CapacityError, CellstreamError, RequestError
from cellstream.metrics import Metrics

DOMAIN = "cellstream"

CODES: dict[str, StatusCode] = {
    "MALFORMED_MESSAGE": StatusCode.INVALID_ARGUMENT,
    "MESSAGE_TOO_LARGE": StatusCode.INVALID_ARGUMENT,
    "HANDLE_IN_USE": StatusCode.INVALID_ARGUMENT,
    "HANDLE_UNKNOWN": StatusCode.INVALID_ARGUMENT,
    "SESSION_ID_INVALID": StatusCode.INVALID_ARGUMENT,
    "MODEL_UNKNOWN": StatusCode.NOT_FOUND,
    "VERSION_UNKNOWN": StatusCode.NOT_FOUND,
    "MODEL_MISMATCH": StatusCode.FAILED_PRECONDITION,
    "FEED_EMPTY": StatusCode.INVALID_ARGUMENT,
    "FEED_TOO_LONG": StatusCode.INVALID_ARGUMENT,
    "TOKEN_OUT_OF_RANGE": StatusCode.INVALID_ARGUMENT,
    "TEXT_NOT_ENCODABLE": StatusCode.INVALID_ARGUMENT,
    "INPUT_KIND_MISMATCH": StatusCode.INVALID_ARGUMENT,
    "VALUES_MISSHAPEN": StatusCode.INVALID_ARGUMENT,
    "VALUES_NOT_FINITE": StatusCode.INVALID_ARGUMENT,
    "ANSWER_UNSUPPORTED": StatusCode.INVALID_ARGUMENT,
    "PROMPT_EMPTY": StatusCode.INVALID_ARGUMENT,
    "GENERATION_INVALID": StatusCode.INVALID_ARGUMENT,
    "PAGE_TOKEN_INVALID": StatusCode.INVALID_ARGUMENT,
    "SESSION_UNKNOWN": StatusCode.NOT_FOUND,
    "SESSION_EXPIRED": StatusCode.NOT_FOUND,
    "SESSION_CLOSED": StatusCode.NOT_FOUND,
    "SESSION_EXISTS": StatusCode.ALREADY_EXISTS,
    "TAKEN_OVER": StatusCode.ABORTED,
    "POSITION_MISMATCH": StatusCode.FAILED_PRECONDITION,
    "FEED_AFTER_FAILURE": StatusCode.FAILED_PRECONDITION,
    "NON_FINITE": StatusCode.OUT_OF_RANGE,
    "TOO_MANY_STREAMS": StatusCode.RESOURCE_EXHAUSTED,
    "TOO_MANY_HANDLES": StatusCode.RESOURCE_EXHAUSTED,
    "TOO_MANY_SESSIONS": StatusCode.RESOURCE_EXHAUSTED,
    "QUEUE_TIMEOUT": StatusCode.DEADLINE_EXCEEDED,
    "DRAINING": StatusCode.UNAVAILABLE,
    "STEP_FAILED": StatusCode.INTERNAL,
    "INTERNAL": StatusCode.INTERNAL,
}
"""Reason to code, a row for every error that can reach the wire."""


def to_status(error: CellstreamError) -> Status:
    """The error as it travels: code, message, `ErrorInfo`, and `RetryInfo` where waiting helps."""
    info = any_pb2.Any()
    info.Pack(ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.values))
    details = [info]
    if isinstance(error, CapacityError):
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        retry = any_pb2.Any()
        retry.Pack(RetryInfo(retry_delay=delay))
        details.append(retry)
    return Status(code=CODES[error.reason].value[0], message=error.message, details=details)


class Teller:
    """Every error leaves the server here, and is counted here once: refusals and errors by reason."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def status(self, error: CellstreamError) -> Status:
        """The error, counted, as it travels in-band."""
        refusal = isinstance(error, RequestError | CapacityError)
        counter = self._metrics.refusals if refusal else self._metrics.errors
        counter.labels(error.reason).inc()
        return to_status(error)

    async def abort(self, context: ServicerContext[Any, Any], error: CellstreamError) -> NoReturn:
        """End the rpc with the error, counted, as its status."""
        status = self.status(error)
        # The key under which gRPC carries a google.rpc.Status.
        details = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(CODES[error.reason], error.message, details)
        raise AssertionError("abort returns by raising")
