"""What a caller gives to a session, made ready for the wire: text, token ids or frames, and what to answer.

What is wrong whatever the server thinks of it (a negative id, half a surrogate pair, a flat array of
frames) is refused here; all else the server judges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from cellstream.errors import (
    AnswerUnsupported,
    MessageTooLarge,
    TextNotEncodable,
    TokenOutOfRange,
    ValuesMisshapen,
)
from cellstream.v1 import prediction_pb2 as pb

Input: TypeAlias = str | Sequence[int] | NDArray[np.integer[Any]] | NDArray[np.floating[Any]]
"""Text; token ids (bytes are ids too); or frames of numbers, an array [frames, features]."""

Want: TypeAlias = Literal["every_step", "last", "none"]
"""Which steps of a feed answer: all, the last, or none (the state is passed on, the position comes back)."""

_WANTS: dict[str, pb.Want.ValueType] = {
    "every_step": pb.WANT_EVERY_STEP,
    "last": pb.WANT_LAST,
    "none": pb.WANT_NONE,
}

_ID_BYTES_MAX = 5  # A uint32 as a varint.
_ID_MAX = (1 << 32) - 1


class AnswerOptions(TypedDict, total=False):
    """What a feed answers with; what is not given is as the session has it, and there as the server has it.

    Attributes:
        want: Which steps answer; "last" unless told.
        top_k: How many most likely tokens, 5 unless told, 0 for none; ties go to the lowest id.
        log_probabilities: The log-probability of every token, in `outputs`.
        score: The log-probability of each token that came, given all before it, across feeds too.
        states: The state tensors after each answering step.
        gates: The gates of each answering step.
    """

    want: Want
    top_k: int
    log_probabilities: bool
    score: bool
    states: bool
    gates: bool


@dataclass(slots=True)
class Encoded:
    """An input, ready for the wire: one of the three is set, and `size_bytes` is no less than its bytes."""

    size_bytes: int
    text: str | None = None
    ids: Sequence[int] | None = None
    values: bytes | None = None


def encode(given: Input) -> Encoded:
    """Makes an input ready for the wire.

    Args:
        given: Text, token ids, or an array of frames.

    Raises:
        TextNotEncodable: The text has half a surrogate pair: UTF-8 has no bytes for it.
        ValuesMisshapen: Frames are not [frames, features], or ids are not [tokens].
        TypeError: It is none of the three.
    """
    if isinstance(given, str):
        return Encoded(len(given) if given.isascii() else len(_utf8(given)), text=given)
    if isinstance(given, np.ndarray):
        return _encode_array(given)
    return Encoded(_ID_BYTES_MAX * len(given), ids=given)


def check_size(encoded: Encoded, bytes_max: int) -> None:
    """Refuses an input that would end the whole stream.

    Raises:
        MessageTooLarge: It has more than `bytes_max` bytes.
    """
    if encoded.size_bytes > bytes_max:
        raise MessageTooLarge(
            f"the feed has up to {encoded.size_bytes} bytes and one message takes {bytes_max}: "
            "send it in several feeds",
            size_bytes=encoded.size_bytes,
            message_bytes_max=bytes_max,
        )


def fill_ids(tokens: pb.Tokens, ids: Sequence[int]) -> None:
    """Writes ids into a message; protobuf itself checks each one, which is the cheapest way to.

    Raises:
        TokenOutOfRange: An id is negative or beyond 32 bits.
        TypeError: An id is no integer.
    """
    tokens.SetInParent()  # An empty feed says so, and the server refuses it by name.
    try:
        tokens.ids.extend(ids)
    except ValueError as error:
        raise TokenOutOfRange(f"a token id is 0 to {_ID_MAX}: {error}") from error


def read_answer(options: AnswerOptions) -> pb.Answer:
    """Makes the wire's Answer of options.

    Raises:
        AnswerUnsupported: `want` is no word of ours, or `top_k` is negative.
        TypeError: There is no option of that name.
    """
    check_names(options, AnswerOptions)
    answer = pb.Answer(
        log_probabilities=options.get("log_probabilities", False),
        score=options.get("score", False),
        states=options.get("states", False),
        gates=options.get("gates", False),
    )
    want = options.get("want", "last")
    if want not in _WANTS:
        raise AnswerUnsupported(f"want is one of {', '.join(_WANTS)}, not {want!r}")
    answer.want = _WANTS[want]
    if "top_k" in options:
        if not 0 <= options["top_k"] <= _ID_MAX:
            raise AnswerUnsupported(f"top_k is a count, not {options['top_k']}")
        answer.top_k = options["top_k"]
    return answer


def check_names(options: Mapping[str, object], known: type) -> None:
    """Refuses a misspelt option, as Python does where arguments are not gathered in a dict.

    Args:
        options: What was given, by name.
        known: The TypedDict that has all names.

    Raises:
        TypeError: There is no option of that name.
    """
    for name in options.keys() - known.__annotations__.keys():
        raise TypeError(f"there is no option {name!r}; there are {', '.join(known.__annotations__)}")


def _encode_array(given: NDArray[Any]) -> Encoded:
    if given.dtype.kind == "f":
        if given.ndim != 2:
            raise ValuesMisshapen(f"frames come as [frames, features], not as {list(given.shape)}")
        values = np.ascontiguousarray(given, "<f4").tobytes()
        return Encoded(len(values), values=values)
    if given.dtype.kind not in "iu":
        raise TypeError(f"token ids are integers and frames are floats, not {given.dtype}")
    if given.ndim != 1:
        raise ValuesMisshapen(f"token ids come as [tokens], not as {list(given.shape)}")
    return Encoded(_ID_BYTES_MAX * given.size, ids=given.tolist())


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TextNotEncodable(
            f"character {error.start} is half a surrogate pair, which UTF-8 cannot write"
        ) from error
