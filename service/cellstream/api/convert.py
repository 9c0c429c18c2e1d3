"""Between the wire's messages and the engine's values. What comes from a client is checked here, whole."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cellstream.engine import Answer, Feed, Progress, Want
from cellstream.errors import (
    AnswerUnsupported,
    FeedEmpty,
    FeedTooLong,
    InputKindMismatch,
    TokenOutOfRange,
    ValuesMisshapen,
    ValuesNotFinite,
)
from cellstream.sessions import QueuedFeed, Served, Session
from cellstream.v1 import prediction_pb2 as pb

TOP_K_DEFAULT = 5

RESULT_BYTES = 48
"""About what a Result takes without its columns."""

TENSOR_BYTES = 64
"""About what a Tensor takes without its data: name, type, shape."""


def load_answer(answer: pb.Answer, served: Served) -> Answer:
    """What a feed is to answer with.

    Raises:
        AnswerUnsupported: The model cannot give it.
    """
    is_text = served.manifest.input.kind == "tokens"
    vocabulary_size = served.manifest.input.vocabulary_size or 0
    top_k = answer.top_k if answer.HasField("top_k") else min(TOP_K_DEFAULT, vocabulary_size)
    if top_k > vocabulary_size:
        raise AnswerUnsupported(
            f"top_k is {top_k}, and {served.name} has {vocabulary_size} tokens to choose from; ask for at "
            "most that many.",
            vocabulary_size=vocabulary_size,
        )
    if answer.score and not is_text:
        raise AnswerUnsupported(
            f"{served.name} takes values, and only tokens can be scored; leave score out."
        )
    if answer.gates and not served.manifest.gates:
        raise AnswerUnsupported(f"{served.name} has no gates to show; leave gates out.")
    if answer.want not in (0, 1, 2, 3):
        raise AnswerUnsupported(f"want is {answer.want}; it is 0 to 3.")
    want = Want(answer.want) if answer.want else Want.LAST
    return _answer(want, top_k, answer.log_probabilities, answer.score, answer.states, answer.gates)


_answer = lru_cache(maxsize=256)(Answer)
"""Equal answers are one object: each of 100,000 idle sessions holds one."""


@dataclass(slots=True, eq=False)
class UncheckedFeed(QueuedFeed):
    """A feed of a message, taken out of it once and not checked against a model yet.

    Attributes:
        input: Token ids, text, or the bytes of values; None: none of them. Or why it is refused whatever the
            model: then nothing was taken out of the message.
        answer: What it answers with; None: what its Open says.
        tokens_max: How many tokens or frames it may have.
    """

    input: TokenIds | str | bytes | FeedTooLong | None
    answer: pb.Answer | None
    tokens_max: int

    def load(self, session: Session, answer: Answer, on_progress: Callable[[Feed, Progress], None]) -> Feed:
        """Return its tokens or frames, for the session's model.

        Raises:
            RequestError: Whatever is wrong with it.
        """
        served, what = session.served, self.input
        if self.answer is not None:
            answer = load_answer(self.answer, served)
        inputs: list[int] | NDArray[np.float32]
        if isinstance(what, list | array):
            inputs = load_tokens(what, served, self.tokens_max)
        elif isinstance(what, str):
            inputs = load_text(what, served, self.tokens_max)
        elif isinstance(what, bytes):
            inputs = load_values(what, served, self.tokens_max)
        elif what is None:
            raise FeedEmpty("the feed has no input; send tokens, values or text.")
        else:
            raise what
        return Feed(session.slot, inputs, answer, on_progress, self.received_at)


TokenIds: TypeAlias = "list[int] | array[int]"  # quoted: before Python 3.12 an array has no parameters
"""Token ids that wait: four bytes each in an array, which pays from a few on."""

COMPACT_TOKENS_MIN = 32
"""From so many token ids on, they wait in an array: a list takes 8 bytes for each, and 28 for a large one."""


def copied(answer: pb.Answer) -> pb.Answer:
    """Copy an answer that can wait: a part of a message keeps the memory of the whole message."""
    copy = pb.Answer()
    copy.CopyFrom(answer)
    return copy


def given_by(feed: pb.Feed, received_at: float, size: int, tokens_max: int) -> UncheckedFeed:
    """Take a feed out of its message; `size` is its share of the message's bytes."""
    answer = copied(feed.answer) if feed.HasField("answer") else None
    position = feed.position if feed.HasField("position") else None
    given: TokenIds | str | bytes | FeedTooLong | None = None
    ids = feed.tokens.ids
    if count := len(ids):  # as of most feeds: the others are asked what they have
        given = take_tokens(ids, count, tokens_max)
    elif (kind := feed.WhichOneof("input")) == "text":
        given = feed.text
    elif kind == "values":
        given = feed.values.data
    elif kind == "tokens":
        given = []
    return UncheckedFeed(feed.id, position, received_at, size, given, answer, tokens_max)


def take_tokens(ids: Sequence[int], count: int, tokens_max: int) -> TokenIds | FeedTooLong:
    """Take token ids out of their message, compactly; too many of them are not taken at all."""
    if count > tokens_max:
        return _too_long(count, tokens_max)
    if count >= COMPACT_TOKENS_MIN:
        return array("I", ids)
    few = ids[:]  # of a protobuf field, a list
    return few if isinstance(few, list) else list(few)


def load_tokens(tokens: TokenIds, served: Served, tokens_max: int) -> list[int]:
    """Return token ids, each within the model's vocabulary."""
    vocabulary_size = served.manifest.input.vocabulary_size
    if vocabulary_size is None:
        raise _not_tokens(served)
    if not tokens:
        raise FeedEmpty("the feed has no tokens; send at least one.")
    if len(tokens) > tokens_max:
        raise _too_long(len(tokens), tokens_max)
    if max(tokens) >= vocabulary_size:
        place, token = next((place, token) for place, token in enumerate(tokens) if token >= vocabulary_size)
        raise TokenOutOfRange(
            f"token {token} at place {place} is not in the vocabulary of {served.name}, which is 0 to "
            f"{vocabulary_size - 1}; nothing was applied.",
            token=token,
            place=place,
            vocabulary_size=vocabulary_size,
        )
    return tokens if isinstance(tokens, list) else tokens.tolist()


def load_text(text: str, served: Served, tokens_max: int) -> list[int]:
    """Text as the model's tokens."""
    if served.tokenizer is None:
        raise _not_tokens(served)
    at_least = -(-len(text) // served.tokenizer.token_characters_max)
    if at_least > tokens_max:  # a megabyte of text takes BPE half a second: not for nothing
        raise _too_long(f"at least {at_least}", tokens_max)
    tokens = served.tokenizer.encode(text)
    if not tokens:
        raise FeedEmpty("the feed's text is empty; send at least one character.")
    if len(tokens) > tokens_max:
        raise _too_long(len(tokens), tokens_max)
    return tokens


def load_values(data: bytes, served: Served, frames_max: int) -> NDArray[np.float32]:
    """Frames, float32 [frames, features], every number finite."""
    features = served.manifest.input.features
    if features is None:
        raise InputKindMismatch(f"{served.name} takes tokens; send text, or token ids.", expected="tokens")
    if not data:
        raise FeedEmpty("the feed has no frames; send at least one.")
    if len(data) % (4 * features):
        raise ValuesMisshapen(
            f"{len(data)} bytes are no whole number of frames: {served.name} has {features} features, so a "
            f"frame is {4 * features} bytes of little-endian float32.",
            features=features,
        )
    frames = np.frombuffer(data, "<f4").reshape(-1, features)
    if len(frames) > frames_max:
        raise _too_long(len(frames), frames_max)
    if not np.isfinite(frames).all():
        frame, feature = np.argwhere(~np.isfinite(frames))[0].tolist()
        raise ValuesNotFinite(
            f"feature {feature} of frame {frame} is {frames[frame, feature]}; every value must be finite. "
            "Nothing was applied.",
            frame=frame,
            feature=feature,
        )
    return frames


def write_predictions(message: pb.Predictions, progress: Progress, first: int, last: int) -> None:
    """Fill in the predictions of the progress's answering steps from `first` to before `last`."""
    message.steps = last - first
    ids, log_probabilities = progress.top_ids, progress.top_log_probabilities
    if ids:
        message.top_k = top_k = len(ids) // progress.steps
        if last - first < progress.steps:
            ids = ids[first * top_k : last * top_k]
            log_probabilities = log_probabilities[first * top_k : last * top_k]
        message.top_ids.extend(ids)
        message.top_log_probabilities.extend(log_probabilities)
    if progress.scores is not None:
        message.scores.extend(progress.scores[first:last])
    if not (progress.outputs or progress.states or progress.gates):
        return
    for column, arrays in (
        (message.outputs, progress.outputs),
        (message.states, progress.states),
        (message.gates, progress.gates),
    ):
        for name, whole in (arrays or {}).items():
            rows = np.ascontiguousarray(whole[first:last])
            column.add(name=name, dtype=str(rows.dtype), shape=rows.shape, data=rows.tobytes())


def sizes_of(progress: Progress) -> tuple[int, int]:
    """At most about how many bytes a result takes on the wire: apart from its steps, and for each step."""
    apart = RESULT_BYTES
    whole = 8 * len(progress.top_ids)
    if progress.scores:
        whole += 4 * len(progress.scores)
    if progress.outputs or progress.states or progress.gates:
        for tensors in (progress.outputs, progress.states, progress.gates):
            if tensors:
                apart += TENSOR_BYTES * len(tensors)
                whole += sum(array.nbytes for array in tensors.values())
    return apart, math.ceil(whole / progress.steps) if whole else 0


def _not_tokens(served: Served) -> InputKindMismatch:
    return InputKindMismatch(
        f"{served.name} takes frames of {served.manifest.input.features} values; send values.",
        expected="values",
    )


def _too_long(length: int | str, most: int) -> FeedTooLong:
    return FeedTooLong(
        f"the feed has {length} tokens or frames; at most {most} are taken in one. Send it in parts.",
        feed_tokens_max=most,
    )
