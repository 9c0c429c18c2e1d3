"""gRPC's messages by hand, for clients that know HTTP/2 only; and how clients print answers."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from cellstream.v1 import prediction_pb2 as pb


def framed(message: Message, *, packed: bool = False) -> bytes:
    """A message behind its five bytes (PROTOCOL-HTTP2, Length-Prefixed-Message)."""
    body = message.SerializeToString()
    if packed:
        body = gzip.compress(body)
    return struct.pack(">BI", packed, len(body)) + body


def messages_in(body: bytes) -> list[bytes]:
    """The messages of a response body, unpacked.

    Raises:
        AssertionError: It is no whole number of messages.
    """
    found = []
    while body:
        assert len(body) >= 5, f"{len(body)} bytes left over"
        packed, size = struct.unpack_from(">BI", body)
        message, body = body[5 : 5 + size], body[5 + size :]
        assert len(message) == size, f"{len(message)} of a message of {size} bytes"
        found.append(gzip.decompress(message) if packed else message)
    return found


def results_in(body: bytes) -> list[pb.Result]:
    """The results in a response body of Predict."""
    return [
        result for message in messages_in(body) for result in pb.PredictResponse.FromString(message).results
    ]


def results_of(told: Mapping[str, Any]) -> list[pb.Result]:
    """The results in a response that a client printed as JSON."""
    return [
        json_format.ParseDict(result, pb.Result(), ignore_unknown_fields=True)
        for result in told.get("results", ())
    ]


def json_values(text: str) -> list[Any]:
    """The JSON values that stand one after the other in a text."""
    decoder, found, place = json.JSONDecoder(), [], 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        value, place = decoder.raw_decode(text, place)
        found.append(value)
    return found


def reason_in(details: bytes) -> str:
    """ErrorInfo's reason in a serialised google.rpc.Status."""
    for detail in Status.FromString(details).details:
        if detail.Is(ErrorInfo.DESCRIPTOR):
            return str(ErrorInfo.FromString(detail.value).reason)
    return ""


def trailers_in(lines: Iterable[str]) -> dict[str, str]:
    """Header lines `name: value`; the last one of a name counts."""
    found = {}
    for line in lines:
        name, colon, value = line.strip().partition(": ")
        if colon:
            found[name.lower()] = value
    return found


def decoded_details(text: str) -> bytes:
    """The value of `grpc-status-details-bin`, whose padding may be left out."""
    return base64.b64decode(text + "=" * (-len(text) % 4))
