"""The handler of a method that answers one message with one, at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from cellstream.api.parsing import parse
from cellstream.transport.call import OK, Call, Method, Why

RequestT = TypeVar("RequestT", bound=Message)


def unary(kind: type[RequestT], answer: Callable[[RequestT], Message], bytes_max: int) -> Method:
    """Make a method of a function.

    Args:
        kind: The message that it takes.
        answer: From the request to its answer; raises CellstreamError.
        bytes_max: Bytes of a request.
    """

    def answer_bytes(raw: bytes) -> bytes:
        return answer(parse(kind, raw, bytes_max)).SerializeToString()

    return Method(lambda call: Unary(call, answer_bytes), one_request=True)


class Unary:
    """One call."""

    __slots__ = ("_answer", "_call", "_response")

    def __init__(self, call: Call, answer: Callable[[bytes], bytes]) -> None:
        self._call = call
        self._answer = answer
        self._response: bytes | None = None

    def received(self, message: bytes) -> None:
        """Answer the one message."""
        self._response = self._answer(message)
        self._call.consumed(len(message))
        self._call.ready()
        self._call.end(OK)

    def half_closed(self) -> None:
        """Do nothing: the answer does not depend on it."""

    def next_message(self) -> bytes | None:
        """Return the answer, once."""
        response, self._response = self._response, None
        return response

    def closed(self, why: Why) -> None:
        """Do nothing: nothing is held."""
