"""Every state of a stream × every frame; expectations from the text of RFC 9113, its section beside each."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from tests.transport import raw_client as raw
from tests.transport.raw_client import (
    FLOW_CONTROL_ERROR,
    NO_ERROR,
    PROTOCOL_ERROR,
    STREAM_CLOSED,
    RawClient,
)

from cellstream.transport.http2 import CLOSED_REMEMBERED_MIN, NEXT_STATE, Move, State

Expected = tuple[str, int] | str
"""("connection", code) and ("stream", code) are errors, "ignored" is nothing at all; else the event."""

STREAM = 5
"""The stream that all is about."""


def connection(code: int) -> Expected:
    """Return a connection error."""
    return ("connection", code)


def stream(code: int) -> Expected:
    """Return a stream error."""
    return ("stream", code)


IGNORED = "ignored"

# ---------------------------------------------------------------- states


def idle(client: RawClient) -> None:
    """Say nothing of the stream."""


def opened(client: RawClient) -> None:
    """Open it."""
    client.open(STREAM)


def half_closed_remote(client: RawClient) -> None:
    """Open it, and the client ends it."""
    client.open(STREAM, end=True)


def half_closed_local(client: RawClient) -> None:
    """Open it, and we end it."""
    client.connection.send_headers(client.open(STREAM), raw.STATUS_200, end=True)


def ended(client: RawClient) -> None:
    """Both end it."""
    client.connection.send_headers(client.open(STREAM, end=True), raw.STATUS_200, end=True)


def reset_by_peer(client: RawClient) -> None:
    """The client resets it."""
    client.open(STREAM)
    client.send(raw.rst_stream(STREAM))


def reset_by_us(client: RawClient) -> None:
    """We reset it."""
    client.connection.reset(client.open(STREAM), NO_ERROR)


def forgotten(client: RawClient) -> None:
    """End it, and so many others that we no longer know it."""
    client.connection.send_headers(client.open(STREAM, end=True), raw.STATUS_200, end=True)
    for number in range(2 * CLOSED_REMEMBERED_MIN):
        later = client.open(STREAM + 2 + 2 * number, end=True)
        client.connection.send_headers(later, raw.STATUS_200, end=True)


def skipped(client: RawClient) -> None:
    """Open a higher stream first, so that this one can never be (section 5.1.1)."""
    client.open(STREAM + 2)


def after_goaway(client: RawClient) -> None:
    """Say that we take no such stream; the client opens it before it hears of that."""
    client.connection.go_away(last=True)
    client.send(raw.headers(STREAM))


# ---------------------------------------------------------------- frames

FRAMES: dict[str, bytes] = {
    "DATA": raw.data(STREAM, b"abc"),
    "HEADERS": raw.headers(STREAM, raw.TRAILERS, end=True),
    "PRIORITY": raw.priority(STREAM),
    "RST_STREAM": raw.rst_stream(STREAM),
    "SETTINGS": raw.frame(raw.SETTINGS, 0, STREAM),
    "PUSH_PROMISE": raw.frame(raw.PUSH_PROMISE, raw.END_HEADERS, STREAM, struct.pack(">I", 2) + raw.REQUEST),
    "PING": raw.frame(raw.PING, 0, STREAM, bytes(8)),
    "GOAWAY": raw.frame(raw.GOAWAY, 0, STREAM, bytes(8)),
    "WINDOW_UPDATE": raw.window_update(STREAM, 1),
    "CONTINUATION": raw.frame(raw.CONTINUATION, raw.END_HEADERS, STREAM, raw.TRAILERS),
    "unknown": raw.frame(0xFA, 0xFF, STREAM, b"abc"),
}

WHATEVER_THE_STATE: dict[str, tuple[Expected, str]] = {
    "PRIORITY": (IGNORED, "5.1: PRIORITY can be sent and received in any state; 5.3.2: it is ignored"),
    "SETTINGS": (connection(PROTOCOL_ERROR), "6.5: stream identifier other than 0x00"),
    "PUSH_PROMISE": (connection(PROTOCOL_ERROR), "8.4: a client cannot push"),
    "PING": (connection(PROTOCOL_ERROR), "6.7: stream identifier other than 0x00"),
    "GOAWAY": (connection(PROTOCOL_ERROR), "6.8: stream identifier other than 0x00"),
    "CONTINUATION": (connection(PROTOCOL_ERROR), "6.10: not preceded by HEADERS without END_HEADERS"),
    "unknown": (IGNORED, "4.1: frames of unknown types are ignored and discarded"),
}

OF_A_STATE: dict[Callable[[RawClient], None], dict[str, tuple[Expected, str]]] = {
    idle: {
        "DATA": (connection(PROTOCOL_ERROR), "5.1 idle: any frame other than HEADERS or PRIORITY"),
        "HEADERS": (stream(PROTOCOL_ERROR), "5.1 idle: opens it; 8.3.1: but these have no :method"),
        "RST_STREAM": (connection(PROTOCOL_ERROR), "6.4: RST_STREAM for an idle stream"),
        "WINDOW_UPDATE": (connection(PROTOCOL_ERROR), "5.1 idle: any frame other than HEADERS or PRIORITY"),
    },
    opened: {
        "DATA": ("DataReceived", "5.1 open: frames of any type"),
        "HEADERS": ("TrailersReceived", "8.1: trailers, with END_STREAM"),
        "RST_STREAM": ("StreamReset", "5.1 open: RST_STREAM closes it"),
        "WINDOW_UPDATE": ("WindowOpened", "6.9"),
    },
    half_closed_remote: {
        "DATA": (stream(STREAM_CLOSED), "5.1 half-closed (remote): stream error STREAM_CLOSED"),
        "HEADERS": (stream(STREAM_CLOSED), "5.1 half-closed (remote): stream error STREAM_CLOSED"),
        "RST_STREAM": ("StreamReset", "5.1 half-closed (remote): RST_STREAM closes it"),
        "WINDOW_UPDATE": ("WindowOpened", "5.1 half-closed (remote): WINDOW_UPDATE is allowed"),
    },
    half_closed_local: {
        "DATA": ("DataReceived", "5.1 half-closed (local): any type of frame"),
        "HEADERS": ("TrailersReceived", "5.1 half-closed (local): any type of frame"),
        "RST_STREAM": ("StreamReset", "5.1 half-closed (local): RST_STREAM closes it"),
        "WINDOW_UPDATE": (IGNORED, "5.1 half-closed (local): allowed, and we have nothing to send"),
    },
    ended: {
        "DATA": (connection(STREAM_CLOSED), "5.1 closed: connection error STREAM_CLOSED"),
        "HEADERS": (connection(STREAM_CLOSED), "5.1 closed: connection error STREAM_CLOSED"),
        "RST_STREAM": (IGNORED, "5.1 closed: may come in the time before the peer has read our end"),
        "WINDOW_UPDATE": (IGNORED, "5.1 closed: may come in the time before the peer has read our end"),
    },
    reset_by_peer: {
        "DATA": (connection(STREAM_CLOSED), "5.1 closed: connection error STREAM_CLOSED"),
        "HEADERS": (connection(STREAM_CLOSED), "5.1 closed: connection error STREAM_CLOSED"),
        "RST_STREAM": (IGNORED, "5.1 closed: an error is permitted, not asked"),
        "WINDOW_UPDATE": (IGNORED, "5.1 closed: an error is permitted, not asked"),
    },
    reset_by_us: {
        "DATA": (IGNORED, "5.1 closed: after our RST_STREAM any frame may be under way; discard it"),
        "HEADERS": (IGNORED, "5.1 closed: after our RST_STREAM any frame may be under way; discard it"),
        "RST_STREAM": (IGNORED, "5.1 closed: after our RST_STREAM any frame may be under way; discard it"),
        "WINDOW_UPDATE": (IGNORED, "5.1 closed: after our RST_STREAM any frame may be under way; discard it"),
    },
    forgotten: {
        "DATA": (IGNORED, "5.1 closed: the minimal processing is allowed for all closed streams"),
        "HEADERS": (IGNORED, "5.1 closed: the minimal processing is allowed for all closed streams"),
        "RST_STREAM": (IGNORED, "5.1 closed: the minimal processing is allowed for all closed streams"),
        "WINDOW_UPDATE": (IGNORED, "5.1 closed: the minimal processing is allowed for all closed streams"),
    },
    skipped: {
        "DATA": (connection(STREAM_CLOSED), "5.1.1: lower streams are closed; 5.1 closed: STREAM_CLOSED"),
        "HEADERS": (connection(PROTOCOL_ERROR), "5.1.1: an unexpected stream identifier"),
        "RST_STREAM": (IGNORED, "5.1 closed: an error is permitted, not asked"),
        "WINDOW_UPDATE": (IGNORED, "5.1 closed: an error is permitted, not asked"),
    },
    after_goaway: {
        "DATA": (IGNORED, "6.8: frames on streams above the last are discarded"),
        "HEADERS": (IGNORED, "6.8: frames on streams above the last are discarded"),
        "RST_STREAM": (IGNORED, "6.8: frames on streams above the last are discarded"),
        "WINDOW_UPDATE": (IGNORED, "6.8: frames on streams above the last are discarded"),
    },
}

CASES = [
    pytest.param(state, kind, *(rows.get(kind) or WHATEVER_THE_STATE[kind]), id=f"{state.__name__}-{kind}")
    for state, rows in OF_A_STATE.items()
    for kind in FRAMES
]


@pytest.mark.parametrize(("state", "kind", "expected", "section"), CASES)
def test_a_frame_in_a_state(
    state: Callable[[RawClient], None], kind: str, expected: Expected, section: str
) -> None:
    """A frame is answered, in each state, as the RFC says; a wrong answer breaks clients or hides faults."""
    client = RawClient()
    state(client)
    client.collect()
    client.events.clear()
    client.frames.clear()
    client.send(FRAMES[kind])
    if isinstance(expected, tuple):
        assert client.failure == expected, section
    else:
        assert client.failure is None, section
        names = [type(event).__name__ for event in client.events]
        assert names == ([] if expected == IGNORED else [expected]), section
        assert client.connection.preface_received
        assert not client.connection.failed


@pytest.mark.parametrize("state", OF_A_STATE, ids=lambda state: state.__name__)
def test_the_connection_goes_on_after_what_is_not_a_connection_error(
    state: Callable[[RawClient], None],
) -> None:
    """A new stream opens after every frame that is ignored or that is one stream's fault, table intact."""
    for kind in FRAMES:
        expected, section = OF_A_STATE[state].get(kind) or WHATEVER_THE_STATE[kind]
        if expected[0] == "connection" or state is after_goaway:
            continue
        client = RawClient()
        state(client)
        client.send(FRAMES[kind])
        assert client.open(STREAM + 1000).state is State.OPEN, (kind, section)


# RFC 9113, figure 2, without what a server that does not push never sees: R is END_STREAM received, S sent.
FIGURE_2 = """
open                 R      half-closed (remote)
open                 S      half-closed (local)
open                 reset  closed
half-closed (remote) S      closed
half-closed (remote) reset  closed
half-closed (local)  R      closed
half-closed (local)  reset  closed
"""


def test_the_table_of_states_is_figure_2() -> None:
    """The table has every arrow of the figure and no other."""
    moves = {"R": Move.RECEIVE_END, "S": Move.SEND_END, "reset": Move.RESET}
    rows = [
        [part.strip() for part in (line[:21], line[21:28], line[28:])]
        for line in FIGURE_2.strip().split("\n")
    ]
    assert {(State(before), moves[move]): State(after) for before, move, after in rows} == NEXT_STATE


@pytest.mark.parametrize("by_peer", [True, False])
@pytest.mark.parametrize("before", [opened, half_closed_remote, half_closed_local])
def test_flags_follow_the_state(before: Callable[[RawClient], None], by_peer: bool) -> None:
    """What the layer above reads of a stream is what its state says, and a reset takes it from `streams`."""
    client = RawClient()
    before(client)
    stream = client.connection.streams[STREAM]
    assert stream.receive_ended == (before is half_closed_remote)
    assert stream.send_ended == (before is half_closed_local)
    assert not stream.closed
    if by_peer:
        client.send(raw.rst_stream(STREAM))
    else:
        client.connection.reset(stream, raw.CANCEL)
    assert stream.closed
    assert client.connection.streams == {}


def test_a_window_too_large_is_a_fault_of_its_stream_alone() -> None:
    """Section 6.9.1: a stream's window beyond 2^31-1 is a stream error, the connection's one of its own."""
    client = RawClient()
    client.open(STREAM)
    client.send(raw.window_update(STREAM, (1 << 31) - 1))
    assert client.failure == stream(FLOW_CONTROL_ERROR)
    client = RawClient()
    client.send(raw.window_update(0, (1 << 31) - 1))
    assert client.failure == connection(FLOW_CONTROL_ERROR)
