"""What gRPC says in HTTP/2 headers: how a request is read, and the blocks that answer it.

It follows gRPC's PROTOCOL-HTTP2.md and knows nothing of frames, windows or calls. Our blocks use HPACK's
static table and literals without indexing (RFC 7541, sections 6.1 and 6.2.2), so most are prepared bytes.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cellstream.transport.call import Code, Metadata, Method, Status

Headers = list[tuple[bytes, bytes]]

ENCODINGS = b"identity,gzip"
"""What we accept as `grpc-encoding`."""

TRAILERS_BYTES_MAX = 16_384
"""Bytes of our trailers for a peer that names no limit; gRPC's C core takes so much by default."""

PATH_CHARACTERS_MAX = 200
"""Characters of an unknown path that its refusal repeats."""

NO_METADATA: Metadata = MappingProxyType({})

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_NOT_CUSTOM = frozenset({b"content-type", b"te"})
_UNRESERVED = frozenset(range(0x20, 0x7F)) - {ord("%")}
_UNRESERVED_AT_ENDS = _UNRESERVED - {ord(" ")}
_ENTRY_BYTES = 32
"""What HTTP/2 adds for each entry when it counts a header list (RFC 9113, section 6.5.2)."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a call's headers ask for.

    Attributes:
        method: What serves it; None if the call is refused.
        metadata: Its custom metadata.
        timeout_seconds: Of `grpc-timeout`; None: there is none.
        is_gzip: Whether its compressed messages are gzip; otherwise there may be none.
        accepts_gzip: Whether the client reads gzip.
        refusal: Why gRPC refuses it.
        http_refusal: The whole block that refuses what is no gRPC.
    """

    method: Method | None = None
    metadata: Metadata = field(default_factory=lambda: NO_METADATA)
    timeout_seconds: float | None = None
    is_gzip: bool = False
    accepts_gzip: bool = False
    refusal: Status | None = None
    http_refusal: bytes = b""


class _Refused(Exception):
    """A request whose headers gRPC refuses."""

    def __init__(self, code: Code, message: str) -> None:
        self.status = Status(code, message)


def read_request(headers: Headers, methods: Mapping[bytes, Method]) -> Request:
    """Read a call's headers; what is wrong with them stands in the result.

    Args:
        headers: As HTTP/2 received them: valid names, pseudo-headers once each.
        methods: What is served, by path.
    """
    named = dict(headers)
    if named.get(b":method") != b"POST":
        return Request(http_refusal=_NOT_POST)
    if not _is_grpc(named.get(b"content-type", b"")):
        return Request(http_refusal=_NOT_GRPC)
    try:
        return _read_call(named, headers, methods)
    except _Refused as refused:
        return Request(refusal=refused.status)


def _is_grpc(content_type: bytes) -> bool:
    """Tell whether it is `application/grpc`, with `+proto` or the like; `application/grpc-web` is not."""
    kind = content_type.lower()
    return kind.startswith(b"application/grpc") and kind[16:17] in (b"", b"+", b";")


def _read_call(named: Mapping[bytes, bytes], headers: Headers, methods: Mapping[bytes, Method]) -> Request:
    path = named.get(b":path", b"")
    method = methods.get(path)
    if method is None:
        told = path.decode("latin-1")[:PATH_CHARACTERS_MAX]
        raise _Refused(Code.UNIMPLEMENTED, f"there is no method {told} here.")
    encoding = named.get(b"grpc-encoding", b"identity")
    if encoding not in (b"identity", b"gzip"):
        raise _Refused(
            Code.UNIMPLEMENTED, f"this grpc-encoding is unknown. Expected one of {ENCODINGS.decode()}."
        )
    accepted = named.get(b"grpc-accept-encoding", b"").split(b",")
    return Request(
        method=method,
        metadata=_read_metadata(headers),
        timeout_seconds=_read_timeout(named.get(b"grpc-timeout")),
        is_gzip=encoding == b"gzip",
        accepts_gzip=any(name.strip() == b"gzip" for name in accepted),
    )


def _read_timeout(value: bytes | None) -> float | None:
    if value is None:
        return None
    found = _TIMEOUT.fullmatch(value)
    if found is None:
        raise _Refused(
            Code.INTERNAL, "grpc-timeout is malformed. Expected 1 to 8 digits and one of H, M, S, m, u, n."
        )
    return int(found[1]) * _UNIT_SECONDS[found[2]]


def _read_metadata(headers: Headers) -> Metadata:
    found: dict[str, str | bytes] = {}
    for raw_name, value in headers:
        if raw_name[:1] == b":" or raw_name[:5] == b"grpc-" or raw_name in _NOT_CUSTOM:
            continue
        name = raw_name.decode("latin-1")
        if name.endswith("-bin"):
            found[name] = _decode_binary(value)
            continue
        text, before = value.decode("latin-1"), found.get(name)
        found[name] = text if before is None else f"{before!s},{text}"
    return MappingProxyType(found) if found else NO_METADATA


def _decode_binary(value: bytes) -> bytes:
    """Return the last of the values that commas may join, from base64 with or without padding."""
    last = value.rpartition(b",")[2].strip().rstrip(b"=")
    try:
        return base64.b64decode(last + b"=" * (-len(last) % 4), validate=True)
    except binascii.Error:
        raise _Refused(Code.INTERNAL, "metadata of a -bin key is no base64.") from None


# ---------------------------------------------------------------- what answers


def literal(name: bytes, value: bytes) -> bytes:
    """Return one header as a literal without indexing, with a new name (RFC 7541, section 6.2.2)."""
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def _length(size: int) -> bytes:
    """Return an integer with a prefix of 7 bits (RFC 7541, section 5.1); no Huffman coding."""
    if size < 127:
        return bytes((size,))
    rest, out = size - 127, bytearray((127,))
    while rest >= 128:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    return bytes(out)


_STATUS_200 = b"\x88"  # index 8 of the static table
_CONTENT_TYPE = b"\x0f\x10" + _length(16) + b"application/grpc"  # index 31: `content-type`
_ACCEPT_ENCODING = literal(b"grpc-accept-encoding", ENCODINGS)

RESPONSE_HEADERS = _STATUS_200 + _CONTENT_TYPE + _ACCEPT_ENCODING
"""What begins an answer."""

RESPONSE_HEADERS_GZIP = RESPONSE_HEADERS + literal(b"grpc-encoding", b"gzip")
"""What begins an answer whose messages may be gzip."""

OK_TRAILERS = literal(b"grpc-status", b"0")
"""What ends an answer that did what was asked."""

# `:status` is index 8 as a name, `allow` index 22: a literal without indexing has a prefix of four bits.
_NOT_POST = b"\x08\x03405" + b"\x0f\x07\x04POST"
_NOT_GRPC = b"\x08\x03415" + _ACCEPT_ENCODING


def trailers(status: Status, list_bytes_max: int | None) -> bytes:
    """Return the block that ends an answer.

    Args:
        status: What it says; where the list would be too long, the details are left out, then the message
            is cut.
        list_bytes_max: The peer's MAX_HEADER_LIST_SIZE; None: it named none.
    """
    if status.code == Code.OK and not status.message and not status.details:
        return OK_TRAILERS
    return _trailers(status, TRAILERS_BYTES_MAX if list_bytes_max is None else list_bytes_max)


def trailers_only(status: Status, list_bytes_max: int | None) -> bytes:
    """Return the block of an answer that has no message: headers and trailers in one."""
    list_bytes_max = TRAILERS_BYTES_MAX if list_bytes_max is None else list_bytes_max
    return RESPONSE_HEADERS + _trailers(status, list_bytes_max - _RESPONSE_HEADERS_BYTES)


_RESPONSE_HEADERS_BYTES = sum(
    _ENTRY_BYTES + len(text)
    for text in (b":status200", b"content-typeapplication/grpc", b"grpc-accept-encoding" + ENCODINGS)
)


def _trailers(status: Status, bytes_left: int) -> bytes:
    code = str(int(status.code)).encode()
    block = literal(b"grpc-status", code)
    bytes_left -= _ENTRY_BYTES + len(b"grpc-status") + len(code)
    details = base64.b64encode(status.details).rstrip(b"=")
    if status.message:
        name = b"grpc-message"
        bytes_left -= _ENTRY_BYTES + len(name)
        message = percent_encode(status.message, bytes_left)
        bytes_left -= len(message)
        if message:
            block += literal(name, message)
    name = b"grpc-status-details-bin"
    if details and _ENTRY_BYTES + len(name) + len(details) <= bytes_left:
        block += literal(name, details)
    return block


def percent_encode(text: str, bytes_max: int) -> bytes:
    """Return UTF-8 with all but printable ASCII, and `%` itself, as `%XX`; cut after a whole character.

    Spaces at the ends are encoded too: a header's value may not have them (RFC 9113, section 8.2.1).
    """
    is_plain = text.isascii() and text.isprintable() and "%" not in text and text == text.strip()
    if is_plain and len(text) <= bytes_max:
        return text.encode()
    out = bytearray()
    last = len(text) - 1
    for index, character in enumerate(text):
        encoded = character.encode("utf-8", "replace")
        kept = _UNRESERVED if 0 < index < last else _UNRESERVED_AT_ENDS
        piece = b"".join(bytes((byte,)) if byte in kept else b"%%%02X" % byte for byte in encoded)
        if len(out) + len(piece) > bytes_max:
            break
        out += piece
    return bytes(out).rstrip(b" ")
