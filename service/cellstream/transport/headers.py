"""Header blocks: decoded within bounds, remembered where they repeat, checked as RFC 9113 section 8 asks.

It knows HPACK by way of the `hpack` library, and what makes a request malformed. It knows nothing of frames
and streams, and nothing of gRPC. What it says of a fault never quotes the block: it may hold credentials.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from hpack import Decoder, HPACKError, OversizedHeaderListError
from hpack.table import HeaderTable

from cellstream.transport.frames import Code

Headers = list[tuple[bytes, bytes]]

LIST_FACTOR_MAX = 4
"""A list beyond the limit refuses its request; beyond so many times the limit it ends the connection, because
hpack gives up half-way and its table no longer equals the peer's."""

TABLE_SIZE_UPDATES_MAX = 2
"""The most that a block needs (RFC 7541, section 4.2)."""

REMEMBERED_BLOCKS_MAX = 8
"""A client repeats few blocks: one for each method it calls."""

REMEMBERED_LIST_BYTES_MAX = 4096
"""Longer lists are decoded each time; so a connection remembers at most 32 KiB."""

FIELD_OVERHEAD_BYTES = 32
"""What each field counts in the size of a list, beside its name and value (section 6.5.2)."""

# hpack logs every block at DEBUG, and blocks hold credentials; the level also spares it the formatting.
logging.getLogger("hpack").setLevel(logging.WARNING)

_BAD_NAME = re.compile(rb"[\x00-\x20A-Z\x7f-\xff:]")
_BAD_VALUE = re.compile(rb"[\x00\r\n]|\A[ \t]|[ \t]\Z")
_DIGITS = re.compile(rb"[0-9]{1,19}")
_OF_A_CONNECTION = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_OF_A_REQUEST = frozenset((b":method", b":scheme", b":path", b":authority"))


class BlockError(Exception):
    """A block that cannot be decoded: the connection has to end, its table is lost.

    Attributes:
        code: The connection error.
        message: For our log.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Request:
    """A request's header list.

    Attributes:
        headers: In order, as raw bytes; empty if the list was too large. Shared: not to be changed.
        too_large: Whether the list was beyond its limit.
        fault: Why the request is malformed (section 8.1.1), or None.
        content_bytes: What its `content-length` says, or None.
    """

    headers: Headers
    too_large: bool = False
    fault: str | None = None
    content_bytes: int | None = None


_TOO_LARGE = Request([], too_large=True)


class _WatchedTable(HeaderTable):
    """A dynamic table that says whether something was added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = False

    def add(self, name: bytes, value: bytes) -> None:
        self.changed = True
        super().add(name, value)


class HeaderDecoder:
    """Decodes the blocks of one connection, in their order.

    Args:
        list_bytes_max: Bytes of a decoded list, each field counted with 32 more (section 6.5.2).

    Attributes:
        list_bytes: How many the last block's list had, and so what it cost; 0 if it was remembered.
    """

    __slots__ = ("_decoder", "_known", "_list_bytes_max", "_table", "list_bytes")

    def __init__(self, list_bytes_max: int) -> None:
        self._list_bytes_max = list_bytes_max
        self._table = _WatchedTable()
        self._decoder = Decoder(max_header_list_size=LIST_FACTOR_MAX * list_bytes_max)
        self._decoder.header_table = self._table
        self._known: dict[bytes, Request] = {}
        self.list_bytes = 0

    def __repr__(self) -> str:
        return f"<HeaderDecoder: {len(self._known)} blocks remembered>"

    def request(self, block: bytes) -> Request:
        """Return the request that a block makes.

        Raises:
            BlockError: If the block cannot be decoded.
        """
        known = self._known.get(block)
        if known is not None:
            self.list_bytes = 0
            return known
        headers, changed = self._decode(block)
        if self.list_bytes > self._list_bytes_max:
            return _TOO_LARGE
        request = _checked(headers)
        if not changed and self.list_bytes <= REMEMBERED_LIST_BYTES_MAX and request.fault is None:
            if len(self._known) >= REMEMBERED_BLOCKS_MAX:
                self._known.clear()
            self._known[block] = request
        return request

    def trailers_fault(self, block: bytes) -> str | None:
        """Return why trailers are malformed, or None. What they say does not matter to gRPC.

        Raises:
            BlockError: If the block cannot be decoded.
        """
        headers, _ = self._decode(block)
        for name, value in headers:
            fault = "a pseudo-header in trailers" if name[:1] == b":" else _field_fault(name, value)
            if fault is not None:
                return fault
        return None

    def skip(self, block: bytes) -> None:
        """Decode a block that nobody asks for, so that the table stays equal to the peer's.

        Raises:
            BlockError: If the block cannot be decoded.
        """
        self.list_bytes = 0
        if block not in self._known:
            self._decode(block)

    def _decode(self, block: bytes) -> tuple[Headers, bool]:
        """Return a block's list, and whether it changed the table; if so, known blocks are forgotten."""
        resized = _count_size_updates(block) > 0
        self._table.changed = False
        try:
            headers: Headers = list(self._decoder.decode(block, raw=True))
        except OversizedHeaderListError:
            raise BlockError(Code.ENHANCE_YOUR_CALM, "a header list far beyond its limit") from None
        except HPACKError:
            raise BlockError(Code.COMPRESSION_ERROR, "a header block that is not HPACK") from None
        changed = resized or self._table.changed
        if changed:
            self._known.clear()
        self.list_bytes = sum(len(name) + len(value) + FIELD_OVERHEAD_BYTES for name, value in headers)
        return headers, changed


def _count_size_updates(block: bytes) -> int:
    """Return how many table size updates a block begins with.

    Raises:
        BlockError: If they are more than a block needs; hpack would take any number, each of which may
            evict the table.
    """
    count = at = 0
    while at < len(block) and block[at] & 0xE0 == 0x20:
        count += 1
        if count > TABLE_SIZE_UPDATES_MAX:
            raise BlockError(Code.COMPRESSION_ERROR, "more than two table size updates in a header block")
        if block[at] & 0x1F == 0x1F:  # the number goes on in bytes whose upper bit is set
            at += 1
            while at < len(block) and block[at] & 0x80:
                at += 1
        at += 1
    return count


def _field_fault(name: bytes, value: bytes) -> str | None:
    """Return what is wrong with a field that is no pseudo-header (section 8.2), or None."""
    if not name or _BAD_NAME.search(name):
        return "a header name with forbidden characters"
    if _BAD_VALUE.search(value):
        return "a header value with forbidden characters"
    if name in _OF_A_CONNECTION:
        return "a header that belongs to a connection"
    if name == b"te" and value.lower() != b"trailers":
        return "a te other than trailers"
    return None


def _checked(headers: Headers) -> Request:
    """Return the request of a header list, with its fault if it is malformed (sections 8.2 and 8.3)."""
    pseudo: dict[bytes, bytes] = {}
    content: set[bytes] = set()
    fields = False
    for name, value in headers:
        if name[:1] == b":":
            fault = _pseudo_fault(name, value, pseudo, after_fields=fields)
            pseudo[name] = value
        else:
            fault = _field_fault(name, value)
            fields = True
            if name == b"content-length":
                content.add(value)
        if fault is not None:
            return Request(headers, fault=fault)
    if len(content) > 1 or not all(map(_DIGITS.fullmatch, content)):
        return Request(headers, fault="a content-length that is not one number")
    return Request(headers, fault=_missing(pseudo), content_bytes=int(content.pop()) if content else None)


def _pseudo_fault(name: bytes, value: bytes, seen: dict[bytes, bytes], *, after_fields: bool) -> str | None:
    """Return what is wrong with a pseudo-header, or None."""
    if after_fields:
        return "a pseudo-header behind other headers"
    if name in seen:
        return "a pseudo-header twice"
    if name not in _OF_A_REQUEST:
        return "an unknown pseudo-header"
    if _BAD_VALUE.search(value):
        return "a header value with forbidden characters"
    return None


def _missing(pseudo: dict[bytes, bytes]) -> str | None:
    """Return which pseudo-header a request lacks, or must not have, or None (sections 8.3.1 and 8.5)."""
    method = pseudo.get(b":method")
    if not method:
        return "no :method"
    if method == b"CONNECT":
        if b":scheme" in pseudo or b":path" in pseudo or not pseudo.get(b":authority"):
            return "CONNECT with :scheme or :path, or without :authority"
        return None
    if not pseudo.get(b":scheme"):
        return "no :scheme"
    if not pseudo.get(b":path"):
        return "no :path"
    return None
