"""Between the wire's messages and the engine's values. What comes from a client is checked here, whole."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cellstream.engine import Answer, Progress, Want
from cellstream.errors import (
    AnswerUnsupported,
    FeedEmpty,
    FeedTooLong,
    InputKindMismatch,
    TokenOutOfRange,
    ValuesMisshapen,
    ValuesNotFinite,
)
from cellstream.sessions import Input, Served
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
    return Answer(
        want=Want(answer.want) if answer.want else Want.LAST,
        top_k=top_k,
        log_probabilities=answer.log_probabilities,
        score=answer.score,
        states=answer.states,
        gates=answer.gates,
    )


def load_feed(feed: pb.Feed, served: Served, default: Answer, feed_tokens_max: int) -> Input:
    """A feed's input and answer.

    Raises:
        RequestError: Whatever is wrong with it.
    """
    answer = load_answer(feed.answer, served) if feed.HasField("answer") else default
    kind = feed.WhichOneof("input")
    if kind == "tokens":
        return Input(load_tokens(feed.tokens.ids, served, feed_tokens_max), answer)
    if kind == "text":
        return Input(load_text(feed.text, served, feed_tokens_max), answer)
    if kind == "values":
        return Input(load_values(feed.values.data, served, feed_tokens_max), answer)
    raise FeedEmpty("the feed has no input; send tokens, values or text.")


def size_of(feed: pb.Feed) -> int:
    """About how many tokens a feed has, before it is known which model reads it."""
    return len(feed.tokens.ids) or len(feed.text) or len(feed.values.data) // 4 or 1


def load_tokens(ids: Iterable[int], served: Served, tokens_max: int) -> list[int]:
    """Token ids, each within the model's vocabulary."""
    tokens = list(ids)
    vocabulary_size = served.manifest.input.vocabulary_size
    if vocabulary_size is None:
        raise _not_tokens(served)
    if not tokens:
        raise FeedEmpty("the feed has no tokens; send at least one.")
    _check_length(len(tokens), tokens_max)
    if max(tokens) >= vocabulary_size:
        place, token = next((place, token) for place, token in enumerate(tokens) if token >= vocabulary_size)
        raise TokenOutOfRange(
            f"token {token} at place {place} is not in the vocabulary of {served.name}, which is 0 to "
            f"{vocabulary_size - 1}; nothing was applied.",
            token=token,
            place=place,
            vocabulary_size=vocabulary_size,
        )
    return tokens


def load_text(text: str, served: Served, tokens_max: int) -> list[int]:
    """Text as the model's tokens."""
    if served.tokenizer is None:
        raise _not_tokens(served)
    tokens = served.tokenizer.encode(text)
    if not tokens:
        raise FeedEmpty("the feed's text is empty; send at least one character.")
    _check_length(len(tokens), tokens_max)
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
            "frame is "
            f"{4 * features} bytes of little-endian float32.",
            features=features,
        )
    frames = np.frombuffer(data, "<f4").reshape(-1, features)
    _check_length(len(frames), frames_max)
    if not np.isfinite(frames).all():
        frame, feature = np.argwhere(~np.isfinite(frames))[0].tolist()
        raise ValuesNotFinite(
            f"feature {feature} of frame {frame} is {frames[frame, feature]}; every value must be finite. "
            "Nothing was "
            "applied.",
            frame=frame,
            feature=feature,
        )
    return frames


def write_predictions(message: pb.Predictions, progress: Progress, steps: slice) -> None:
    """Fill in the predictions of some of the progress's answering steps."""
    first, last, _ = steps.indices(progress.steps)
    message.steps = last - first
    if progress.top_ids:
        top_k = len(progress.top_ids) // progress.steps
        message.top_k = top_k
        message.top_ids.extend(progress.top_ids[first * top_k : last * top_k])
        message.top_log_probabilities.extend(progress.top_log_probabilities[first * top_k : last * top_k])
    if progress.scores is not None:
        message.scores.extend(progress.scores[steps])
    for column, arrays in (
        (message.outputs, progress.outputs),
        (message.states, progress.states),
        (message.gates, progress.gates),
    ):
        for name, array in (arrays or {}).items():
            rows = np.ascontiguousarray(array[steps])
            column.add(name=name, dtype=str(rows.dtype), shape=rows.shape, data=rows.tobytes())


def sizes_of(progress: Progress) -> tuple[int, int]:
    """At most about how many bytes a result takes on the wire: apart from its steps, and for each step."""
    groups = (progress.outputs, progress.states, progress.gates)
    tensors = [array for group in groups if group for array in group.values()]
    apart = RESULT_BYTES + TENSOR_BYTES * len(tensors)
    if not progress.steps:
        return apart, 0
    columns = 8 * len(progress.top_ids) + 4 * len(progress.scores or ())
    whole = sum(array.nbytes for array in tensors)
    return apart, math.ceil((columns + whole) / progress.steps)


def _not_tokens(served: Served) -> InputKindMismatch:
    return InputKindMismatch(
        f"{served.name} takes frames of {served.manifest.input.features} values; send values.",
        expected="values",
    )


def _check_length(length: int, most: int) -> None:
    if length > most:
        raise FeedTooLong(
            f"the feed has {length} tokens or frames; at most {most} are taken in one. Send it in parts.",
            feed_tokens_max=most,
        )
