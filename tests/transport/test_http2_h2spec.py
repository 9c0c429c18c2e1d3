"""The list of cases that h2spec 2.6 publishes, by section and title, as a checklist written anew.

h2spec is a program that asks a server over the network, and accepts several answers to most questions. Here
each case says which one is ours. Its sections are those of RFC 7540 and RFC 7541.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hyperframe.frame import DataFrame, HeadersFrame, PingFrame, SettingsFrame
from tests.transport import raw_client as raw
from tests.transport.raw_client import (
    COMPRESSION_ERROR,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    REQUEST,
    SETTINGS_ACK,
    STREAM_CLOSED,
    TRAILERS,
    RawClient,
    block,
    data,
    field,
    frame,
    headers,
    ping,
    priority,
    rst_stream,
    settings,
    window_update,
)

Check = Callable[[RawClient], None]


@dataclass(frozen=True)
class Case:
    """What is sent, in pieces with our answers in between, and what must come of it."""

    section: str
    title: str
    sent: tuple[bytes, ...]
    check: Check
    streams_max: int = 100
    greet: bool = True


# ---------------------------------------------------------------- what must come of it


def answered(client: RawClient) -> None:
    """Stream 1 has its answer, and nothing was wrong."""
    assert client.failure is None
    assert [each.stream_id for each in client.sent(HeadersFrame)] == [1]


def pinged(client: RawClient) -> None:
    """The connection lives: its PING is answered, and nothing was wrong."""
    assert client.failure is None
    (answer,) = client.sent(PingFrame)
    assert "ACK" in answer.flags
    assert answer.opaque_data == b"12345678"


def acknowledged(client: RawClient) -> None:
    """SETTINGS are acknowledged."""
    assert client.failure is None
    assert any("ACK" in each.flags for each in client.sent(SettingsFrame))


def began(client: RawClient) -> None:
    """Our own preface, a SETTINGS frame, came first."""
    assert client.failure is None
    assert isinstance(client.frames[0], SettingsFrame)
    assert "ACK" not in client.frames[0].flags


def connection(code: int) -> Check:
    """GOAWAY with this code."""

    def check(client: RawClient) -> None:
        assert client.failure == ("connection", code)
        assert client.connection.failed

    return check


def stream(code: int) -> Check:
    """RST_STREAM with this code, and the connection lives."""

    def check(client: RawClient) -> None:
        assert client.failure == ("stream", code)
        assert not client.connection.failed

    return check


def sends(*sizes: int) -> Check:
    """DATA frames of these sizes on stream 1."""

    def check(client: RawClient) -> None:
        assert client.failure is None
        assert [len(each.data) for each in client.sent(DataFrame)] == list(sizes)

    return check


# ---------------------------------------------------------------- what is sent

OPEN = headers(1)
WHOLE = headers(1, end=True)
UNFINISHED = headers(1, REQUEST[:3], done=False)
UNFINISHED_WHOLE = headers(1, REQUEST[:3], end=True, done=False)


def continuation(stream_id: int, piece: bytes = REQUEST[3:], *, done: bool = True) -> bytes:
    """Return CONTINUATION."""
    return frame(raw.CONTINUATION, raw.END_HEADERS if done else 0, stream_id, piece)


def request(**changes: str | None) -> bytes:
    """Return HEADERS of a whole request with some pseudo-headers changed, or left out if None."""
    fields = {"method": "GET", "scheme": "http", "path": "/", "authority": "a"} | changes
    return headers(
        1, block((f":{n}".encode(), v.encode()) for n, v in fields.items() if v is not None), end=True
    )


def extended(name: bytes, value: bytes, *, end: bool = True) -> bytes:
    """Return HEADERS of a request with one more field."""
    return headers(1, REQUEST + field(name, value), end=end)


def hpack(more: bytes) -> bytes:
    """Return HEADERS of a whole request whose block ends in these bytes."""
    return headers(1, REQUEST + more, end=True)


INITIAL_WINDOW = 4
PADDED_END = raw.PADDED | raw.END_HEADERS | raw.END_STREAM

GENERIC = [
    Case("generic 1", "Sends a client connection preface", (raw.PREFACE + settings(),), began, greet=False),
    Case("generic 2", "Sends a PRIORITY frame on idle stream", (priority(1, weight=255), ping()), pinged),
    Case(
        "generic 2",
        "Sends a WINDOW_UPDATE frame on half-closed (remote) stream",
        (settings((INITIAL_WINDOW, 0)), WHOLE, window_update(1, 1)),
        sends(1),
    ),
    Case(
        "generic 2",
        "Sends a PRIORITY frame on half-closed (remote) stream",
        (settings((INITIAL_WINDOW, 0)), WHOLE, priority(1), window_update(1, 1)),
        sends(1),
    ),
    Case(
        "generic 2",
        "Sends a RST_STREAM frame on half-closed (remote) stream",
        (WHOLE + rst_stream(1), ping()),
        pinged,
    ),
    Case("generic 2", "Sends a PRIORITY frame on closed stream", (WHOLE, priority(1), ping()), pinged),
    Case("generic 3.1", "Sends a DATA frame", (OPEN, data(1, b"test", end=True)), answered),
    Case(
        "generic 3.1",
        "Sends multiple DATA frames",
        (OPEN, data(1, b"test"), data(1, b"test", end=True)),
        answered,
    ),
    Case(
        "generic 3.1",
        "Sends a DATA frame with padding",
        (OPEN, frame(raw.DATA, raw.PADDED | raw.END_STREAM, 1, b"\x06test" + bytes(6))),
        answered,
    ),
    Case("generic 3.2", "Sends a HEADERS frame", (WHOLE,), answered),
    Case(
        "generic 3.2",
        "Sends a HEADERS frame with padding",
        (frame(raw.HEADERS, PADDED_END, 1, b"\x06" + REQUEST + bytes(6)),),
        answered,
    ),
    Case(
        "generic 3.2",
        "Sends a HEADERS frame with priority",
        (frame(raw.HEADERS, raw.PRIORITISED | 5, 1, struct.pack(">IB", 0, 255) + REQUEST),),
        answered,
    ),
    Case("generic 3.3", "Sends a PRIORITY frame with priority 1", (priority(1, weight=0), WHOLE), answered),
    Case(
        "generic 3.3", "Sends a PRIORITY frame with priority 256", (priority(1, weight=255), WHOLE), answered
    ),
    Case(
        "generic 3.3", "Sends a PRIORITY frame with stream dependency", (priority(3, on=1), WHOLE), answered
    ),
    Case("generic 3.3", "Sends a PRIORITY frame with exclusive", (priority(1, on=1 << 31), WHOLE), answered),
    Case(
        "generic 3.3",
        "Sends a PRIORITY frame for an idle stream, then send a HEADER frame for a lower stream ID",
        (priority(3), WHOLE),
        answered,
    ),
    Case("generic 3.4", "Sends a RST_STREAM frame", (OPEN, rst_stream(1), ping()), pinged),
    Case("generic 3.5", "Sends a SETTINGS frame", (settings(),), acknowledged),
    Case("generic 3.7", "Sends a PING frame", (ping(),), pinged),
    Case("generic 3.8", "Sends a GOAWAY frame", (frame(raw.GOAWAY, 0, 0, bytes(8)), ping()), pinged),
    Case(
        "generic 3.9", "Sends a WINDOW_UPDATE frame with stream ID 0", (window_update(0, 1), ping()), pinged
    ),
    Case(
        "generic 3.9",
        "Sends a WINDOW_UPDATE frame with stream ID 1",
        (OPEN, window_update(1, 1), data(1, end=True)),
        answered,
    ),
    Case("generic 3.10", "Sends a CONTINUATION frame", (UNFINISHED_WHOLE, continuation(1)), answered),
    Case(
        "generic 3.10",
        "Sends multiple CONTINUATION frames",
        (UNFINISHED_WHOLE, continuation(1, done=False), continuation(1, TRAILERS)),
        answered,
    ),
    Case("generic 4", "Sends a GET request", (request(),), answered),
    Case("generic 4", "Sends a HEAD request", (request(method="HEAD"),), answered),
    Case("generic 4", "Sends a POST request", (OPEN, data(1, b"test", end=True)), answered),
    Case(
        "generic 4",
        "Sends a POST request with trailers",
        (OPEN, data(1, b"test"), headers(1, TRAILERS, end=True)),
        answered,
    ),
    *(
        Case("generic 5", f"Sends a {title}", (hpack(bytes.fromhex(more)),), answered)
        for title, more in {
            # The first needs an entry of the dynamic table, which a literal before it makes.
            "indexed header field representation": "40 01 61 01 62 be",
            "literal header field with incremental indexing - indexed name": "7a 01 61",
            "literal header field with incremental indexing - indexed name (with Huffman coding)": (
                "7a 84 9c48aca4"
            ),
            "literal header field with incremental indexing - new name": "40 01 61 01 62",
            "literal header field with incremental indexing - new name (with Huffman coding)": (
                "40 85 f2b24a84ff 84 9c48aca4"
            ),
            "literal header field without indexing - indexed name": "0f 2b 01 61",
            "literal header field without indexing - indexed name (with Huffman coding)": "0f 2b 84 9c48aca4",
            "literal header field without indexing - new name": "00 01 61 01 62",
            "literal header field without indexing - new name (huffman encoded)": (
                "00 85 f2b24a84ff 84 9c48aca4"
            ),
            "literal header field never indexed - indexed name": "1f 2b 01 61",
            "literal header field never indexed - indexed name (huffman encoded)": "1f 2b 84 9c48aca4",
            "literal header field never indexed - new name": "10 01 61 01 62",
            "literal header field never indexed - new name (huffman encoded)": "10 85 f2b24a84ff 84 9c48aca4",
        }.items()
    ),
    Case(
        "generic 5",
        "Sends a dynamic table size update",
        (headers(1, b"\x3f\x61" + REQUEST, end=True),),
        answered,
    ),
    Case(
        "generic 5",
        "Sends multiple dynamic table size update",
        (headers(1, b"\x3f\x61\x3f\xe1\x1f" + REQUEST, end=True),),
        answered,
    ),
]

BAD_PING = frame(raw.PING, 0, 0, bytes(6))

HTTP2_TO_5 = [
    Case("http2 3.5", "Sends client connection preface", (raw.PREFACE + settings(),), began, greet=False),
    Case(
        "http2 3.5",
        "Sends invalid connection preface",
        (b"INVALID CONNECTION PREFACE\r\n\r\n",),
        connection(PROTOCOL_ERROR),
        greet=False,
    ),
    Case("http2 4.1", "Sends a frame with unknown type", (frame(255, 0, 0, bytes(8)), ping()), pinged),
    Case("http2 4.1", "Sends a frame with undefined flag", (ping(flags=0x16),), pinged),
    Case(
        "http2 4.1",
        "Sends a frame with reserved field bit",
        (ping()[:5] + b"\x80" + ping()[6:],),
        pinged,
    ),
    Case(
        "http2 4.2",
        "Sends a DATA frame with 2^14 octets in length",
        (OPEN, data(1, bytes(16384), end=True)),
        answered,
    ),
    Case(
        "http2 4.2",
        "Sends a large size DATA frame that exceeds the SETTINGS_MAX_FRAME_SIZE",
        (OPEN, data(1, bytes(16385), end=True)),
        connection(FRAME_SIZE_ERROR),
    ),
    Case(
        "http2 4.2",
        "Sends a large size HEADERS frame that exceeds the SETTINGS_MAX_FRAME_SIZE",
        (headers(1, REQUEST + bytes(16385)),),
        connection(FRAME_SIZE_ERROR),
    ),
    Case(
        "http2 4.3",
        "Sends invalid header block fragment",
        (headers(1, b"\x40", end=True),),
        connection(COMPRESSION_ERROR),
    ),
    Case(
        "http2 4.3",
        "Sends a PRIORITY frame while sending the header blocks",
        (UNFINISHED, priority(1), continuation(1)),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 4.3",
        "Sends a HEADERS frame to another stream while sending the header blocks",
        (UNFINISHED, headers(3), continuation(1)),
        connection(PROTOCOL_ERROR),
    ),
    Case("http2 5.1", "idle: Sends a DATA frame", (data(1, b"test", end=True),), connection(PROTOCOL_ERROR)),
    Case("http2 5.1", "idle: Sends a RST_STREAM frame", (rst_stream(1),), connection(PROTOCOL_ERROR)),
    Case(
        "http2 5.1", "idle: Sends a WINDOW_UPDATE frame", (window_update(1, 100),), connection(PROTOCOL_ERROR)
    ),
    Case(
        "http2 5.1",
        "idle: Sends a CONTINUATION frame",
        (continuation(1, REQUEST),),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 5.1",
        "half closed (remote): Sends a DATA frame",
        (WHOLE + data(1, b"test"),),
        stream(STREAM_CLOSED),
    ),
    Case("http2 5.1", "half closed (remote): Sends a HEADERS frame", (WHOLE + WHOLE,), stream(STREAM_CLOSED)),
    Case(
        "http2 5.1",
        "half closed (remote): Sends a CONTINUATION frame",
        (WHOLE + continuation(1, REQUEST),),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 5.1",
        "closed: Sends a DATA frame after sending RST_STREAM frame",
        (OPEN, rst_stream(1), data(1, b"test", end=True)),
        connection(STREAM_CLOSED),
    ),
    Case(
        "http2 5.1",
        "closed: Sends a HEADERS frame after sending RST_STREAM frame",
        (OPEN, rst_stream(1), WHOLE),
        connection(STREAM_CLOSED),
    ),
    Case(
        "http2 5.1",
        "closed: Sends a CONTINUATION frame after sending RST_STREAM frame",
        (OPEN, rst_stream(1), continuation(1)),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 5.1",
        "closed: Sends a DATA frame",
        (WHOLE, data(1, b"test", end=True)),
        connection(STREAM_CLOSED),
    ),
    Case("http2 5.1", "closed: Sends a HEADERS frame", (WHOLE, WHOLE), connection(STREAM_CLOSED)),
    Case(
        "http2 5.1",
        "closed: Sends a CONTINUATION frame",
        (WHOLE, continuation(1)),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 5.1.1",
        "Sends even-numbered stream identifier",
        (headers(2, end=True),),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 5.1.1",
        "Sends stream identifier that is numerically smaller than previous",
        (headers(5, end=True), headers(3, end=True)),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 5.1.2",
        "Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded",
        (headers(1), headers(3), headers(5)),
        stream(REFUSED_STREAM),
        streams_max=2,
    ),
    Case(
        "http2 5.3.1",
        "Sends HEADERS frame that depends on itself",
        (frame(raw.HEADERS, raw.PRIORITISED | 5, 1, struct.pack(">IB", 1, 255) + REQUEST),),
        stream(PROTOCOL_ERROR),
    ),
    Case(
        "http2 5.3.1",
        "Sends PRIORITY frame that depend on itself",
        (priority(1, on=1),),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 5.4.1",
        "Sends an invalid PING frame for connection close",
        (BAD_PING,),
        connection(FRAME_SIZE_ERROR),
    ),
    Case(
        "http2 5.4.1",
        "Sends an invalid PING frame to receive GOAWAY frame",
        (BAD_PING,),
        connection(FRAME_SIZE_ERROR),
    ),
    Case("http2 5.5", "Sends an unknown extension frame", (frame(0x16, 0, 0, bytes(8)), ping()), pinged),
    Case(
        "http2 5.5",
        "Sends an unknown extension frame in the middle of a header block",
        (UNFINISHED, frame(0x16, 0, 0, bytes(8)), continuation(1)),
        connection(PROTOCOL_ERROR),
    ),
]

HTTP2_6 = [
    Case(
        "http2 6.1",
        "Sends a DATA frame with 0x0 stream identifier",
        (data(0, b"test"),),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 6.1",
        'Sends a DATA frame on the stream that is not in "open" or "half-closed (local)" state',
        (WHOLE + data(1, b"test", end=True),),
        stream(STREAM_CLOSED),
    ),
    Case(
        "http2 6.1",
        "Sends a DATA frame with invalid pad length",
        (OPEN, frame(raw.DATA, raw.PADDED | raw.END_STREAM, 1, b"\x06Test")),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 6.2",
        "Sends a HEADERS frame without the END_HEADERS flag, and a PRIORITY frame",
        (UNFINISHED, priority(1)),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 6.2",
        "Sends a HEADERS frame to another stream while sending a HEADERS frame",
        (UNFINISHED, headers(3)),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 6.2",
        "Sends a HEADERS frame with 0x0 stream identifier",
        (headers(0),),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 6.2",
        "Sends a HEADERS frame with invalid pad length",
        (frame(raw.HEADERS, PADDED_END, 1, bytes([len(REQUEST) + 2]) + REQUEST),),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 6.3",
        "Sends a PRIORITY frame with 0x0 stream identifier",
        (priority(0),),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 6.3",
        "Sends a PRIORITY frame with a length other than 5 octets",
        (OPEN, frame(raw.PRIORITY, 0, 1, b"\x80\x00\x00\x01")),
        stream(FRAME_SIZE_ERROR),
    ),
    Case(
        "http2 6.4",
        "Sends a RST_STREAM frame with 0x0 stream identifier",
        (rst_stream(0),),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 6.4", "Sends a RST_STREAM frame on a idle stream", (rst_stream(1),), connection(PROTOCOL_ERROR)
    ),
    Case(
        "http2 6.4",
        "Sends a RST_STREAM frame with a length other than 4 octets",
        (OPEN, frame(raw.RST_STREAM, 0, 1, bytes(3))),
        connection(FRAME_SIZE_ERROR),
    ),
    Case(
        "http2 6.5",
        "Sends a SETTINGS frame with ACK flag and payload",
        (frame(4, 1, 0, b"\x00"),),
        connection(FRAME_SIZE_ERROR),
    ),
    Case(
        "http2 6.5",
        "Sends a SETTINGS frame with a stream identifier other than 0x0",
        (frame(4, 0, 1, struct.pack(">HI", 3, 100)),),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 6.5",
        "Sends a SETTINGS frame with a length other than a multiple of 6 octets",
        (frame(4, 0, 0, b"\x00\x03\x00"),),
        connection(FRAME_SIZE_ERROR),
    ),
    *(
        Case("http2 6.5.2", title, (settings(entry),), connection(code))
        for title, entry, code in [
            ("SETTINGS_ENABLE_PUSH (0x2): Sends the value other than 0 or 1", (2, 2), PROTOCOL_ERROR),
            (
                "SETTINGS_INITIAL_WINDOW_SIZE (0x4): Sends the value above the maximum flow control window "
                "size",
                (4, 1 << 31),
                FLOW_CONTROL_ERROR,
            ),
            (
                "SETTINGS_MAX_FRAME_SIZE (0x5): Sends the value below the initial value",
                (5, 16383),
                PROTOCOL_ERROR,
            ),
            (
                "SETTINGS_MAX_FRAME_SIZE (0x5): Sends the value above the maximum allowed frame size",
                (5, 1 << 24),
                PROTOCOL_ERROR,
            ),
        ]
    ),
    Case(
        "http2 6.5.2", "Sends a SETTINGS frame with unknown identifier", (settings((0xFF, 1)), ping()), pinged
    ),
    Case(
        "http2 6.5.3",
        "Sends multiple values of SETTINGS_INITIAL_WINDOW_SIZE",
        (settings((INITIAL_WINDOW, 100), (INITIAL_WINDOW, 1)), WHOLE),
        sends(1),
    ),
    Case("http2 6.5.3", "Sends a SETTINGS frame without ACK flag", (settings((2, 0)),), acknowledged),
    Case("http2 6.7", "Sends a PING frame", (ping(),), pinged),
    Case("http2 6.7", "Sends a PING frame with ACK", (ping(b"invalid_", raw.ACK), ping()), pinged),
    Case(
        "http2 6.7",
        "Sends a PING frame with a stream identifier field value other than 0x0",
        (frame(raw.PING, 0, 1, bytes(8)),),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 6.7",
        "Sends a PING frame with a length field value other than 8",
        (BAD_PING,),
        connection(FRAME_SIZE_ERROR),
    ),
    Case(
        "http2 6.8",
        "Sends a GOAWAY frame with a stream identifier other than 0x0",
        (frame(raw.GOAWAY, 0, 1, bytes(8)),),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 6.9",
        "Sends a WINDOW_UPDATE frame with a flow control window increment of 0",
        (window_update(0, 0),),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 6.9",
        "Sends a WINDOW_UPDATE frame with a flow control window increment of 0 on a stream",
        (OPEN, window_update(1, 0)),
        stream(PROTOCOL_ERROR),
    ),
    Case(
        "http2 6.9",
        "Sends a WINDOW_UPDATE frame with a length other than 4 octets",
        (frame(raw.WINDOW_UPDATE, 0, 0, bytes(3)),),
        connection(FRAME_SIZE_ERROR),
    ),
    Case(
        "http2 6.9.1",
        "Sends SETTINGS frame to set the initial window size to 1 and sends HEADERS frame",
        (settings((INITIAL_WINDOW, 1)), WHOLE),
        sends(1),
    ),
    Case(
        "http2 6.9.1",
        "Sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1",
        (window_update(0, (1 << 31) - 1), window_update(0, (1 << 31) - 1)),
        connection(FLOW_CONTROL_ERROR),
    ),
    Case(
        "http2 6.9.1",
        "Sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1 on a stream",
        (OPEN, window_update(1, (1 << 31) - 1), window_update(1, (1 << 31) - 1)),
        stream(FLOW_CONTROL_ERROR),
    ),
    Case(
        "http2 6.9.2",
        "Changes SETTINGS_INITIAL_WINDOW_SIZE after sending HEADERS frame",
        (settings((INITIAL_WINDOW, 0)), WHOLE, settings((INITIAL_WINDOW, 1))),
        sends(1),
    ),
    Case(
        "http2 6.9.2",
        "Sends a SETTINGS frame for window size to be negative",
        (settings((INITIAL_WINDOW, 3)), WHOLE, settings((INITIAL_WINDOW, 2)), window_update(1, 2)),
        sends(3, 1),
    ),
    Case(
        "http2 6.9.2",
        "Sends a SETTINGS_INITIAL_WINDOW_SIZE settings with an exceeded maximum window size value",
        (settings((INITIAL_WINDOW, 1 << 31)),),
        connection(FLOW_CONTROL_ERROR),
    ),
    Case(
        "http2 6.10",
        "Sends multiple CONTINUATION frames preceded by a HEADERS frame",
        (UNFINISHED_WHOLE, continuation(1, done=False), continuation(1, TRAILERS)),
        answered,
    ),
    Case(
        "http2 6.10",
        "Sends a CONTINUATION frame followed by any frame other than CONTINUATION",
        (UNFINISHED, continuation(1, done=False), data(1, b"test", end=True)),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 6.10",
        "Sends a CONTINUATION frame with 0x0 stream identifier",
        (UNFINISHED, continuation(0)),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 6.10",
        "Sends a CONTINUATION frame preceded by a HEADERS frame with END_HEADERS flag",
        (OPEN, continuation(1)),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 6.10",
        "Sends a CONTINUATION frame preceded by a CONTINUATION frame with END_HEADERS flag",
        (UNFINISHED, continuation(1), continuation(1)),
        connection(PROTOCOL_ERROR),
    ),
    Case(
        "http2 6.10",
        "Sends a CONTINUATION frame preceded by a DATA frame",
        (OPEN, data(1, b"test"), continuation(1)),
        connection(PROTOCOL_ERROR),
    ),
]

HTTP2_FROM_7 = [
    Case(
        "http2 7",
        "Sends a GOAWAY frame with unknown error code",
        (frame(raw.GOAWAY, 0, 0, struct.pack(">II", 0, 0xFF)), ping()),
        pinged,
    ),
    Case(
        "http2 7",
        "Sends a RST_STREAM frame with unknown error code",
        (OPEN, rst_stream(1, 0xFF), ping()),
        pinged,
    ),
    Case(
        "http2 8.1",
        "Sends a second HEADERS frame without the END_STREAM flag",
        (OPEN, headers(1)),
        stream(PROTOCOL_ERROR),
    ),
    *(
        Case(f"http2 {section}", f"Sends a HEADERS frame {title}", sent, stream(PROTOCOL_ERROR))
        for section, title, sent in [
            (
                "8.1.2",
                "that contains the header field name in uppercase letters",
                (extended(b"X-TEST", b"ok"),),
            ),
            ("8.1.2.1", "that contains a unknown pseudo-header field", (hpack(field(b":test", b"ok")),)),
            (
                "8.1.2.1",
                "that contains the pseudo-header field defined for response",
                (hpack(field(b":status", b"200")),),
            ),
            (
                "8.1.2.1",
                "that contains a pseudo-header field as trailers",
                (OPEN, data(1, b"test"), headers(1, field(b":method", b"POST"), end=True)),
            ),
            (
                "8.1.2.1",
                "that contains a pseudo-header field that appears in a header block after a regular header "
                "field",
                (headers(1, field(b"x-test", b"ok") + REQUEST, end=True),),
            ),
            (
                "8.1.2.2",
                "that contains the connection-specific header field",
                (extended(b"connection", b"keep-alive"),),
            ),
            (
                "8.1.2.2",
                'that contains the TE header field with any value other than "trailers"',
                (extended(b"te", b"trailers, deflate;q=0.5"),),
            ),
            ("8.1.2.3", 'with empty ":path" pseudo-header field', (request(path=""),)),
            ("8.1.2.3", 'that omits ":method" pseudo-header field', (request(method=None),)),
            ("8.1.2.3", 'that omits ":scheme" pseudo-header field', (request(scheme=None),)),
            ("8.1.2.3", 'that omits ":path" pseudo-header field', (request(path=None),)),
            (
                "8.1.2.3",
                'with duplicated ":method" pseudo-header field',
                (headers(1, b"\x83" + REQUEST, end=True),),
            ),
            (
                "8.1.2.3",
                'with duplicated ":scheme" pseudo-header field',
                (headers(1, b"\x86" + REQUEST, end=True),),
            ),
            (
                "8.1.2.3",
                'with duplicated ":path" pseudo-header field',
                (headers(1, b"\x84" + REQUEST, end=True),),
            ),
            (
                "8.1.2.6",
                'with the "content-length" header field which does not equal the DATA frame payload length',
                (extended(b"content-length", b"1", end=False), data(1, b"test", end=True)),
            ),
            (
                "8.1.2.6",
                'with the "content-length" header field which does not equal the sum of the multiple DATA '
                "frames payload length",
                (extended(b"content-length", b"9", end=False), data(1, b"test"), data(1, b"test", end=True)),
            ),
        ]
    ),
    Case(
        "http2 8.2",
        "Sends a PUSH_PROMISE frame",
        (OPEN, frame(raw.PUSH_PROMISE, raw.END_HEADERS, 1, struct.pack(">I", 2) + REQUEST)),
        connection(PROTOCOL_ERROR),
    ),
]

HPACK = [
    Case(f"hpack {section}", f"Sends a {title}", (sent,), connection(COMPRESSION_ERROR))
    for section, title, sent in [
        ("2.3.3", "indexed header field representation with invalid index", hpack(b"\xc6")),
        ("2.3.3", "literal header field representation with invalid index", hpack(b"\x7f\x07\x00")),
        ("4.2", "dynamic table size update at the end of header block", hpack(b"\x21")),
        (
            "5.2",
            "Huffman-encoded string literal representation with padding longer than 7 bits",
            hpack(bytes.fromhex("00 85 f2b24a84ff 84 49509fff")),
        ),
        (
            "5.2",
            "Huffman-encoded string literal representation padded by zero",
            hpack(bytes.fromhex("00 85 f2b24a84ff 83 495090")),
        ),
        (
            "5.2",
            "Huffman-encoded string literal representation containing the EOS symbol",
            hpack(bytes.fromhex("00 85 f2b24a84ff 87 4951fffffffa7f")),
        ),
        ("6.1", "indexed header field representation with index 0", hpack(b"\x80")),
        (
            "6.3",
            "dynamic table size update larger than the value of SETTINGS_HEADER_TABLE_SIZE",
            headers(1, b"\x3f\xe2\x1f" + REQUEST, end=True),
        ),
    ]
]

CASES = [*GENERIC, *HTTP2_TO_5, *HTTP2_6, *HTTP2_FROM_7, *HPACK]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.section}: {case.title}")
def test_case(case: Case) -> None:
    """A case of h2spec's list has the outcome that the RFC asks for."""
    client = RawClient(greet=case.greet, answers=True, connection_streams_max=case.streams_max)
    for sent in case.sent:
        client.send(sent)
    case.check(client)


def test_the_list_is_whole() -> None:
    """As many cases as h2spec 2.6 has in each of its groups: none is lost."""
    groups = [case.section.split()[0] for case in CASES]
    assert {group: groups.count(group) for group in set(groups)} == {"generic": 44, "http2": 95, "hpack": 8}
    assert len({(case.section, case.title) for case in CASES}) == len(CASES)


def test_settings_are_acknowledged_after_the_first() -> None:
    """Every SETTINGS is acknowledged once, in order (section 6.5.3)."""
    client = RawClient()
    client.send(settings(), settings((INITIAL_WINDOW, 1)), SETTINGS_ACK, settings())
    assert [each.flags == {"ACK"} for each in client.sent(SettingsFrame)] == [True] * 3
