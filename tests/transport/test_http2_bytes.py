"""However the bytes are cut and however often `events` is asked, the same comes of them."""

from __future__ import annotations

import functools
import math
from itertools import pairwise

import h2.config
import h2.connection
import h2.settings
import hpack
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.transport import raw_client as raw
from tests.transport.raw_client import ANY_BUDGET, PREFACE, plain
from tests.transport.test_http2_h2spec import CASES

from cellstream.settings import Settings
from cellstream.transport.http2 import Connection

LIMITS = {"connection_streams_max": 2}


@functools.cache
def conversation() -> bytes:
    """Return what h2 sends as a client that uses every kind of frame, 16 KiB of data included."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/a/B"),
        (":authority", "a"),
        ("te", "trailers"),
    ]
    for stream_id in (1, 3):
        client.send_headers(stream_id, [*fields, ("number", str(stream_id))], priority_weight=7)
        client.send_data(stream_id, b"\0\0\0\0\5hello", pad_length=9)
    client.send_data(1, bytes(16384))
    client.send_headers(1, [("some", "trailer")], end_stream=True)
    client.increment_flow_control_window(1000)
    client.increment_flow_control_window(70_000, 3)
    client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
    client.ping(b"12345678")
    client.prioritize(3, weight=99)
    client.reset_stream(3)
    client.send_headers(5, [*fields, ("long", "x" * 40_000)], end_stream=True)  # three frames
    client.close_connection()
    return client.data_to_send()


def run(pieces: list[bytes], budget: int = ANY_BUDGET) -> tuple[list[tuple[object, ...]], bytes]:
    """Return the events and the output of a connection that receives these pieces."""
    connection = Connection(Settings(**LIMITS, header_block_bytes_max=1 << 17), lambda: 0.0)
    events = []
    for piece in pieces:
        connection.receive(piece)
        events += connection.events(budget)
        while connection.has_input:
            events += connection.events(budget)
    return plain(events), connection.take_output()


@functools.cache
def all_at_once() -> tuple[list[tuple[object, ...]], bytes]:
    """Return what the conversation gives in one piece."""
    return run([conversation()])


def test_the_conversation_has_every_event_of_a_good_client() -> None:
    """The conversation is worth comparing: every event that its frames can make is in it."""
    events, _ = run([conversation()])
    assert [name for name, *_ in events] == [
        *("RequestReceived", "DataReceived") * 2,
        "DataReceived",
        "TrailersReceived",
        "WindowOpened",
        "WindowOpened",
        "WindowOpened",
        "StreamReset",
        "RequestReceived",
    ]


def test_one_byte_at_a_time() -> None:
    """A whole conversation in pieces of one byte gives the same events and output as in one."""
    whole = conversation()
    assert run([bytes([byte]) for byte in whole]) == run([whole])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.section}: {case.title}")
def test_one_byte_at_a_time_of_every_case(case) -> None:
    """Faults too: the same code, after the same events, wherever the cut is."""
    whole = b"".join((*([PREFACE, raw.settings(), raw.SETTINGS_ACK] if case.greet else []), *case.sent))
    assert run([bytes([byte]) for byte in whole]) == run([whole])


@hypothesis.settings(deadline=None, max_examples=60)
@given(cuts=st.lists(st.integers(0, len(conversation())), max_size=20), budget=st.integers(1, 40))
def test_any_cuts_and_any_budget(cuts: list[int], budget: int) -> None:
    """Cuts in any places, and any budget, change nothing."""
    whole = conversation()
    places = [0, *sorted(cuts), len(whole)]
    pieces = [whole[start:stop] for start, stop in pairwise(places)]
    assert run(pieces, budget) == all_at_once()


@hypothesis.settings(deadline=None, max_examples=100)
@given(
    changes=st.lists(st.tuples(st.integers(0, len(conversation()) - 1), st.integers(0, 255)), max_size=4),
    cut=st.tuples(st.integers(0, 400), st.integers(0, 30)),
    budget=st.integers(1, 40),
)
def test_a_mutated_conversation(changes: list[tuple[int, int]], cut: tuple[int, int], budget: int) -> None:
    """Whatever is wrong with the bytes, it is an event: nothing is raised, and windows stay within bounds."""
    mutated = bytearray(conversation())
    for at, byte in changes:
        mutated[at] = byte
    del mutated[cut[0] : cut[0] + cut[1]]
    connection = Connection(Settings(**LIMITS), lambda: 0.0)
    connection.receive(bytes(mutated))
    events = []
    while connection.has_input:
        events += connection.events(budget)
    assert connection.failed == any(name == "ConnectionFailed" for name, *_ in plain(events))
    assert all(0 <= stream.held_bytes <= 65_536 for stream in connection.streams.values())
    raw.parse(connection.take_output())


def greeted() -> Connection:
    """Return a connection whose preface is done."""
    connection = Connection(Settings(), lambda: 0.0)
    connection.receive(PREFACE + raw.settings() + raw.SETTINGS_ACK)
    connection.events(ANY_BUDGET)
    return connection


def test_a_budget_is_spent_frame_by_frame() -> None:
    """One frame is one unit; what is left over waits, and `has_input` says so."""
    connection = greeted()
    connection.receive(raw.headers(1))
    connection.events(ANY_BUDGET)
    connection.receive(raw.data(1, b"a") * 6)
    assert len(connection.events(3)) == 3
    assert connection.spent == 3
    assert connection.has_input
    assert len(connection.events(3)) == 3
    assert not connection.has_input
    assert connection.events(3) == []
    assert connection.spent == 0


def test_a_header_block_costs_a_unit_for_each_64_bytes_and_any_part_of_them() -> None:
    """A block costs by its list, as few bytes can be many fields: so blocks cannot hold the turn."""
    connection = greeted()
    list_bytes = (43 + 43 + 38 + 43) + 200 * (32 + 2)  # RFC 9113, section 6.5.2
    connection.receive(raw.headers(1, raw.REQUEST + raw.field(b"n", b"v") * 200))
    connection.events(ANY_BUDGET)
    assert connection.spent == 1 + math.ceil(list_bytes / 64)
    huffman = hpack.Encoder().encode([(b"n", b"\x01" * 1000)])  # 23 bits for each byte (RFC 7541, appendix B)
    connection.receive(raw.headers(3, raw.REQUEST + huffman))
    connection.events(ANY_BUDGET)
    assert connection.spent == 1 + math.ceil(len(raw.REQUEST + huffman) / 64)
    assert connection.spent > 23 * 1000 // 8 // 64


def test_a_remembered_block_costs_no_more_than_its_frame() -> None:
    """Nothing is decoded for it."""
    connection = greeted()
    entry = b"\x40\x01n\x64" + bytes([65]) * 100  # adds to the table what 0xbe names
    connection.receive(raw.headers(1, raw.REQUEST + entry))
    connection.events(ANY_BUDGET)
    list_bytes = (43 + 43 + 38 + 43) + 10 * (32 + 101)  # RFC 9113, section 6.5.2
    for stream_id, cost in ((3, 1 + math.ceil(list_bytes / 64)), (5, 1)):
        connection.receive(raw.headers(stream_id, raw.REQUEST + b"\xbe" * 10))
        connection.events(ANY_BUDGET)
        assert connection.spent == cost


def test_a_frame_that_is_too_long_is_input_once_its_header_is_there() -> None:
    """The rest of it may never come, and the fault is known."""
    connection = greeted()
    connection.receive(raw.ping() + raw.frame(raw.DATA, 0, 1, bytes(16_385))[:9])
    connection.events(1)
    assert connection.has_input
    assert [name for name, *_ in plain(connection.events(1))] == ["ConnectionFailed"]


def test_no_budget_reads_nothing() -> None:
    """With nothing to spend, nothing is read and nothing is lost."""
    connection = greeted()
    connection.receive(raw.headers(1))
    assert connection.events(0) == []
    assert connection.has_input
    assert len(connection.events(1)) == 1


@pytest.mark.parametrize("start", [b"G", b"PRI * HTTP/1"])
def test_a_wrong_preface_ends_at_its_first_wrong_byte(start: bytes) -> None:
    """A client of another protocol waits for our answer: it hears of its mistake at once."""
    connection = Connection(Settings(), lambda: 0.0)
    connection.receive(start)
    assert [name for name, *_ in plain(connection.events(ANY_BUDGET))] == ["ConnectionFailed"]


def test_a_part_of_a_frame_is_no_input() -> None:
    """`has_input` is about whole frames: it would otherwise spin on a frame that is still to come."""
    connection = greeted()
    request = raw.headers(1)
    for at in range(len(request)):
        assert not connection.has_input
        connection.receive(request[at : at + 1])
    assert connection.has_input


def test_events_are_not_kept() -> None:
    """An idle connection holds nothing of what it handed on."""
    connection = greeted()
    connection.receive(raw.headers(1) + raw.data(1, b"x"))
    events = connection.events(ANY_BUDGET)
    assert len(events) == 2
    assert events not in [getattr(connection, name) for name in Connection.__slots__]


def test_nothing_is_read_after_a_fault() -> None:
    """After GOAWAY the rest is dropped: it holds no memory and makes no events."""
    connection = greeted()
    connection.receive(raw.frame(raw.PING, 0, 1, bytes(8)) + raw.headers(1))
    assert [name for name, *_ in plain(connection.events(ANY_BUDGET))] == ["ConnectionFailed"]
    connection.receive(raw.headers(1))
    assert not connection.has_input
    assert connection.events(ANY_BUDGET) == []
