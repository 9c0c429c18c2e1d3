"""Header blocks: hpack's encoder makes them, the RFCs' own examples and its table of rules judge them."""

from __future__ import annotations

import contextlib
import logging

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellstream.transport.frames import Code
from cellstream.transport.headers import (
    REMEMBERED_BLOCKS_MAX,
    REMEMBERED_LIST_BYTES_MAX,
    BlockError,
    HeaderDecoder,
)

GOOD = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a/B"), (b":authority", b"a")]
LIST_BYTES_MAX = 16_384


def encode(fields: list[tuple[bytes, bytes]], encoder: hpack.Encoder | None = None) -> bytes:
    """Return a block as hpack writes it."""
    return (encoder or hpack.Encoder()).encode(fields)


def fault(*fields: tuple[bytes, bytes]) -> str | None:
    """Return what is wrong with a request."""
    return HeaderDecoder(LIST_BYTES_MAX).request(encode(list(fields))).fault


def test_the_examples_of_rfc_7541() -> None:
    """Appendix C.4: three requests with Huffman coding on one connection."""
    decoder = HeaderDecoder(LIST_BYTES_MAX)
    blocks = [
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    ]
    common = [(b":authority", b"www.example.com")]
    assert [decoder.request(bytes.fromhex(block)).headers for block in blocks] == [
        [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), *common],
        [
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":path", b"/"),
            *common,
            (b"cache-control", b"no-cache"),
        ],
        [
            (b":method", b"GET"),
            (b":scheme", b"https"),
            (b":path", b"/index.html"),
            *common,
            (b"custom-key", b"custom-value"),
        ],
    ]


def test_equal_blocks_are_decoded_once() -> None:
    """The second of two equal blocks is remembered: clients send the same one with each call."""
    decoder = HeaderDecoder(LIST_BYTES_MAX)
    encoder = hpack.Encoder()
    first = decoder.request(encode(GOOD, encoder))  # adds to the table
    block = encode(GOOD, encoder)  # all of it by index
    second = decoder.request(block)
    assert second.headers == first.headers == GOOD
    assert decoder.request(block) is second


def test_a_change_of_the_table_forgets_blocks() -> None:
    """The same bytes mean something else once the table has changed."""
    decoder = HeaderDecoder(LIST_BYTES_MAX)
    pseudo = b"\x83\x86\x84"
    decoder.request(pseudo + b"\x40\x01n\x01a")
    block = pseudo + b"\xbe"
    assert decoder.request(block).headers[-1] == (b"n", b"a")
    assert decoder.request(block).headers[-1] == (b"n", b"a")
    decoder.skip(b"\x40\x01n\x01b")
    assert decoder.request(block).headers[-1] == (b"n", b"b")
    decoder.request(b"\x20" + pseudo)  # the table is emptied
    with pytest.raises(BlockError):
        decoder.request(block)


def test_a_block_that_adds_to_the_table_is_decoded_each_time() -> None:
    """It adds an entry each time it comes, and later blocks count on that."""
    decoder = HeaderDecoder(LIST_BYTES_MAX)
    pseudo = b"\x83\x86\x84"
    for _ in range(2):
        decoder.request(pseudo + b"\x40\x01n\x01a")
    assert decoder.request(pseudo + b"\xbf").headers[-1] == (b"n", b"a")


def test_a_table_size_update_is_not_skipped() -> None:
    """A block that resizes the table is decoded each time, though nothing is added to it."""
    decoder = HeaderDecoder(LIST_BYTES_MAX)
    resizing = b"\x20\x83\x86\x84"
    decoder.request(resizing)
    decoder.request(b"\x3f\xe1\x1f\x83\x86\x84\x40\x01n\x01a")
    decoder.request(resizing)
    with pytest.raises(BlockError):
        decoder.request(b"\x83\x86\x84\xbe")


@given(
    st.lists(
        st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.sampled_from([b"1", b"2", b"3" * 2000, b"\xe9"])),
        max_size=6,
    ).flatmap(
        lambda fields: st.lists(st.sampled_from([fields, fields[:1], fields[1:]]), min_size=2, max_size=12)
    ),
    st.lists(st.sampled_from([0, 60, 4096]), max_size=3),
)
def test_remembering_changes_nothing(lists: list[list[tuple[bytes, bytes]]], sizes: list[int]) -> None:
    """Whatever repeats and whatever evicts, the lists are those that the encoder was given."""
    decoder, encoder = HeaderDecoder(LIST_BYTES_MAX), hpack.Encoder()
    for number, fields in enumerate(lists):
        if number % 4 == 3 and sizes:
            encoder.header_table_size = sizes[number % len(sizes)]
        for _ in range(2):
            assert decoder.request(encode(GOOD + fields, encoder)).headers == GOOD + fields


def test_remembered_blocks_are_bounded() -> None:
    """Blocks that differ in each call, and long ones, do not pile up."""
    decoder = HeaderDecoder(LIST_BYTES_MAX)
    for number in range(10 * REMEMBERED_BLOCKS_MAX):
        decoder.request(b"\x83\x86\x84" + b"\x00\x01n\x02%02d" % number)
        assert len(decoder._known) <= REMEMBERED_BLOCKS_MAX
    long = b"\x83\x86\x84" + (b"\x00\x01n\x64" + b"x" * 100) * (REMEMBERED_LIST_BYTES_MAX // 100)
    decoder.request(long)
    assert long not in decoder._known


WRONG = [
    ("8.2: a name in uppercase", [*GOOD, (b"Name", b"v")]),
    ("8.2.1: a name with a space", [*GOOD, (b"na me", b"v")]),
    ("8.2.1: a name with a control character", [*GOOD, (b"na\x01me", b"v")]),
    ("8.2.1: a name with DEL", [*GOOD, (b"na\x7fme", b"v")]),
    ("8.2.1: a name beyond ASCII", [*GOOD, (b"na\xe9me", b"v")]),
    ("8.2.1: a name with a colon", [*GOOD, (b"na:me", b"v")]),
    ("RFC 9110, 5.1: a name without a character", [*GOOD, (b"", b"v")]),
    ("8.2.1: a value with NUL", [*GOOD, (b"name", b"a\0b")]),
    ("8.2.1: a value with CR", [*GOOD, (b"name", b"a\rb")]),
    ("8.2.1: a value with LF", [*GOOD, (b"name", b"a\nb")]),
    ("8.2.1: a value that ends in LF", [*GOOD, (b"name", b"a\n")]),
    ("8.2.1: a value that begins with a space", [*GOOD, (b"name", b" a")]),
    ("8.2.1: a value that ends in a tab", [*GOOD, (b"name", b"a\t")]),
    ("8.2.1: a pseudo-header with LF", [*GOOD[:2], (b":path", b"/\n"), GOOD[3]]),
    ("8.2.2: connection", [*GOOD, (b"connection", b"close")]),
    ("8.2.2: proxy-connection", [*GOOD, (b"proxy-connection", b"close")]),
    ("8.2.2: keep-alive", [*GOOD, (b"keep-alive", b"1")]),
    ("8.2.2: transfer-encoding", [*GOOD, (b"transfer-encoding", b"chunked")]),
    ("8.2.2: upgrade", [*GOOD, (b"upgrade", b"h2c")]),
    ("8.2.2: te other than trailers", [*GOOD, (b"te", b"gzip")]),
    ("8.3: a pseudo-header behind a field", [*GOOD[:3], (b"name", b"v"), GOOD[3]]),
    ("8.3: a pseudo-header of responses", [*GOOD, (b":status", b"200")]),
    ("8.3: an unknown pseudo-header", [*GOOD, (b":name", b"v")]),
    ("8.3: a pseudo-header twice", [*GOOD, GOOD[0]]),
    ("8.3.1: no :method", GOOD[1:]),
    ("8.3.1: no :scheme", [GOOD[0], *GOOD[2:]]),
    ("8.3.1: no :path", [*GOOD[:2], GOOD[3]]),
    ("8.3.1: an empty :path", [*GOOD[:2], (b":path", b""), GOOD[3]]),
    ("8.5: CONNECT with :path", [(b":method", b"CONNECT"), *GOOD[2:]]),
    ("8.5: CONNECT without :authority", [(b":method", b"CONNECT")]),
    ("8.1.1: two content-lengths", [*GOOD, (b"content-length", b"1"), (b"content-length", b"2")]),
    ("8.1.1: a content-length that is no number", [*GOOD, (b"content-length", b"+1")]),
    ("8.1.1: a content-length that is too long a number", [*GOOD, (b"content-length", b"1" * 20)]),
]

RIGHT = [
    ("8.3.1: :authority is optional", GOOD[:3]),
    ("8.2.2: te of trailers", [*GOOD, (b"te", b"trailers")]),
    ("8.2.2: te without regard to case", [*GOOD, (b"te", b"Trailers")]),
    ("8.2.1: a value beyond ASCII", [*GOOD, (b"name", b"\xe9\xff\x80")]),
    ("8.2.1: a value with spaces and tabs inside", [*GOOD, (b"name", b"a \tb")]),
    ("8.2.1: an empty value", [*GOOD, (b"name", b"")]),
    ("8.2: a name of all kinds of token characters", [*GOOD, (b"!#$%&'*+-.^_`|~09az", b"v")]),
    ("8.5: CONNECT", [(b":method", b"CONNECT"), GOOD[3]]),
    (
        "RFC 9110, 8.6: the same content-length twice",
        [*GOOD, (b"content-length", b"1"), (b"content-length", b"1")],
    ),
]


@pytest.mark.parametrize(("section", "fields"), WRONG, ids=[section for section, _ in WRONG])
def test_malformed_requests(section: str, fields: list[tuple[bytes, bytes]]) -> None:
    """What RFC 9113 calls malformed never reaches the layer above: it may be smuggled past a proxy."""
    assert fault(*fields) is not None, section


@pytest.mark.parametrize(("section", "fields"), RIGHT, ids=[section for section, _ in RIGHT])
def test_well_formed_requests(section: str, fields: list[tuple[bytes, bytes]]) -> None:
    """What is allowed passes, and is what was sent."""
    request = HeaderDecoder(LIST_BYTES_MAX).request(encode(fields))
    assert request.fault is None, section
    assert request.headers == fields


def test_trailers() -> None:
    """Trailers are fields like any other, without pseudo-headers (section 8.1)."""
    decoder = HeaderDecoder(LIST_BYTES_MAX)
    assert decoder.trailers_fault(encode([(b"a", b"b")])) is None
    assert decoder.trailers_fault(encode([(b"a", b"b"), (b":path", b"/")])) is not None
    assert decoder.trailers_fault(encode([(b"A", b"b")])) is not None


@pytest.mark.parametrize(
    "block",
    [
        b"\x40",
        b"\x80",
        b"\xff\xff\xff\xff\xff\xff",
        b"\x00\x05abc",
        b"\x00\x01a",
        b"\x3f",
        b"\x83\x20",
        b"\x00\x81\x00\x00",
    ],
    ids=bytes.hex,
)
def test_blocks_that_are_not_hpack(block: bytes) -> None:
    """Whatever hpack does not understand is COMPRESSION_ERROR, in words of our own."""
    with pytest.raises(BlockError) as caught:
        HeaderDecoder(LIST_BYTES_MAX).request(block)
    assert caught.value.code == Code.COMPRESSION_ERROR
    assert caught.value.message == "a header block that is not HPACK"
    assert caught.value.__suppress_context__


@given(st.binary(max_size=200))
def test_random_blocks(block: bytes) -> None:
    """Any bytes are a request, or a fault of ours to name: nothing else is raised."""
    decoder = HeaderDecoder(LIST_BYTES_MAX)
    for read in (decoder.request, decoder.trailers_fault, decoder.skip):
        with contextlib.suppress(BlockError):
            read(block)


def test_hpack_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Hpack writes every block to its log at DEBUG, and blocks hold credentials."""
    with caplog.at_level(logging.DEBUG):
        HeaderDecoder(LIST_BYTES_MAX).request(encode([*GOOD, (b"authorization", b"secret")]))
    assert caplog.records == []


def test_an_integer_without_end_is_an_error_at_once() -> None:
    """RFC 7541, section 5.1: integers beyond what one takes are a decoding error; hpack 4.1 takes any."""
    with pytest.raises(BlockError) as caught:
        HeaderDecoder(16_384).request(b"\xff" + b"\xff" * 32_000 + b"\x01")
    assert caught.value.code == Code.COMPRESSION_ERROR
