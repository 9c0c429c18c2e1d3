"""`grpc.reflection`, v1 and v1alpha: the files that describe this server's services, for tools like grpcurl.

What is told is what was named at the start: the services, the files that define them, and what those import.
Everything is indexed once. This module does not know what the services do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pool import Default
from google.rpc import error_details_pb2

from cellstream.api.parsing import parse
from cellstream.api.standard_protos import FILES, HEALTH, REFLECTIONS, message_class
from cellstream.errors import Draining, MessageTooLarge, TooManyStreams
from cellstream.settings import Settings
from cellstream.transport.call import OK, Call, Code, Method, Status, Why

REQUEST_BYTES_MAX = 4096
"""Bytes of one request, which is one name, and is sent back with the answer."""

REQUESTS_WAITING_MAX = 1024
"""Requests of one call whose answers were not taken yet; a tool asks one at a time, or a few hundred."""


_GOING = Status(Code.UNAVAILABLE, "the server is going away; ask another.")


class Reflection:
    """Both versions of the service, and who is asking.

    Args:
        service_names: Our services, full names, whose generated code is imported; health and reflection
            are added.
        settings: Bounds the calls, both versions together.
    """

    def __init__(self, service_names: Sequence[str], settings: Settings) -> None:
        self._settings = settings
        # What an error carries no proto imports, because it travels as Any; tools print it nevertheless.
        files = [error_details_pb2.DESCRIPTOR]
        files += [Default().FindFileContainingSymbol(name) for name in service_names]
        self._index = Index((*service_names, HEALTH, *REFLECTIONS), (*files, *FILES))
        self._open: set[_Answering] = set()
        self._going = False

    def __repr__(self) -> str:
        return f"<Reflection: {self._index!r}, {len(self._open)} calls>"

    def methods(self) -> dict[str, Method]:
        """The methods by path."""
        return {f"/{name}/ServerReflectionInfo": self._method(name) for name in REFLECTIONS}

    def shutdown(self) -> None:
        """End every call, once what it asked is answered; a tool that stays would hold up a drain."""
        self._going = True
        for call in tuple(self._open):  # a transport may close a call while it is told to end
            call.end()

    def add(self, call: _Answering) -> None:
        """Count a call.

        Raises:
            TooManyStreams: There are `watches_max` already.
            Draining: `shutdown` was called.
        """
        retry_after_seconds = self._settings.retry_after_seconds
        if self._going:
            raise Draining(_GOING.message, retry_after_seconds=retry_after_seconds)
        if len(self._open) >= self._settings.watches_max:
            raise TooManyStreams(
                f"{self._settings.watches_max} calls of reflection are open, and more are not taken.",
                watches_max=self._settings.watches_max,
                retry_after_seconds=retry_after_seconds,
            )
        self._open.add(call)

    def remove(self, call: _Answering) -> None:
        """Count it no more. Again: nothing."""
        self._open.discard(call)

    def _method(self, name: str) -> Method:
        package = name.rpartition(".")[0]
        request = message_class(f"{package}.ServerReflectionRequest")
        response = message_class(f"{package}.ServerReflectionResponse")
        return Method(lambda call: _Answering(call, request, response, self._index, self))


class Index:
    """Files by their names and by what they define.

    Args:
        service_names: Full names of all services.
        files: The files that define them; those that they import are added.

    Attributes:
        service_names: Sorted.
    """

    def __init__(self, service_names: Iterable[str], files: Iterable[FileDescriptor]) -> None:
        self.service_names = sorted(service_names)
        self._files: dict[str, FileDescriptor] = {}
        self._symbols: dict[str, FileDescriptor] = {}
        self._extensions: dict[str, dict[int, FileDescriptor]] = {}
        for root in files:
            for file in _with_imports(root):
                if file.name not in self._files:
                    self._add(file)

    def __repr__(self) -> str:
        return f"<Index of {len(self._symbols)} symbols in {len(self._files)} files>"

    def file(self, name: str) -> FileDescriptor | None:
        """Return the file of a name."""
        return self._files.get(name)

    def file_of_symbol(self, symbol: str) -> FileDescriptor | None:
        """Return the file that defines a message, field, enum, value, service, method or extension."""
        return self._symbols.get(symbol)

    def file_of_extension(self, extended: str, number: int) -> FileDescriptor | None:
        """Return the file that extends a message by a field of this number."""
        return self._extensions.get(extended, {}).get(number)

    def extension_numbers(self, extended: str) -> list[int] | None:
        """Return the numbers of all extensions of a message; None if there is no such message."""
        return sorted(self._extensions[extended]) if extended in self._extensions else None

    def _add(self, file: FileDescriptor) -> None:
        self._files[file.name] = file
        for symbol in _symbols(file):
            self._symbols[symbol] = file
        for message in _messages(file):
            self._extensions.setdefault(message.full_name, {})
        for extension in _extensions(file):
            assert extension.containing_type, "an extension extends something"
            numbers = self._extensions.setdefault(extension.containing_type.full_name, {})
            numbers[extension.number] = file


class _Answering:
    """One call: an answer to each request, in order, each made when there is room for it."""

    __slots__ = ("_call", "_counted", "_index", "_reflection", "_request", "_response", "_waiting")

    def __init__(self, call: Call, request: Any, response: Any, index: Index, reflection: Reflection) -> None:
        self._call = call
        self._request = request
        self._response = response
        self._index = index
        self._reflection = reflection
        self._counted = False
        self._waiting: deque[bytes] = deque()

    def received(self, message: bytes) -> None:
        """Have a request wait until there is room for its answer; till then the client may not send on."""
        if not self._counted:
            self._reflection.add(self)
            self._counted = True
        if len(message) > REQUEST_BYTES_MAX:
            raise MessageTooLarge(
                f"the message has {len(message)} bytes; at most {REQUEST_BYTES_MAX} are taken.",
                message_bytes_max=REQUEST_BYTES_MAX,
            )
        if len(self._waiting) >= REQUESTS_WAITING_MAX:
            raise MessageTooLarge(
                f"{REQUESTS_WAITING_MAX} requests of this call wait for their answers; read these first.",
                requests_waiting_max=REQUESTS_WAITING_MAX,
            )
        self._waiting.append(message)
        self._call.ready()

    def half_closed(self) -> None:
        """End the call, once every answer has left."""
        self._call.end(OK)

    def next_message(self) -> bytes | None:
        """Return the answer to the oldest request."""
        if not self._waiting:
            return None
        raw = self._waiting.popleft()
        request = parse(self._request, raw, REQUEST_BYTES_MAX)
        response = self._response(valid_host=request.host, original_request=request)
        self._answer(request, response)
        self._call.consumed(len(raw))
        answer: bytes = response.SerializeToString()
        return answer

    def closed(self, why: Why) -> None:
        """Leave no trace."""
        self._waiting.clear()
        self._reflection.remove(self)

    def end(self) -> None:
        """End the call, once every answer has left."""
        self._call.end(_GOING)

    def _answer(self, request: Any, response: Any) -> None:
        kind = request.WhichOneof("message_request")
        if kind is None:
            _refuse(response, Code.INVALID_ARGUMENT, "the request asks for nothing: set one of its fields.")
        elif kind == "list_services":
            response.list_services_response.SetInParent()
            for name in self._index.service_names:
                response.list_services_response.service.add(name=name)
        elif kind == "all_extension_numbers_of_type":
            self._answer_with_numbers(request.all_extension_numbers_of_type, response)
        else:
            self._answer_with_files(self._find(kind, request), response)

    def _find(self, kind: str, request: Any) -> FileDescriptor | None:
        if kind == "file_by_filename":
            return self._index.file(request.file_by_filename)
        if kind == "file_containing_symbol":
            return self._index.file_of_symbol(request.file_containing_symbol)
        extension = request.file_containing_extension
        return self._index.file_of_extension(extension.containing_type, extension.extension_number)

    @staticmethod
    def _answer_with_files(file: FileDescriptor | None, response: Any) -> None:
        if file is None:
            _refuse(response, Code.NOT_FOUND, "nothing of this name is known here.")
            return
        found = [each.serialized_pb for each in _with_imports(file)]
        response.file_descriptor_response.file_descriptor_proto.extend(found)

    def _answer_with_numbers(self, extended: str, response: Any) -> None:
        numbers = self._index.extension_numbers(extended)
        if numbers is None:
            _refuse(response, Code.NOT_FOUND, "no message of this name is known here.")
            return
        response.all_extension_numbers_response.base_type_name = extended
        response.all_extension_numbers_response.extension_number.extend(numbers)


def _refuse(response: Any, code: Code, message: str) -> None:
    """Answer one request with an error; the call goes on."""
    response.error_response.error_code = code
    response.error_response.error_message = message


def _with_imports(file: FileDescriptor) -> list[FileDescriptor]:
    """Return the file, then all that it imports, directly or not, each once."""
    found, waiting = {file.name: file}, [file]
    while waiting:
        for imported in waiting.pop().dependencies:
            if imported.name not in found:
                found[imported.name] = imported
                waiting.append(imported)
    return list(found.values())


def _messages(file: FileDescriptor) -> Iterator[Descriptor]:
    """All messages of a file, nested ones too."""
    waiting = list(file.message_types_by_name.values())
    while waiting:
        message = waiting.pop()
        yield message
        waiting += message.nested_types


def _extensions(file: FileDescriptor) -> Iterator[FieldDescriptor]:
    yield from file.extensions_by_name.values()
    for message in _messages(file):
        yield from message.extensions


def _symbols(file: FileDescriptor) -> Iterator[str]:
    """Full names of all that a file defines."""
    for service in file.services_by_name.values():
        yield service.full_name
        yield from (method.full_name for method in service.methods)
    for enum in file.enum_types_by_name.values():
        yield from _names_of_enum(enum)
    for message in _messages(file):
        yield message.full_name
        yield from (field.full_name for field in message.fields)
        yield from (oneof.full_name for oneof in message.oneofs)
        for enum in message.enum_types:
            yield from _names_of_enum(enum)
    yield from (extension.full_name for extension in _extensions(file))


def _names_of_enum(enum: EnumDescriptor) -> Iterator[str]:
    yield enum.full_name
    scope = enum.full_name.rpartition(".")[0]  # protobuf names a value beside its enum, as C++ does
    yield from (f"{scope}.{value.name}" if scope else value.name for value in enum.values)
