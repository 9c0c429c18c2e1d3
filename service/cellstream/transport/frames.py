"""The numbers of HTTP/2 (RFC 9113) and the frames that we send, as bytes.

It knows how a frame is written. It knows nothing of streams, of windows, or of when a frame may be sent.
"""

from __future__ import annotations

import enum
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (section 3.4)."""

FRAME_HEADER = struct.Struct(">IBI")
"""A frame's 9 bytes: its length in the upper 24 bits of the first number, its kind in the lower 8; flags;
stream, whose upper bit means nothing."""

FRAME_HEADER_BYTES = FRAME_HEADER.size
FRAME_BYTES_MAX = 16_384
"""The longest payload that either side sends. It is the least that a peer can ask for, so no peer refuses it;
we advertise no more, so that no frame holds the turn of others for long."""

WINDOW_BYTES_INITIAL = 65_535
"""The window of a connection, and of a stream until SETTINGS say otherwise (section 6.9.2)."""

WINDOW_BYTES_MAX = (1 << 31) - 1
STREAM_ID_MAX = (1 << 31) - 1
PING_BYTES = 8


class Kind(enum.IntEnum):
    """The kinds of frames (section 6)."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20


class Code(enum.IntEnum):
    """The error codes (section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Setting(enum.IntEnum):
    """The settings (section 6.5.2)."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


SETTINGS_ENTRY = struct.Struct(">HI")
NUMBER = struct.Struct(">I")
_PAIR = struct.Struct(">II")

SETTINGS_ACK = FRAME_HEADER.pack(Kind.SETTINGS, ACK, 0)
_PING_ACK = FRAME_HEADER.pack(PING_BYTES << 8 | Kind.PING, ACK, 0)
_PING = FRAME_HEADER.pack(PING_BYTES << 8 | Kind.PING, 0, 0)
_NUMBER_FRAME = struct.Struct(">IBII")


def settings_frame(values: dict[Setting, int]) -> bytes:
    """Return SETTINGS with these values."""
    payload = b"".join(SETTINGS_ENTRY.pack(setting, value) for setting, value in values.items())
    return FRAME_HEADER.pack(len(payload) << 8 | Kind.SETTINGS, 0, 0) + payload


def window_update(stream_id: int, size: int) -> bytes:
    """Return WINDOW_UPDATE for a stream, or for the connection if `stream_id` is 0."""
    return _NUMBER_FRAME.pack(4 << 8 | Kind.WINDOW_UPDATE, 0, stream_id, size)


def rst_stream(stream_id: int, code: int) -> bytes:
    """Return RST_STREAM with this code."""
    return _NUMBER_FRAME.pack(4 << 8 | Kind.RST_STREAM, 0, stream_id, code)


def goaway(last_stream_id: int, code: int, debug: bytes) -> bytes:
    """Return GOAWAY with this code and debug data."""
    header = FRAME_HEADER.pack((8 + len(debug)) << 8 | Kind.GOAWAY, 0, 0)
    return header + _PAIR.pack(last_stream_id, code) + debug


def ping_frame(data: bytes, *, answer: bool = False) -> bytes:
    """Return PING with these 8 bytes, or the answer to one."""
    return (_PING_ACK if answer else _PING) + data


def header_frames(stream_id: int, block: bytes, *, end: bool) -> bytes:
    """Return HEADERS with this block, and CONTINUATION frames if it is too long for one."""
    flags = END_STREAM if end else 0
    if len(block) <= FRAME_BYTES_MAX:
        return FRAME_HEADER.pack(len(block) << 8 | Kind.HEADERS, flags | END_HEADERS, stream_id) + block
    frames = bytearray()
    kind = Kind.HEADERS
    for start in range(0, len(block), FRAME_BYTES_MAX):
        piece = block[start : start + FRAME_BYTES_MAX]
        if start + FRAME_BYTES_MAX >= len(block):
            flags |= END_HEADERS
        frames += FRAME_HEADER.pack(len(piece) << 8 | kind, flags, stream_id) + piece
        kind, flags = Kind.CONTINUATION, 0
    return bytes(frames)
