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

What a transport refuses by itself has a code and a message, and no details. `docs/protocol.md` lists it.
"""

from __future__ import annotations

import structlog
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo

from cellstream.errors import CapacityError, CellstreamError, InternalError, RequestError
from cellstream.metrics import Metrics
from cellstream.transport.call import Code, Status

log = structlog.get_logger(__name__)

DOMAIN = "cellstream"

CODES: dict[str, Code] = {
    "MALFORMED_MESSAGE": Code.INVALID_ARGUMENT,
    "MESSAGE_TOO_LARGE": Code.INVALID_ARGUMENT,
    "HANDLE_IN_USE": Code.INVALID_ARGUMENT,
    "HANDLE_UNKNOWN": Code.INVALID_ARGUMENT,
    "SESSION_ID_INVALID": Code.INVALID_ARGUMENT,
    "MODEL_UNKNOWN": Code.NOT_FOUND,
    "VERSION_UNKNOWN": Code.NOT_FOUND,
    "MODEL_MISMATCH": Code.FAILED_PRECONDITION,
    "FEED_EMPTY": Code.INVALID_ARGUMENT,
    "FEED_TOO_LONG": Code.INVALID_ARGUMENT,
    "TOKEN_OUT_OF_RANGE": Code.INVALID_ARGUMENT,
    "TEXT_NOT_ENCODABLE": Code.INVALID_ARGUMENT,
    "INPUT_KIND_MISMATCH": Code.INVALID_ARGUMENT,
    "VALUES_MISSHAPEN": Code.INVALID_ARGUMENT,
    "VALUES_NOT_FINITE": Code.INVALID_ARGUMENT,
    "ANSWER_UNSUPPORTED": Code.INVALID_ARGUMENT,
    "PROMPT_EMPTY": Code.INVALID_ARGUMENT,
    "GENERATION_INVALID": Code.INVALID_ARGUMENT,
    "PAGE_TOKEN_INVALID": Code.INVALID_ARGUMENT,
    "SESSION_UNKNOWN": Code.NOT_FOUND,
    "SESSION_EXPIRED": Code.NOT_FOUND,
    "SESSION_CLOSED": Code.NOT_FOUND,
    "SESSION_EXISTS": Code.ALREADY_EXISTS,
    "TAKEN_OVER": Code.ABORTED,
    "POSITION_MISMATCH": Code.FAILED_PRECONDITION,
    "FEED_AFTER_FAILURE": Code.FAILED_PRECONDITION,
    "NON_FINITE": Code.OUT_OF_RANGE,
    "TOO_MANY_STREAMS": Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_HANDLES": Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_SESSIONS": Code.RESOURCE_EXHAUSTED,
    "QUEUE_TIMEOUT": Code.DEADLINE_EXCEEDED,
    "DRAINING": Code.UNAVAILABLE,
    "STEP_FAILED": Code.INTERNAL,
    "INTERNAL": Code.INTERNAL,
}
"""Reason to code, a row for every error that can reach the wire."""


def to_status(error: CellstreamError) -> status_pb2.Status:
    """Return the error as it travels: code, message, `ErrorInfo`, and `RetryInfo` where waiting helps."""
    info = any_pb2.Any()
    info.Pack(ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.values))
    details = [info]
    if isinstance(error, CapacityError):
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        retry = any_pb2.Any()
        retry.Pack(RetryInfo(retry_delay=delay))
        details.append(retry)
    return status_pb2.Status(code=CODES[error.reason], message=error.message, details=details)


class ErrorReporter:
    """Every error leaves the server here, and is counted here once: refusals and errors by reason."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def status(self, error: CellstreamError) -> status_pb2.Status:
        """Count the error, and return it as it travels in-band."""
        refusal = isinstance(error, RequestError | CapacityError)
        counter = self._metrics.refusals if refusal else self._metrics.errors
        counter.labels(error.reason).inc()
        return to_status(error)

    def explain(self, error: Exception) -> Status:
        """Return the status that ends a call, for whatever its handler raised; what is not ours is logged."""
        if not isinstance(error, CellstreamError):
            mistake = InternalError.with_new_id()
            log.error("unforeseen", exc_info=error, **mistake.values)
            error = mistake
        status = self.status(error)
        return Status(Code(status.code), status.message, status.SerializeToString())
