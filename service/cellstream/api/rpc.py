"""Around every rpc: raw bytes in, parsed within bounds; any exception out as a status with a reason.

Handlers are registered on raw bytes, so that the size of a message is checked before it is parsed, and a
message that does not parse is answered as ours and not with Python's text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from grpc.aio import ServicerContext

from cellstream.api.status import Teller
from cellstream.errors import CellstreamError, InternalError, MalformedMessage, MessageTooLarge

log = structlog.get_logger(__name__)

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)
AskedT = TypeVar("AskedT")
AnsweredT = TypeVar("AnsweredT")


def parse(kind: type[RequestT], raw: bytes, bytes_max: int) -> RequestT:
    """A request message.

    Raises:
        MessageTooLarge: It has more than `bytes_max` bytes.
        MalformedMessage: It is not a message of this kind.
    """
    if len(raw) > bytes_max:
        raise MessageTooLarge(
            f"the message has {len(raw)} bytes; at most {bytes_max} are taken. Send it in parts.",
            message_bytes_max=bytes_max,
        )
    try:
        return kind.FromString(raw)
    except DecodeError:
        name = kind.DESCRIPTOR.full_name
        raise MalformedMessage(
            f"the message is no {name}, or a text in it is no UTF-8; build it with the published protos."
        ) from None


def unary(
    kind: type[RequestT], answer: Callable[[RequestT], ResponseT], teller: Teller, bytes_max: int
) -> grpc.RpcMethodHandler[bytes, ResponseT]:
    """A handler that answers one message with one, at once."""

    async def run(raw: bytes, _context: ServicerContext[bytes, ResponseT]) -> ResponseT:
        return answer(parse(kind, raw, bytes_max))

    return grpc.unary_unary_rpc_method_handler(_guarded(run, teller), response_serializer=_serialize)


def unary_stream(
    run: Callable[[bytes, ServicerContext[bytes, ResponseT]], Awaitable[None]], teller: Teller
) -> grpc.RpcMethodHandler[bytes, ResponseT]:
    """A handler that answers one message with a stream, which it writes itself."""
    return grpc.unary_stream_rpc_method_handler(_guarded(run, teller), response_serializer=_serialize)


def stream_stream(
    run: Callable[[AsyncIterator[bytes], ServicerContext[bytes, ResponseT]], Awaitable[None]], teller: Teller
) -> grpc.RpcMethodHandler[bytes, ResponseT]:
    """A handler that reads and writes its stream itself."""
    return grpc.stream_stream_rpc_method_handler(_guarded(run, teller), response_serializer=_serialize)


def _guarded(
    run: Callable[[AskedT, Any], Awaitable[AnsweredT]], teller: Teller
) -> Callable[[AskedT, Any], Any]:
    """What `run` does, every exception told to the client as a status."""

    async def handle(asked: AskedT, context: Any) -> AnsweredT:
        try:
            return await run(asked, context)
        except CellstreamError as error:
            told = error
        except Exception:
            if context.cancelled():
                raise  # a write to a client that is gone: there is nobody to tell, and no mistake of ours
            told = InternalError.with_new_id()
            log.exception("unforeseen", **told.values)
        return await teller.abort(context, told)

    return handle


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
