"""The handler of a method that answers one message with one, at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from cellstream.api.parsing import parse
from cellstream.transport.call import OK, Call, Method, Status, Why

RequestT = TypeVar("RequestT", bound=Message)


def unary(kind: type[RequestT], answer: Callable[[RequestT], Message | Status], bytes_max: int) -> Method:
    """Make a method of a function.

    Args:
        kind: The message that it takes.
        answer: From the request to its answer, or to a status that is not one of our errors; raises
            CellstreamError.
        bytes_max: Bytes of a request.
    """

    def answer_bytes(raw: bytes) -> bytes | Status:
        found = answer(parse(kind, raw, bytes_max))
        return found if isinstance(found, Status) else found.SerializeToString()

    return Method(lambda call: Unary(call, answer_bytes), one_request=True)


class Unary:
    """One call."""

    __slots__ = ("_answer", "_call", "_response")

    def __init__(self, call: Call, answer: Callable[[bytes], bytes | Status]) -> None:
        self._call = call
        self._answer = answer
        self._response: bytes | None = None

    def received(self, message: bytes) -> None:
        """Answer the one message."""
        answer = self._answer(message)
        self._call.consumed(len(message))
        if isinstance(answer, Status):
            self._call.end(answer)
            return
        self._response = answer
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
