"""Every limit of a connection: what a good client may do just passes, one more ends in the promised code."""

from __future__ import annotations

import itertools
import struct

import pytest
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    WindowUpdateFrame,
)
from tests.transport import raw_client as raw
from tests.transport.raw_client import (
    CANCEL,
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    REQUEST,
    STATUS_200,
    RawClient,
    data,
    field,
    frame,
    headers,
    ping,
    rst_stream,
    settings,
    window_update,
)

from cellstream.transport import http2
from cellstream.transport.http2 import (
    ConnectionFailed,
    DataReceived,
    RequestReceived,
    StreamReset,
    WindowOpened,
)

CALM_DOWN = ("connection", ENHANCE_YOUR_CALM)


def until_it_ends(client: RawClient, part: bytes, most: int = 5000) -> int:
    """Send the same frame again and again; return how many passed before the connection ended."""
    for passed in range(most):
        client.send(part)
        if client.connection.failed:
            return passed
    raise AssertionError(f"{most} passed")


# ---------------------------------------------------------------- resets


def test_rapid_reset() -> None:
    """Streams opened and reset at once cost a server work and a client nothing (CVE-2023-44487)."""
    client = RawClient(resets_burst=10, resets_per_second=2)
    for stream_id in range(1, 21, 2):
        client.send(headers(stream_id) + rst_stream(stream_id))
    assert client.failure is None
    client.now += 1.0  # two tokens come back
    for stream_id in (21, 23):
        client.send(headers(stream_id) + rst_stream(stream_id))
    assert client.failure is None
    client.send(headers(25) + rst_stream(25))
    assert client.failure == CALM_DOWN


@pytest.mark.parametrize(
    "fault",
    [
        lambda stream_id: headers(stream_id) + window_update(stream_id, 0),
        lambda stream_id: headers(stream_id, end=True) + data(stream_id, b"x"),
        lambda stream_id: headers(stream_id) + frame(raw.PRIORITY, 0, stream_id, bytes(3)),
        lambda stream_id: headers(stream_id, field(b"A", b"")),
    ],
    ids=["WINDOW_UPDATE of 0", "DATA after END_STREAM", "short PRIORITY", "malformed request"],
)
def test_made_you_reset(fault) -> None:
    """A client that makes the server reset its streams is counted like one that resets (CVE-2025-8671)."""
    client = RawClient(resets_burst=10, resets_per_second=1)
    for number in range(10):
        client.send(fault(1 + 2 * number))
        assert client.failure is None or client.failure[0] == "stream"
    client.send(fault(21))
    assert client.failure == CALM_DOWN


def test_resets_of_the_layer_above_count() -> None:
    """A client whose calls all end early by our decision hears of it when it opens the next."""
    client = RawClient(resets_burst=3, resets_per_second=1)
    for number in range(4):
        client.connection.reset(client.open(1 + 2 * number), CANCEL)
    client.send(headers(9))
    assert client.failure == ("connection", ENHANCE_YOUR_CALM)


def test_resets_of_the_layer_above_are_forgiven_in_time() -> None:
    """A failure of our own that ends all calls at once is not held against the client for long."""
    client = RawClient(resets_burst=3, resets_per_second=1)
    for number in range(50):
        client.open(1 + 2 * number)
    for stream in list(client.connection.streams.values()):
        client.connection.reset(stream, CANCEL)
    client.now += 1.0
    client.open(101)
    client.open(103)


def test_a_reset_behind_a_whole_response_is_free() -> None:
    """RST_STREAM(NO_ERROR) of ours, or one of the client's after our END_STREAM, may end any gRPC call."""
    client = RawClient(resets_burst=3, resets_per_second=1)
    for stream_id in range(1, 101, 4):
        first, second = client.open(stream_id), client.open(stream_id + 2)
        client.connection.send_headers(first, STATUS_200, end=True)
        client.connection.send_headers(second, STATUS_200, end=True)
        client.connection.reset(first, NO_ERROR)
        client.send(rst_stream(first.id) + rst_stream(second.id))
    assert not client.connection.failed


def test_more_streams_than_allowed_are_refused_and_counted() -> None:
    """Beyond MAX_CONCURRENT_STREAMS a stream is refused, its block decoded; too many end the connection."""
    client = RawClient(connection_streams_max=2, resets_burst=5, resets_per_second=1)
    client.send(headers(1), headers(3))
    indexed = REQUEST + b"\x40\x01n\x01v"  # adds an entry to the table
    client.send(headers(5, indexed))
    assert [(each.stream_id, each.error_code) for each in client.sent(RstStreamFrame)] == [
        (5, REFUSED_STREAM)
    ]
    client.send(rst_stream(1))
    (request,) = client.send(headers(7, REQUEST + b"\xbe"))  # the entry that the refused one added
    assert request.headers[-1] == (b"n", b"v")
    for stream_id in range(9, 15, 2):
        client.send(headers(stream_id))
    assert not client.connection.failed
    client.send(headers(15))
    assert client.failure == CALM_DOWN


def test_resets_of_closed_streams_are_a_flood() -> None:
    """One RST_STREAM may cross our end of a stream; after that they are frames without content."""
    client = RawClient(control_frames_burst=5)
    client.connection.send_headers(client.open(1, end=True), STATUS_200, end=True)
    assert until_it_ends(client, rst_stream(1)) == 1 + 3  # the greeting took two of five
    assert client.failure == CALM_DOWN


# ---------------------------------------------------------------- frames without content


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(settings(), id="SETTINGS, CVE-2019-9515"),
        pytest.param(raw.SETTINGS_ACK, id="SETTINGS acknowledgements"),
        pytest.param(raw.priority(1), id="PRIORITY, CVE-2019-9513"),
        pytest.param(data(1), id="empty DATA, CVE-2019-9518"),
        pytest.param(frame(raw.DATA, raw.PADDED, 1, b"\xff" + bytes(255)), id="DATA of padding alone"),
        pytest.param(frame(raw.GOAWAY, 0, 0, bytes(8)), id="GOAWAY"),
        pytest.param(frame(0xFA, 0, 1), id="unknown"),
        pytest.param(ping(flags=raw.ACK), id="answers to no PING"),
    ],
)
def test_frames_without_content(flood: bytes) -> None:
    """Each takes a token; none is left, and the connection ends with ENHANCE_YOUR_CALM."""
    client = RawClient(control_frames_burst=12, control_frames_per_second=4)  # the greeting takes two
    client.open(1)
    assert until_it_ends(client, flood) == 10
    assert client.failure == CALM_DOWN
    client = RawClient(control_frames_burst=12, control_frames_per_second=4)
    client.open(1)
    for _ in range(100):
        client.now += 0.25
        client.send(flood)
    assert client.failure is None


def test_empty_continuation() -> None:
    """Empty CONTINUATION frames are bounded for a block, and counted over all blocks."""
    client = RawClient(control_frames_burst=6)
    for stream_id in itertools.count(1, 2):
        client.send(headers(stream_id, done=False), frame(raw.CONTINUATION, 4, stream_id))
        if client.connection.failed:
            break
    assert stream_id == 1 + 2 * 4
    assert client.failure == CALM_DOWN


def test_window_updates_of_a_good_client_are_free() -> None:
    """A client may enlarge the window of each call and give it back with each message, however often."""
    client = RawClient(control_frames_burst=3)
    for stream_id in range(1, 401, 2):
        stream = client.open(stream_id, end=True)
        client.send(window_update(stream_id, 1 << 20), window_update(0, 1000))
        client.connection.send_headers(stream, STATUS_200)
        for _ in range(3):
            client.connection.send_data(stream, b"hello")
            client.send(window_update(stream_id, 5), window_update(0, 5))
        client.connection.send_data(stream, b"", end=True)
        client.send(window_update(stream_id, 5))
    assert client.failure is None


def test_window_updates_without_end() -> None:
    """Those that no frame of either side explains are frames without content."""
    client = RawClient(control_frames_burst=12)
    client.open(1)
    assert until_it_ends(client, window_update(1, 1)) == http2.UPDATES_PER_FRAME + 10
    assert client.failure == CALM_DOWN


def test_many_entries_of_one_settings() -> None:
    """A SETTINGS of thousands of entries costs thousands of steps: more than 32 are too many."""
    entry = (0xFF, 0)
    client = RawClient()
    client.send(settings(*[entry] * 32))
    assert client.failure is None
    client.send(settings(*[entry] * 33))
    assert client.failure == CALM_DOWN


# ---------------------------------------------------------------- PINGs


def test_too_many_pings() -> None:
    """Two PINGs may come too soon; at the third gRPC's words tell its clients to slow down."""
    client = RawClient(ping_seconds_min=5, ping_strikes_max=2)
    for _ in range(3):
        client.send(ping())
    assert len(client.sent(PingFrame)) == 3
    client.send(ping())
    assert client.failure == CALM_DOWN
    (goaway,) = client.sent(GoAwayFrame)
    assert goaway.additional_data == b"too_many_pings"
    assert len(client.sent(PingFrame)) == 3


def test_keepalive_is_welcome() -> None:
    """A PING at the least interval is never a strike, on an idle connection for ever."""
    client = RawClient(ping_seconds_min=5)
    for _ in range(100):
        client.send(ping())
        client.now += 5.0
    assert client.failure is None


@pytest.mark.parametrize("what", ["HEADERS", "DATA"])
def test_measuring_bandwidth_is_welcome(what: str) -> None:
    """A PING after each message that we send is how clients measure bandwidth: never a strike."""
    client = RawClient(ping_seconds_min=5)
    stream = client.open(1)
    client.connection.send_headers(stream, STATUS_200)
    for number in range(100):
        if what == "DATA":
            client.connection.send_data(stream, b"x")
        else:
            client.connection.send_headers(client.open(3 + 2 * number), STATUS_200)
        client.send(ping())
    assert client.failure is None


def test_what_was_sent_forgives_strikes() -> None:
    """Strikes are of a connection to which nothing is sent; a message in between begins the count anew."""
    client = RawClient(ping_seconds_min=5, ping_strikes_max=2)
    stream = client.open(1)
    client.connection.send_headers(stream, STATUS_200)
    for _ in range(20):
        client.send(ping(), ping(), ping())
        client.connection.send_data(stream, b"x")
    assert client.failure is None
    client.send(ping(), ping(), ping(), ping())
    assert client.failure == CALM_DOWN


def test_acknowledgements_are_no_pings() -> None:
    """The answer to our PING is an event and no strike; one more is none of ours."""
    client = RawClient()
    client.connection.ping(b"abcdefgh")
    (event,) = client.send(ping(b"abcdefgh", raw.ACK))
    assert event.data == b"abcdefgh"
    assert client.send(ping(b"abcdefgh", raw.ACK)) == []


# ---------------------------------------------------------------- header blocks


def test_continuation_flood() -> None:
    """CONTINUATION frames without end hold memory and end nothing (CVE-2024-27316)."""
    client = RawClient()
    client.send(headers(1, done=False))
    assert until_it_ends(client, frame(raw.CONTINUATION, 0, 1, b"x")) == 8  # nghttp2's bound
    assert client.failure == CALM_DOWN


def test_a_block_that_is_too_long() -> None:
    """A block beyond `header_block_bytes_max` is not even decoded."""
    client = RawClient(header_block_bytes_max=20_000)
    client.send(headers(1, bytes(16_384), done=False), frame(raw.CONTINUATION, 0, 1, bytes(3616)))
    assert client.failure is None
    client.send(frame(raw.CONTINUATION, 4, 1, b"x"))
    assert client.failure == CALM_DOWN
    client = RawClient(header_block_bytes_max=1000)
    client.send(headers(1, REQUEST + bytes(1000)))
    assert client.failure == CALM_DOWN


def large(size: int, more: bytes = b"") -> bytes:
    """Return a request's block whose list has so many bytes by the count of RFC 9113, section 6.5.2."""
    # :method POST 43, :scheme http 43, :path / 38, :authority a 43 bytes, each with 32 of overhead
    left = size - (43 + 43 + 38 + 43)
    value = bytes([65]) * (left - 32 - 1)
    length = b"\x7f" + _seven_bits(len(value) - 127) if len(value) >= 127 else bytes([len(value)])
    return REQUEST + b"\x00\x01n" + length + value + more


def _seven_bits(number: int) -> bytes:
    """Return an integer's continuation bytes (RFC 7541, section 5.1)."""
    content = bytearray()
    while number >= 128:
        content.append(number & 127 | 128)
        number >>= 7
    return bytes([*content, number])


def request(client: RawClient, stream_id: int, block: bytes) -> list[object]:
    """Send a request, in as many frames as it needs."""
    pieces = [block[at : at + 16_384] for at in range(0, len(block), 16_384)]
    kinds = [raw.HEADERS] + [raw.CONTINUATION] * (len(pieces) - 1)
    last = len(pieces) - 1
    return client.send(
        *(
            frame(kind, 4 if at == last else 0, stream_id, piece)
            for at, (kind, piece) in enumerate(zip(kinds, pieces, strict=True))
        )
    )


def test_header_list_sizes() -> None:
    """A list up to 16 KiB is taken, up to 64 KiB its stream alone is refused, beyond the connection ends."""
    client = RawClient(header_block_bytes_max=1 << 20)
    (event,) = request(client, 1, large(16_384))
    assert not event.too_large
    assert len(event.headers) == 5
    (event,) = request(client, 3, large(16_385))
    assert event.too_large
    assert event.headers == []
    (event,) = request(client, 5, large(65_536))
    assert event.too_large
    (event,) = request(client, 7, large(65_537))
    assert isinstance(event, ConnectionFailed)
    assert client.failure == CALM_DOWN


def test_header_bomb() -> None:
    """Few bytes that name one large entry again and again unpack to megabytes (CVE-2016-6581)."""
    client = RawClient()
    entry = b"\x40\x01n\x7f" + _seven_bits(4000 - 127) + bytes([65]) * 4000
    client.send(headers(1, REQUEST + entry + b"\xbe" * 10_000))
    assert client.failure == CALM_DOWN


def test_table_size_updates() -> None:
    """Two in a block are what a client may need (RFC 7541, section 4.2); more only evict the table."""
    client = RawClient()
    client.send(headers(1, b"\x20\x3f\xe1\x1f" + REQUEST))
    assert client.failure is None
    client.send(headers(3, b"\x20\x3f\xe1\x1f\x20" + REQUEST))
    assert client.failure == ("connection", COMPRESSION_ERROR)


def test_what_is_said_of_a_fault_never_quotes_the_block() -> None:
    """A block may hold credentials, and hpack's own messages quote it: ours go to a log."""
    client = RawClient()
    secret = b"s3cr3t-t0ken"
    (event,) = client.send(headers(1, REQUEST + b"\x00\x01n\x7f\xff\xff\xff\xff\xff" + secret))
    assert isinstance(event, ConnectionFailed)
    assert "s3cr3t" not in event.message
    assert client.failure == ("connection", COMPRESSION_ERROR)


def test_one_latin_1_byte_harms_nobody() -> None:
    """A value that is not UTF-8 is one call's affair: a proxy shares its connection among many clients."""
    client = RawClient()
    (event,) = client.send(headers(1, REQUEST + field(b"name", b"caf\xe9")))
    assert event.headers[-1] == (b"name", b"caf\xe9")


# ---------------------------------------------------------------- windows


def test_a_stream_beyond_its_window() -> None:
    """DATA beyond a stream's window is that stream's fault, and the connection's window does not leak."""
    client = RawClient(stream_window_bytes=1024)
    client.open(1)
    client.send(data(1, bytes(1024)))
    assert client.failure is None
    client.send(data(1, b"x"))
    assert client.failure == ("stream", FLOW_CONTROL_ERROR)
    client.send(data(1, bytes(16_384)) * 2000)  # 32 MB that were under way
    assert client.failure == ("stream", FLOW_CONTROL_ERROR)


def test_until_our_settings_are_acknowledged_the_default_window_counts() -> None:
    """A client that has not read our SETTINGS may fill 65,535 bytes, though our window is smaller."""
    client = RawClient(greet=False, stream_window_bytes=1024)
    client.send(raw.PREFACE, settings())
    stream = client.open(1)
    client.send(*[data(1, bytes(13_107))] * 5)  # 65,535 bytes
    assert client.failure is None
    client.send(raw.SETTINGS_ACK, data(1, end=False))
    assert client.failure is None
    client.connection.give_back(stream, 65_535)
    client.send(data(1, bytes(1024)))
    assert client.failure is None
    client.send(data(1, b"x"))
    assert client.failure == ("stream", FLOW_CONTROL_ERROR)


def test_a_stream_that_is_not_read_stalls_itself_alone() -> None:
    """The connection's window comes back at once, so neighbours go on when a stream's window is full."""
    client = RawClient()
    streams = [client.open(1 + 2 * number) for number in range(600)]
    for stream in streams:
        client.send(data(stream.id, bytes(16_384)) * 3)  # 29 MB in all, nothing given back
    assert client.failure is None
    given = sum(each.window_increment for each in client.sent(WindowUpdateFrame) if each.stream_id == 0)
    sent = len(streams) * 3 * 16_384
    assert 0 <= sent - given < http2.CONNECTION_WINDOW_BYTES // 2 + 16_384


@pytest.mark.parametrize("state", ["ended early", "refused", "above GOAWAY"])
def test_data_of_streams_that_are_over_is_given_back(state: str) -> None:
    """DATA that nobody reads counts for the connection all the same, or its window would leak."""
    client = RawClient(connection_streams_max=1)
    client.open(1)
    if state == "ended early":
        client.connection.reset(client.connection.streams[1], NO_ERROR)
        stream_id = 1
    else:
        if state == "above GOAWAY":
            client.connection.go_away()
        client.send(headers(3))
        stream_id = 3
    for _ in range(2000):  # twice the connection's window
        client.send(data(stream_id, bytes(16_384)))
    assert not client.connection.failed
    given = sum(each.window_increment for each in client.sent(WindowUpdateFrame) if each.stream_id == 0)
    assert 2000 * 16_384 - given < http2.CONNECTION_WINDOW_BYTES


def test_padding_is_given_back_at_once() -> None:
    """Padding is nobody's data: a stream of much padding and little data does not stall."""
    client = RawClient(stream_window_bytes=1024)
    stream = client.open(1)
    padded = frame(raw.DATA, raw.PADDED, 1, b"\xff" + b"x" + bytes(255))
    for _ in range(100):
        client.send(padded)
        client.connection.give_back(stream, 1)
        client.collect()
    assert client.failure is None
    assert stream.held_bytes < 1024


def test_a_window_that_is_used_up_is_given_back_however_little() -> None:
    """A client that waits with an empty window hears of each byte, or both would wait for ever."""
    client = RawClient(stream_window_bytes=1024)
    stream = client.open(1)
    client.send(data(1, bytes(1000)))
    client.connection.give_back(stream, 10)
    assert client.collect() == []  # the client can still send: this can wait
    client.send(data(1, bytes(24)))
    client.connection.give_back(stream, 1)
    (update,) = client.collect()
    assert (update.stream_id, update.window_increment) == (1, 11)


def test_half_a_window_is_given_back_at_once() -> None:
    """WINDOW_UPDATEs are joined, up to half a window."""
    client = RawClient(stream_window_bytes=1024)
    stream = client.open(1)
    client.send(data(1, bytes(600)))
    for _ in range(51):
        client.connection.give_back(stream, 10)
        assert client.collect() == []
    client.connection.give_back(stream, 10)
    (update,) = client.collect()
    assert update.window_increment == 520


def test_nothing_is_given_back_for_a_stream_that_is_over() -> None:
    """A WINDOW_UPDATE for a stream that the client has ended says nothing."""
    client = RawClient(stream_window_bytes=1024)
    stream = client.open(1)
    client.send(data(1, bytes(1024), end=True))
    client.connection.give_back(stream, 1024)
    assert client.collect() == []


def test_settings_that_change_windows_cost_the_same_for_any_number_of_streams() -> None:
    """Windows are kept as differences; they may be negative, and 2^31-1 is their end."""
    client = RawClient()
    stream = client.open(1)
    client.connection.send_data(stream, bytes(1000))
    client.send(settings((4, 500)))
    assert client.connection.room(stream) == -500
    (event,) = client.send(settings((4, 2000)))
    assert event == WindowOpened(None, is_initial=True)
    assert client.connection.room(stream) == 1000
    client.send(window_update(1, (1 << 31) - 1 - 1000), window_update(1, 1))
    assert client.failure == ("stream", FLOW_CONTROL_ERROR)


def test_settings_that_make_a_window_too_large() -> None:
    """RFC 9113, section 6.9.2: a connection error, but only if a stream that lives has such a window."""
    client = RawClient()
    client.open(1)
    client.send(window_update(1, 1000))
    client.send(settings((4, (1 << 31) - 1 - 1000)))
    assert client.failure is None
    client.send(settings((4, (1 << 31) - 1000)))
    assert client.failure == ("connection", FLOW_CONTROL_ERROR)
    client = RawClient()
    client.open(1)
    client.send(window_update(1, 1000), rst_stream(1))
    client.send(settings((4, (1 << 31) - 1)))
    assert client.failure is None


# ---------------------------------------------------------------- the end


def test_a_graceful_shutdown() -> None:
    """First a GOAWAY that names no stream, and new ones are taken; then the last, and others are ignored."""
    client = RawClient()
    client.open(1)
    client.connection.go_away(last=False)
    assert client.open(3).id == 3
    client.connection.go_away()
    assert client.send(headers(5, REQUEST + b"\x40\x01n\x01v"), data(5, b"x")) == []
    (event,) = client.send(data(3, b"x"))
    assert isinstance(event, DataReceived)
    last = [(each.last_stream_id, each.error_code) for each in client.sent(GoAwayFrame)]
    assert last == [((1 << 31) - 1, NO_ERROR), (3, NO_ERROR)]
    client.send(headers(3, b"\xbe", end=True))  # the entry of the block that was ignored
    assert client.failure == ("connection", NO_ERROR)
    assert client.events[-1] == http2.TrailersReceived(client.connection.streams[3])


def test_after_a_fault_all_streams_are_over() -> None:
    """The layer above finds every stream closed, tells their owners, and sends into nothing."""
    client = RawClient()
    stream, other = client.open(1), client.open(3, end=True)
    *_, event = client.send(settings((2, 7)))
    assert isinstance(event, ConnectionFailed)
    assert event.code == PROTOCOL_ERROR
    assert list(client.connection.streams.values()) == [stream, other]
    assert stream.closed
    assert other.closed
    client.connection.send_headers(stream, STATUS_200)
    client.connection.send_data(stream, b"x")
    client.connection.give_back(stream, 0)
    client.connection.reset(other, CANCEL)
    client.connection.go_away()
    assert client.collect() == []


def test_the_goaway_of_a_fault_names_the_last_stream() -> None:
    """The client learns which of its streams it may open elsewhere without harm."""
    client = RawClient()
    client.open(1)
    client.open(7)
    client.send(frame(raw.PING, 0, 0, b"short"))
    (goaway,) = client.sent(GoAwayFrame)
    assert goaway.last_stream_id == 7


def test_a_fault_after_the_last_goaway_names_no_later_stream() -> None:
    """RFC 9113, section 6.8: a GOAWAY must not name a higher stream than one before it."""
    client = RawClient()
    client.open(1)
    client.connection.go_away()
    client.send(headers(3), frame(raw.PING, 0, 0, b"short"))
    assert [each.last_stream_id for each in client.sent(GoAwayFrame)] == [1, 1]


def test_a_reserved_bit_means_nothing() -> None:
    """RFC 9113, sections 4.1, 6.3 and 6.9: it is ignored in stream numbers, dependencies and increments."""
    client = RawClient()
    stream = client.open(1)
    client.send(frame(raw.WINDOW_UPDATE, 0, 1 | 1 << 31, struct.pack(">I", 5 | 1 << 31)))
    assert client.connection.room(stream) == 65_535
    client.send(window_update(0, 100))
    assert client.connection.room(stream) == 65_540
    client.send(raw.priority(1, on=1 | 1 << 31))
    assert client.failure == ("stream", PROTOCOL_ERROR)


def test_trailers_that_depend_on_their_own_stream() -> None:
    """RFC 7540, section 5.3.1 is about HEADERS of any kind."""
    client = RawClient()
    client.open(1)
    flags = raw.PRIORITISED | raw.END_HEADERS | raw.END_STREAM
    client.send(frame(raw.HEADERS, flags, 1, struct.pack(">IB", 1, 0) + raw.TRAILERS))
    assert client.failure == ("stream", PROTOCOL_ERROR)


def test_a_block_of_a_stream_that_we_reset_is_decoded() -> None:
    """Rule 3: the entry that late trailers add to the table is there for the next request."""
    client = RawClient()
    client.connection.reset(client.open(1), NO_ERROR)
    client.send(headers(1, b"\x40\x01n\x01v", end=True))
    (request,) = client.send(headers(3, REQUEST + b"\xbe"))
    assert request.headers[-1] == (b"n", b"v")


def test_calls_on_a_closed_stream_do_nothing() -> None:
    """The layer above may hear of a reset a moment late."""
    client = RawClient()
    stream = client.open(1)
    (event,) = client.send(rst_stream(1))
    assert event == StreamReset(stream, CANCEL, by_peer=True)
    client.connection.send_headers(stream, STATUS_200)
    client.connection.send_data(stream, b"x", end=True)
    client.connection.reset(stream, CANCEL)
    assert client.collect() == []


# ---------------------------------------------------------------- what we send


def test_our_settings_come_first() -> None:
    """Our SETTINGS say the limits, before anything is received."""
    client = RawClient(
        greet=False, connection_streams_max=7, stream_window_bytes=2048, header_list_bytes_max=999
    )
    first, second = client.collect()
    assert first.settings == {3: 7, 4: 2048, 6: 999}
    assert (second.stream_id, second.window_increment) == (0, http2.CONNECTION_WINDOW_BYTES - 65_535)


def test_a_table_size_of_0_begins_the_first_block_and_the_first_after_settings() -> None:
    """A client's SETTINGS may change the table that it keeps for us; ours stays empty (RFC 7541, 4.2)."""
    client = RawClient()
    stream = client.open(1)
    for _ in range(2):
        client.connection.send_headers(stream, STATUS_200)
    client.send(settings((1, 100)))
    for _ in range(2):
        client.connection.send_headers(stream, STATUS_200)
    client.collect()
    blocks = [each.data for each in client.sent(HeadersFrame)]
    assert blocks == [b"\x20\x88", b"\x88", b"\x20\x88", b"\x88"]


def test_a_long_block_is_split() -> None:
    """HEADERS and CONTINUATION of at most 16,384 bytes; END_STREAM on the first, END_HEADERS on the last."""
    client = RawClient()
    stream = client.open(1, end=True)
    block = bytes(range(256)) * 150  # 38,400 bytes; nobody decodes them here
    client.connection.send_headers(stream, block, end=True)
    output = client.connection.take_output()
    sent = raw.parse(output)
    starts = itertools.accumulate((9 + len(each.data) for each in sent[:-1]), initial=0)
    flags = [output[start + 4] for start in starts]
    assert [type(each).__name__ for each in sent] == [
        "HeadersFrame",
        "ContinuationFrame",
        "ContinuationFrame",
    ]
    assert flags == [raw.END_STREAM, 0, raw.END_HEADERS]
    assert b"".join(each.data for each in sent) == b"\x20" + block
    assert stream.closed


def test_output_is_counted_and_taken_once() -> None:
    """`output_bytes` is what `take_output` returns, which forgets it."""
    client = RawClient()
    stream = client.open(1)
    client.connection.send_headers(stream, STATUS_200)
    client.connection.send_data(stream, b"hello", end=True)
    size = client.connection.output_bytes
    output = client.connection.take_output()
    assert len(output) == size == (9 + 2) + (9 + 5)
    assert client.connection.output_bytes == 0
    assert client.connection.take_output() == b""
    frames: list[Frame] = raw.parse(output)
    assert isinstance(frames[1], DataFrame)
    assert frames[1].flags == {"END_STREAM"}


def test_peer_settings_are_kept() -> None:
    """What the layer above has to know of the client's SETTINGS is there."""
    client = RawClient()
    assert client.connection.peer_header_list_bytes_max is None
    client.send(settings((6, 8192), (5, 1 << 20)))
    assert client.connection.peer_header_list_bytes_max == 8192


def test_reprs_tell_the_state() -> None:
    """A person who prints a stream or a connection sees where it stands."""
    client = RawClient()
    stream = client.open(1, end=True)
    assert repr(stream) == "<Stream 1: half-closed (remote)>"
    assert repr(client.connection) == "<Connection: open, 1 streams, 0 bytes to send>"
    client.send(struct.pack(">I", 0xFFFFFFFF) * 3)
    assert repr(client.connection).startswith("<Connection: failed")


def test_content_length_of_a_request_without_content() -> None:
    """RFC 9113, section 8.1.1: END_STREAM on HEADERS with a content-length above 0 is malformed."""
    client = RawClient()
    (event,) = client.send(headers(1, REQUEST + field(b"content-length", b"0"), end=True))
    assert isinstance(event, RequestReceived)
    client.send(headers(3, REQUEST + field(b"content-length", b"1"), end=True))
    assert client.failure == ("stream", PROTOCOL_ERROR)


def test_content_length_that_is_right() -> None:
    """Data that adds up to the content-length, ended by DATA or by trailers, is well."""
    client = RawClient()
    for stream_id, end in [
        (1, data(1, b"ef", end=True)),
        (3, data(3, b"ef") + headers(3, raw.TRAILERS, end=True)),
    ]:
        client.send(
            headers(stream_id, REQUEST + field(b"content-length", b"6")), data(stream_id, b"abcd"), end
        )
    assert client.failure is None
    client.send(headers(5, REQUEST + field(b"content-length", b"6")), headers(5, raw.TRAILERS, end=True))
    assert client.failure == ("stream", PROTOCOL_ERROR)
