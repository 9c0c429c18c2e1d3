"""From a status on the wire back to our errors: the inverse of the server's table.

Many errors share a status code, so the way back is the `reason` of `google.rpc.ErrorInfo`. A status without
one was not made by a Cellstream server but by gRPC itself or by a proxy between; there only the code speaks.
This module knows nothing of sessions and calls.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from cellstream.client.tls import explain_handshake
from cellstream.errors import (
    BY_REASON,
    CapacityError,
    CellstreamError,
    ConnectionLost,
    MessageTooLarge,
    RequestError,
    ServerError,
    SessionError,
)

DOMAIN = "cellstream"
"""`ErrorInfo.domain` of every error of ours."""

# grpcio-status reads the same key; it is one more dependency for these few lines.
_DETAILS_KEY = "grpc-status-details-bin"

_CODES: dict[int, StatusCode] = {code.value[0]: code for code in StatusCode}

# A reason that this client does not know yet (the server is newer) still has a code that says what to do.
_BY_CODE: dict[StatusCode, type[CellstreamError]] = {
    StatusCode.INVALID_ARGUMENT: RequestError,
    StatusCode.OUT_OF_RANGE: RequestError,
    StatusCode.UNIMPLEMENTED: RequestError,
    StatusCode.UNAUTHENTICATED: RequestError,
    StatusCode.PERMISSION_DENIED: RequestError,
    StatusCode.NOT_FOUND: SessionError,
    StatusCode.ALREADY_EXISTS: SessionError,
    StatusCode.FAILED_PRECONDITION: SessionError,
    StatusCode.ABORTED: SessionError,
    StatusCode.RESOURCE_EXHAUSTED: CapacityError,
    StatusCode.UNAVAILABLE: CapacityError,
    StatusCode.DEADLINE_EXCEEDED: CapacityError,
}

# Codes that gRPC and proxies give when a server dies or does not answer: UNAVAILABLE when it refuses or is
# stopped, INTERNAL behind Envoy and nginx, CANCELLED behind HAProxy.
_CONNECTION_CODES = frozenset(
    {StatusCode.UNAVAILABLE, StatusCode.INTERNAL, StatusCode.CANCELLED, StatusCode.DEADLINE_EXCEEDED}
)


def from_status(status: status_pb2.Status) -> CellstreamError:
    """Makes the error that a `google.rpc.Status` tells of.

    Args:
        status: From an Opened, a Result, an Event, or the details of a failed call.
    """
    reason, values = "", {}
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            if info.domain == DOMAIN:
                reason = info.reason
                values.update(info.metadata)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            values["retry_after_seconds"] = str(retry.retry_delay.ToTimedelta().total_seconds())
    code = _CODES.get(status.code, StatusCode.UNKNOWN)
    kind = BY_REASON.get(reason) or _BY_CODE.get(code, ServerError)
    error = kind(status.message or f"the server said {code.name} and no more")
    error.values.update(values)
    if reason and not kind.reason:
        error.values["reason"] = reason
    return error


def from_rpc_error(error: grpc.aio.AioRpcError) -> CellstreamError:
    """Makes our error of a call that failed.

    Args:
        error: What grpc.aio raised.
    """
    status = _details(error)
    if status is not None:
        return from_status(status)
    code, text = error.code(), error.details() or ""
    if hint := explain_handshake(text):
        return ConnectionLost(f"{hint} ({text})", code=code.name, tls=hint)
    if code in _CONNECTION_CODES:
        return ConnectionLost(f"{text or 'the connection broke'} ({code.name})", code=code.name)
    if code is StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
        return MessageTooLarge(f"gRPC refused the message: {text}")
    return _BY_CODE.get(code, ServerError)(f"{text or 'no details'} ({code.name})", code=code.name)


def _details(error: grpc.aio.AioRpcError) -> Any | None:
    """Reads the `google.rpc.Status` among the trailing metadata; None if none of ours is there."""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                return None
            return status if status.details else None
    return None
