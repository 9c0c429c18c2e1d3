"""From bytes to the requests of HTTP/1.1 (RFC 9112), strictly: what is not clear is refused, never guessed.

Knows the syntax of a request head and where a body ends; bodies are discarded, because no page takes one. It
knows no socket, no clock and no page. Bytes go in by `feed`, requests come out of `next_request`, in the same
way however the bytes were cut.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

TARGET_BYTES_MAX = 8000
"""Bytes of a request's target; RFC 9110, section 4.1, asks that at least so many be supported."""

HEADERS_MAX = 100
"""Header lines of one request; Apache's default, and that of Python's own client."""

BODY_BYTES_MAX = 65_536
"""Bytes of a body that is discarded; beyond it the connection ends, which costs less than reading on."""

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(%s) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])" % _TOKEN)
_NAME = re.compile(_TOKEN)
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_HOST = re.compile(r"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
_ABSOLUTE = re.compile(r"https?://[^/?]+", re.IGNORECASE)
_ONCE = ("host", "content-length")
"""Headers that may come once: two that differ are read differently by a proxy and by us."""


class RequestRefused(Exception):
    """A request that cannot be read; nothing behind it on its connection can be either.

    Attributes:
        status: The status to answer with.
        why: For the person who sent it.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(f"{status}: {why}")
        self.status = status
        self.why = why


@dataclass(frozen=True, slots=True)
class Request:
    """The head of one request.

    Attributes:
        method: As it was sent; methods are case-sensitive.
        path: The target's path, as it was sent.
        query: What follows its first `?`; may be empty.
        headers: By lower-case name; of a name that came more than once, the values joined with commas.
        minor: 0 of HTTP/1.0; 1 of HTTP/1.1 and whatever calls itself later.
        keep_alive: Whether another request may follow on this connection.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    minor: int
    keep_alive: bool


class RequestReader:
    """Reads the requests of one connection.

    Args:
        head_bytes_max: Bytes of one request's line and headers, line ends included.
    """

    def __init__(self, head_bytes_max: int) -> None:
        self._head_bytes_max = head_bytes_max
        self._buffer = bytearray()
        self._scanned = 0  # no line ends before this index
        self._lines: list[bytes] = []  # of a head that is not whole yet
        self._head_bytes = 0
        self._body_bytes_left = 0

    def __repr__(self) -> str:
        return f"<RequestReader {len(self._buffer)} bytes, {self._body_bytes_left} of a body to come>"

    @property
    def in_request(self) -> bool:
        """Whether a request has begun and is not whole, its body included."""
        return bool(self._buffer or self._head_bytes or self._body_bytes_left)

    def feed(self, data: bytes) -> None:
        """Take bytes as they came."""
        self._buffer += data

    def next_request(self) -> Request | None:
        """Return the next request whose head is whole, or None.

        Raises:
            RequestRefused: It cannot be read. The connection must end: where the next one begins is unknown.
        """
        self._discard_body()
        if self._body_bytes_left:
            return None
        while (line := self._next_line()) is not None:
            if line:
                self._lines.append(line)
            elif self._lines:
                lines, self._lines, self._head_bytes = self._lines, [], 0
                return self._parse(lines)
            # An empty line before a request is ignored (RFC 9112, section 2.2); its bytes count.
        self._check_size(self._head_bytes + len(self._buffer), len(self._buffer))
        return None

    def _discard_body(self) -> None:
        discarded = min(self._body_bytes_left, len(self._buffer))
        del self._buffer[:discarded]
        self._body_bytes_left -= discarded

    def _next_line(self) -> bytes | None:
        end = self._buffer.find(b"\n", self._scanned)
        if end < 0:
            self._scanned = len(self._buffer)
            return None
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        self._scanned = 0
        if not line.endswith(b"\r\n"):
            raise RequestRefused(400, "A line must end with CR LF.")
        self._head_bytes += len(line)
        self._check_size(self._head_bytes, len(line))
        return line[:-2]

    def _check_size(self, head_bytes: int, line_bytes: int) -> None:
        if not self._lines and line_bytes > TARGET_BYTES_MAX:
            raise RequestRefused(414, f"A target may have {TARGET_BYTES_MAX} bytes.")
        if head_bytes > self._head_bytes_max or len(self._lines) > HEADERS_MAX:
            raise RequestRefused(
                431,
                f"A request may have {HEADERS_MAX} headers and {self._head_bytes_max} bytes of head.",
            )

    def _parse(self, lines: list[bytes]) -> Request:
        matched = _REQUEST_LINE.fullmatch(lines[0])
        if matched is None:
            raise RequestRefused(
                400, "The first line must be: method, target and HTTP/1.1, one space between."
            )
        method, target, major, minor = (part.decode("ascii") for part in matched.groups())
        if major != "1":
            raise RequestRefused(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        headers = _parse_headers(lines[1:])
        is_10 = minor == "0"
        _check_host(headers, is_10)
        self._body_bytes_left, has_whole_body = _frame_body(headers, is_10)
        path, query = _split_target(method, target)
        return Request(
            method, path, query, headers, 0 if is_10 else 1, has_whole_body and _keep_alive(headers, is_10)
        )


def _parse_headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        raw_name, colon, raw_value = line.partition(b":")
        raw_value = raw_value.strip(b" \t")
        # A folded line begins with a space, which no name does; one before the colon is refused likewise.
        if not colon or not _NAME.fullmatch(raw_name) or not _VALUE.fullmatch(raw_value):
            raise RequestRefused(
                400, "A header must be a name, a colon and a value without control characters."
            )
        name, value = raw_name.decode("ascii").lower(), raw_value.decode("latin-1")
        if name in headers and name in _ONCE:
            raise RequestRefused(400, f"There may be only one {name}.")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _check_host(headers: Mapping[str, str], is_10: bool) -> None:
    host = headers.get("host")
    if host is None and not is_10:
        raise RequestRefused(400, "HTTP/1.1 needs a Host.")
    if host is not None and not _HOST.fullmatch(host):
        raise RequestRefused(400, "Host is not one.")


def _frame_body(headers: Mapping[str, str], is_10: bool) -> tuple[int, bool]:
    """Return how many bytes of a body follow, and whether they will: after False, the connection must end."""
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if length is not None or is_10:  # request smuggling: another reader may believe the other header
            raise RequestRefused(400, "Transfer-Encoding excludes Content-Length and HTTP/1.0.")
        if coding.lower() != "chunked":
            raise RequestRefused(501, "Of Transfer-Encoding, only chunked is known here.")
        return 0, False  # the request is answered without its body, and where that ends we do not find out
    if length is None:
        return 0, True
    if not (length.isascii() and length.isdigit()):
        raise RequestRefused(400, "Content-Length is not a number.")
    if len(length) > 19 or int(length) > BODY_BYTES_MAX:
        raise RequestRefused(413, "No page here takes a body.")
    if "100-continue" in _tokens(headers, "expect") and int(length):
        return 0, False  # the client may send its body or not, once it has our final answer
    return int(length), True


def _split_target(method: str, target: str) -> tuple[str, str]:
    if method in ("OPTIONS", "CONNECT"):  # whose targets have forms of their own, and which no page allows
        return target, ""
    if not target.startswith("/"):
        matched = _ABSOLUTE.match(target)
        if matched is None:
            raise RequestRefused(400, "A target must be a path, or a URL of http.")
        target = target[matched.end() :]
        target = target if target.startswith("/") else "/" + target
    if "#" in target:
        raise RequestRefused(400, "A target has no fragment.")
    path, _, query = target.partition("?")
    return path, query


def _keep_alive(headers: Mapping[str, str], is_10: bool) -> bool:
    options = _tokens(headers, "connection")
    return "close" not in options and (not is_10 or "keep-alive" in options)


def _tokens(headers: Mapping[str, str], name: str) -> list[str]:
    return [token.strip().lower() for token in headers.get(name, "").split(",")]
