"""What a message holds is counted before it is built, and what waits of it is small."""

from __future__ import annotations

import sys
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellstream.api import convert
from cellstream.api.parsing import has_more_fields, parse
from cellstream.errors import FeedTooLong, MalformedMessage, MessageTooLarge
from cellstream.v1 import prediction_pb2 as pb

FEEDS = st.builds(
    pb.Feed,
    handle=st.integers(0, 3),
    id=st.integers(0, 2**64 - 1),
    text=st.text(max_size=5),
)
REQUESTS = st.builds(
    pb.PredictRequest,
    opens=st.lists(st.builds(pb.Open, handle=st.integers(0, 9)), max_size=5),
    resets=st.lists(st.just(pb.Reset()), max_size=5),
    feeds=st.lists(FEEDS, max_size=40),
    closes=st.lists(st.just(pb.Close(keep=True)), max_size=5),
)


@given(request=REQUESTS, most=st.integers(0, 60))
def test_items_are_counted_as_protobuf_counts_them(request: pb.PredictRequest, most: int) -> None:
    """A message is refused for its items exactly where it has too many, however they are written."""
    raw = request.SerializeToString()
    count = len(request.opens) + len(request.resets) + len(request.feeds) + len(request.closes)
    assert has_more_fields(raw, most) is (count > most)


@pytest.mark.parametrize(
    ("raw", "count"),
    [
        (b"\x08\x96\x01" * 5, 5),  # varints
        (b"\x09" + bytes(8) + b"\x0d" + bytes(4), 2),  # fixed64, fixed32
        (b"\x12\x07testing" * 2, 2),  # bytes; these three from protobuf's page on its encoding
        (b"\x9b\x06\x12\x01a\x9c\x06" * 2, 4),  # a group: its field counts too
    ],
)
def test_fields_of_every_wire_type(raw: bytes, count: int) -> None:
    """Unknown fields count like known ones: they are built too."""
    assert has_more_fields(raw, count - 1)
    assert not has_more_fields(raw, count + 2)


@given(raw=st.binary(max_size=300))
def test_bytes_that_are_no_message(raw: bytes) -> None:
    """Counting never raises: parsing says what is wrong."""
    more = has_more_fields(raw, 3)
    try:
        request = parse(pb.PredictRequest, raw, 1000)
    except MalformedMessage as error:
        assert "cellstream.v1.PredictRequest" in error.message  # noqa: PT017 - any other raises
    else:
        items = len(request.opens) + len(request.resets) + len(request.feeds) + len(request.closes)
        assert more or items <= 3, "what is not refused has no more than that"


def test_too_many_bytes() -> None:
    """Both numbers are said."""
    with pytest.raises(MessageTooLarge, match=r"11 bytes; at most 10"):
        parse(pb.PredictRequest, bytes(11), 10)


def test_a_feed_that_is_too_long_takes_nothing_out_of_its_message() -> None:
    """A million ids would be a list of 8 MB; it is refused in its turn, and holds only the refusal."""
    feed = pb.Feed(tokens=pb.Tokens(ids=[7] * 100_000))
    waiting = convert.given_by(feed, 0.0, 1, tokens_max=16_384)
    assert isinstance(waiting.input, FeedTooLong)
    assert "100000" in waiting.input.message


def test_tokens_that_wait_take_four_bytes_each() -> None:
    """What waits behind a running feed is about as large as it was on the wire."""
    ids = [70_000 + number for number in range(10_000)]
    waiting = convert.given_by(pb.Feed(tokens=pb.Tokens(ids=ids)), 0.0, 1, tokens_max=16_384)
    assert isinstance(waiting.input, array)
    assert waiting.input.tolist() == ids
    assert sys.getsizeof(waiting.input) < 4 * len(ids) * 1.2
