"""Where we and h2's server answer the same bytes differently, and why: each row a section of RFC 9113."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.exceptions
import pytest
from tests.transport import raw_client as raw
from tests.transport.raw_client import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    PREFACE,
    PROTOCOL_ERROR,
    REQUEST,
    STREAM_CLOSED,
    RawClient,
    data,
    field,
    frame,
    headers,
    parse,
    priority,
    rst_stream,
    settings,
    window_update,
)

Answer = tuple[str, int] | None


def h2_answers(sent: bytes) -> Answer:
    """Return what h2 says to these bytes after the greeting."""
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
    server.initiate_connection()
    server.receive_data(PREFACE + settings() + raw.SETTINGS_ACK)
    server.clear_outbound_data_buffer()
    try:
        server.receive_data(sent)
    except h2.exceptions.ProtocolError as error:
        return ("connection", int(error.error_code))
    for each in parse(server.data_to_send()):
        if type(each).__name__ == "RstStreamFrame":
            return ("stream", each.error_code)
    return None


def we_answer(sent: bytes) -> Answer:
    """Return what we say to them."""
    client = RawClient()
    client.send(sent)
    return client.failure


ALIKE = [
    ("5.1 idle", data(1, b"x")),
    ("5.1 idle", rst_stream(1)),
    ("5.1 idle", window_update(1, 1)),
    ("5.1 half-closed (remote)", headers(1, end=True) + data(1, b"x")),
    ("5.1.1", headers(2)),
    ("6.1", data(0, b"x")),
    ("6.10", headers(1, done=False) + priority(1)),
    ("6.4", headers(1) + frame(raw.RST_STREAM, 0, 1, bytes(3))),
    ("6.5", frame(raw.SETTINGS, 0, 1)),
    ("6.5.2", settings((2, 2))),
    ("6.5.2", settings((4, 1 << 31))),
    ("6.7", frame(raw.PING, 0, 1, bytes(8))),
    ("6.9", window_update(0, 0)),
    ("6.9.1", window_update(0, (1 << 31) - 1)),
    ("6.9.1", headers(1) + window_update(1, (1 << 31) - 1)),
]

connection_1 = ("connection", PROTOCOL_ERROR)
stream_1 = ("stream", PROTOCOL_ERROR)

DIFFERENT: list[tuple[str, bytes, Answer, Answer]] = [
    # section and reason, bytes, our answer, h2's
    *(
        (f"8.1.1: a malformed request is a stream error: {what}", headers(1, block), stream_1, connection_1)
        for what, block in {
            "a name in uppercase": REQUEST + field(b"A", b"b"),
            "a name beyond ASCII": REQUEST + field(b"\xe9", b"v"),
            "a value with NUL": REQUEST + field(b"n", b"a\0v"),
            "a value with a space in front": REQUEST + field(b"n", b" v"),
            "no :method": REQUEST[1:],
            "connection": REQUEST + field(b"connection", b"close"),
            "te": REQUEST + field(b"te", b"gzip"),
        }.items()
    ),
    (
        "8.1.1: a content-length that is not kept is a stream error",
        headers(1, REQUEST + field(b"content-length", b"1")) + data(1, b"ab", end=True),
        stream_1,
        connection_1,
    ),
    (
        "8.1: trailers without END_STREAM are malformed, a stream error",
        headers(1) + headers(1, raw.TRAILERS),
        stream_1,
        connection_1,
    ),
    (
        "8.1: pseudo-headers in trailers are malformed, a stream error",
        headers(1) + headers(1, field(b":path", b"/"), end=True),
        stream_1,
        connection_1,
    ),
    (
        "RFC 7540, 5.3.1: a stream that depends on itself is a stream error",
        headers(1) + priority(1, on=1),
        stream_1,
        connection_1,
    ),
    (
        "6.3: PRIORITY of a wrong length is a stream error",
        headers(1) + frame(raw.PRIORITY, 0, 1, bytes(4)),
        ("stream", FRAME_SIZE_ERROR),
        ("connection", FRAME_SIZE_ERROR),
    ),
    (
        "6.9: an increment of 0 is a stream error on a stream",
        headers(1) + window_update(1, 0),
        stream_1,
        connection_1,
    ),
    (
        "6.9.1: DATA beyond a stream's window may be either; ours spares the neighbours",
        headers(1) + data(1, bytes(16_384)) * 5,
        ("stream", FLOW_CONTROL_ERROR),
        ("connection", FLOW_CONTROL_ERROR),
    ),
    (
        "5.1 closed: DATA after the peer's own RST_STREAM may be a connection error",
        headers(1) + rst_stream(1) + data(1, b"x"),
        ("connection", STREAM_CLOSED),
        ("stream", STREAM_CLOSED),
    ),
    (
        "5.1.1: a skipped stream is closed; DATA on it may be a connection error",
        headers(5) + data(3, b"x"),
        ("connection", STREAM_CLOSED),
        ("stream", STREAM_CLOSED),
    ),
    (
        "6.5: SETTINGS with ACK and a payload is FRAME_SIZE_ERROR",
        frame(raw.SETTINGS, raw.ACK, 0, bytes(6)),
        ("connection", FRAME_SIZE_ERROR),
        connection_1,
    ),
    (
        "4.3: a block that cannot be decoded is COMPRESSION_ERROR",
        headers(1, b"\x80"),
        ("connection", COMPRESSION_ERROR),
        connection_1,
    ),
    (
        "RFC 7541, 4.2: two table size updates say all; h2 takes any number",
        headers(1, b"\x20\x20\x20" + REQUEST),
        ("connection", COMPRESSION_ERROR),
        None,
    ),
    (
        "10.5: SETTINGS of many entries is denial of service",
        settings(*[(255, 0)] * 40),
        ("connection", ENHANCE_YOUR_CALM),
        None,
    ),
    (
        "10.5.1: a block in many frames is denial of service",
        headers(1, done=False) + frame(raw.CONTINUATION, 0, 1) * 9,
        ("connection", ENHANCE_YOUR_CALM),
        None,
    ),
]


@pytest.mark.parametrize(("section", "sent"), ALIKE, ids=[f"{n}: {s}" for n, (s, _) in enumerate(ALIKE)])
def test_alike(section: str, sent: bytes) -> None:
    """On these faults two readers of the RFC agree."""
    assert we_answer(sent) == h2_answers(sent), section
    assert we_answer(sent) is not None


@pytest.mark.parametrize(("section", "sent", "ours", "theirs"), DIFFERENT, ids=[row[0] for row in DIFFERENT])
def test_different(section: str, sent: bytes, ours: Answer, theirs: Answer) -> None:
    """On these we follow the section; if h2 changes its mind, the row can go."""
    assert we_answer(sent) == ours, section
    assert h2_answers(sent) == theirs, section
