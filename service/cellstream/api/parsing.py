"""Request messages, parsed within bounds: what a message holds is counted before it is built."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from cellstream.errors import MalformedMessage, MessageTooLarge

RequestT = TypeVar("RequestT", bound=Message)

ITEM_BYTES_MIN = 2
"""The least that a repeated message takes on the wire: its tag and its length."""


def parse(kind: type[RequestT], raw: bytes, bytes_max: int) -> RequestT:
    """Return a request message.

    Raises:
        MessageTooLarge: It has more than `bytes_max` bytes.
        MalformedMessage: It is not a message of this kind.
    """
    if len(raw) > bytes_max:
        raise MessageTooLarge(
            f"the message has {len(raw)} bytes; at most {bytes_max} are taken. Send it in parts.",
            message_bytes_max=bytes_max,
        )
    try:
        return kind.FromString(raw)
    except DecodeError:
        name = kind.DESCRIPTOR.full_name
        raise MalformedMessage(
            f"the message is no {name}, or a text in it is no UTF-8; build it with the published protos."
        ) from None


def has_more_fields(raw: bytes, count_max: int) -> bool:
    """Return whether a serialised message has more than so many fields at its top.

    4 MiB of items of two bytes parse to over 100 MB. So they are counted first, and only as far as the bound.
    Bytes that are no message count as far as they can be read: parsing tells what is wrong with them.
    Source: protobuf's encoding, https://protobuf.dev/programming-guides/encoding/.
    """
    if len(raw) <= ITEM_BYTES_MIN * count_max:
        return False
    place, end, count, depth = 0, len(raw), 0, 0
    try:
        while place < end:
            tag, place = _varint(raw, place)
            kind = tag & 7
            if kind == 2:  # bytes behind their length
                size, place = _varint(raw, place)
                place += size
            elif kind == 0:
                _, place = _varint(raw, place)
            elif kind == 1:
                place += 8
            elif kind == 5:
                place += 4
            elif kind == 3:  # a group: its fields count too, which is more than exact and never less
                depth += 1
            elif kind == 4 and depth:
                depth -= 1
            else:
                return False
            count += 1
            if count > count_max:
                return True
    except IndexError:
        pass  # it ends within a field
    return False


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    """Read a varint; return it and the place behind it. Raises IndexError if it does not end."""
    value, shift = 0, 0
    while True:
        byte = raw[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
        if shift > 63:
            raise IndexError
