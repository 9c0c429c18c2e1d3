"""One Generate call: a stream with one handle, whose feed goes on by itself.

The prompt and every token made run through the same queue, batch and state as any other feed. What is made
while the client does not read waits up to the stream's bound; then no more is made.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from cellstream.api import convert
from cellstream.api.context import Context
from cellstream.api.flow import Flow
from cellstream.api.parsing import has_more_fields, parse
from cellstream.api.stop_texts import StopTexts
from cellstream.engine import Answer, Feed, Progress, Sampling, Want
from cellstream.errors import (
    CellstreamError,
    FeedTooLong,
    GenerationInvalid,
    InputKindMismatch,
    MalformedMessage,
    PromptEmpty,
)
from cellstream.metrics import HistogramChild
from cellstream.sessions import Cause, Ending, Handle, Mode, Open, QueuedFeed, Session
from cellstream.settings import Settings
from cellstream.text import Decoder
from cellstream.transport.call import OK, Call, Why
from cellstream.v1 import prediction_pb2 as pb

HANDLE = 0

SILENT = Answer(want=Want.NONE, top_k=0)
"""What a generation's feed answers with: only the tokens that it makes are told."""


@dataclass(slots=True, eq=False)
class Prompt(QueuedFeed):
    """A generation's one feed: what it absorbs first, and how it goes on."""

    request: pb.GenerateRequest
    sampling: Sampling
    tokens_max: int

    def load(self, session: Session, answer: Answer, on_progress: Callable[[Feed, Progress], None]) -> Feed:
        """The prompt, for a model that takes tokens.

        Raises:
            RequestError: The model cannot take the prompt, or there is none and nothing to go on from.
        """
        served = session.served
        if served.tokenizer is None:
            raise InputKindMismatch(
                f"{served.name} takes values, and only tokens can be generated; use Predict.",
                expected="values",
            )
        kind = self.request.WhichOneof("prompt")
        inputs: list[int] = []
        if kind == "text" and self.request.text:
            inputs = convert.load_text(self.request.text, served, self.tokens_max)
        elif kind == "tokens" and (ids := self.request.tokens.ids):
            taken = convert.take_tokens(ids, len(ids), self.tokens_max)
            if isinstance(taken, FeedTooLong):
                raise taken
            inputs = convert.load_tokens(taken, served, self.tokens_max)
        elif session.position == 0:
            raise PromptEmpty(
                "the session has absorbed nothing, and there is no prompt; send text or tokens to start from."
            )
        return Feed(session.slot, inputs, answer, on_progress, self.received_at, sampling=self.sampling)


TOKEN_BYTES = 16
"""About what a token takes that was made and waits to be sent, beside its text."""

FIELDS_BESIDE_STOPS_MAX = 64
"""Fields of a request that are no stop text; each may come more than once, the last counts."""


def load_request(raw: bytes, settings: Settings) -> pb.GenerateRequest:
    """Parse a request.

    Raises:
        MessageTooLarge, MalformedMessage: As `parse`.
        GenerationInvalid: It has more stop texts than are taken, of whatever length.
    """
    if has_more_fields(raw, settings.stop_texts_max + FIELDS_BESIDE_STOPS_MAX):
        raise GenerationInvalid(
            f"the request has too many fields; at most {settings.stop_texts_max} stop texts are taken.",
            stop_texts_max=settings.stop_texts_max,
        )
    return parse(pb.GenerateRequest, raw, settings.message_bytes_max)


def load_sampling(request: pb.GenerateRequest, settings: Settings) -> Sampling:
    """How a generation draws its tokens.

    Raises:
        GenerationInvalid: A setting is out of its range.
    """
    temperature = request.temperature if request.HasField("temperature") else 1.0
    top_p = request.top_p if request.HasField("top_p") else 1.0
    if not 1 <= request.max_tokens <= settings.generate_tokens_max:
        raise GenerationInvalid(
            f"max_tokens is {request.max_tokens}; it is 1 to {settings.generate_tokens_max}.",
            generate_tokens_max=settings.generate_tokens_max,
        )
    if not (math.isfinite(temperature) and temperature >= 0):
        raise GenerationInvalid(f"temperature is {temperature}; it is a finite number, 0 or more.")
    if not 0 < top_p <= 1:
        raise GenerationInvalid(f"top_p is {top_p}; it is more than 0 and at most 1.")
    if len(request.stop) > settings.stop_texts_max:
        raise GenerationInvalid(
            f"there are {len(request.stop)} stop texts; at most {settings.stop_texts_max} are taken.",
            stop_texts_max=settings.stop_texts_max,
        )
    for stop in request.stop:
        if not 1 <= len(stop.encode()) <= settings.stop_bytes_max:
            raise GenerationInvalid(
                f"a stop text has {len(stop.encode())} bytes; it has 1 to {settings.stop_bytes_max}.",
                stop_bytes_max=settings.stop_bytes_max,
            )
    seed = request.seed if request.HasField("seed") else secrets.randbits(64)
    return Sampling(request.max_tokens, temperature, request.top_k, top_p, seed)


class GenerateStream:
    """Answers one GenerateRequest.

    Args:
        call: The call.
        context: What the server's handlers share.

    Raises:
        Draining, TooManyStreams: As `Registry.connect`.
    """

    __slots__ = (
        "_call",
        "_closed",
        "_context",
        "_decoder",
        "_error",
        "_finish_reason",
        "_flow",
        "_ids",
        "_latencies",
        "_position",
        "_received_at",
        "_seed",
        "_sent_at",
        "_stops",
        "_stream",
        "_taken_bytes",
        "_texts",
        "_waiting_bytes",
    )

    def __init__(self, call: Call, context: Context) -> None:
        self._call = call
        self._context = context
        self._stream = context.registry.connect(self)
        self._flow = Flow(
            call, self._stream, context.registry, context.unsent, context.settings.generation_outbox_bytes_max
        )
        # What was made and not taken yet: joined once, when there is room.
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._waiting_bytes = 0
        self._taken_bytes = 0  # of the response that is being sent
        self._position = 0
        self._finish_reason = pb.FINISH_REASON_UNSPECIFIED
        self._seed: int | None = None  # told once, with the first piece
        self._stops: StopTexts
        self._decoder: Decoder | None = None
        self._error: CellstreamError | None = None
        self._closed = False
        self._received_at = context.clock()
        self._sent_at: float | None = None  # when its last piece was
        self._latencies: tuple[HistogramChild, HistogramChild] | None = None

    def __repr__(self) -> str:
        return f"<GenerateStream: {self._flow!r}>"

    # ------------------------------------------------------------ told by the transport

    def received(self, message: bytes) -> None:
        """Begin the generation.

        Raises:
            CellstreamError: It cannot be begun.
        """
        request = load_request(message, self._context.settings)
        sampling = load_sampling(request, self._context.settings)
        self._seed = sampling.seed
        self._stops = StopTexts(list(request.stop))
        self._begin(request, sampling, len(message))

    def half_closed(self) -> None:
        """Do nothing: the request is the only message."""

    def next_message(self) -> bytes | None:
        """Return what was made meanwhile."""
        if self._taken_bytes:
            self._flow.sent(self._taken_bytes)
            self._taken_bytes = 0
        if not (self._ids or self._finish_reason):
            return None
        response = pb.GenerateResponse(
            text="".join(self._texts),
            ids=self._ids,
            position=self._position,
            finish_reason=self._finish_reason,
        )
        if self._seed is not None:
            response.seed = self._seed
        self._ids, self._texts, self._seed = [], [], None
        self._finish_reason = pb.FINISH_REASON_UNSPECIFIED
        self._taken_bytes, self._waiting_bytes = self._waiting_bytes, 0
        self._observe()
        return response.SerializeToString()

    def closed(self, why: Why) -> None:
        """Let go of the session; nothing more is made."""
        self._closed = True
        self._context.registry.disconnect(self._stream)
        self._flow.close()

    def _begin(self, request: pb.GenerateRequest, sampling: Sampling, size: int) -> None:
        """Open the session, feed it, and let go of it once the feed has ended, whichever way."""
        try:
            mode = Mode(request.mode)
        except ValueError:
            raise MalformedMessage(f"mode is {request.mode}; it is 0, 1 or 2.") from None
        registry, stream = self._context.registry, self._stream
        opening = Open(request.session_id, request.model, request.version, mode, lambda _served: SILENT)
        registry.open(stream, HANDLE, opening)
        if self._error is None:
            position = request.position if request.HasField("position") else None
            tokens_max = self._context.settings.feed_tokens_max
            prompt = Prompt(0, position, self._received_at, size, request, sampling, tokens_max)
            registry.feed(stream, HANDLE, prompt)
            registry.close(stream, HANDLE, keep=bool(request.session_id), size=0)

    def _observe(self) -> None:
        """Count how long the piece took that is sent now."""
        now = self._context.clock()
        if self._latencies is not None:
            first_piece, piece = self._latencies
            if self._sent_at is None:
                first_piece.observe(now - self._received_at)
            else:
                piece.observe(now - self._sent_at)
        self._sent_at = now

    # ------------------------------------------------------------ told by the registry

    def opened(self, handle: Handle, created: bool, previous: Ending | None) -> None:
        """The session is held."""
        assert handle.session is not None, "a handle that is opened has its session"
        served = handle.session.served
        labels = (served.name, served.version)
        metrics = self._context.metrics
        self._latencies = (
            metrics.generate_first_piece_seconds.of(*labels),
            metrics.generate_piece_seconds.of(*labels),
        )
        if served.tokenizer is not None:
            self._decoder = served.tokenizer.decoder()

    def refused(self, number: int, session_id: str, error: CellstreamError) -> None:
        """The session could not be opened."""
        self._end(error)

    def rejected(self, number: int, queued: QueuedFeed, error: CellstreamError) -> None:
        """The feed of a session that could not be opened."""
        self._end(error)

    def result(self, handle: Handle, queued: QueuedFeed, progress: Progress) -> None:
        """Tokens were made and absorbed, or the feed failed."""
        if progress.error is not None:
            self._error = progress.error
            return
        self._position = progress.position
        for token in progress.made:
            assert self._decoder is not None, "only a model with a tokeniser makes tokens"
            self._add(*self._stops.push(token, self._decoder.feed([token])))
            if self._stops.stopped and handle.feed is not None:
                handle.feed.finished = True
                break
        if self._ids:
            self._call.ready()

    def event(self, number: int, cause: Cause, position: int, error: CellstreamError | None) -> None:
        """The session was let go of: nothing more will be made."""
        if self._error is not None:
            self._add(*self._stops.finish(""))  # absorbed, so whoever goes on must know it
        elif self._stops.stopped:
            self._finish_reason = pb.FINISH_REASON_STOP
        else:
            self._finish_reason = pb.FINISH_REASON_LENGTH
            self._add(*self._stops.finish(self._decoder.finish() if self._decoder is not None else ""))
        self._position = position
        self._end(self._error)

    def applied(self, size: int) -> None:
        """Do nothing: a second message is not read."""

    def drained(self, error: CellstreamError) -> None:
        """The server is going away."""
        self._end(error)

    def _add(self, text: str, ids: list[int]) -> None:
        if not ids and not text:
            return
        self._texts.append(text)
        self._ids += ids
        size = len(text) + TOKEN_BYTES * len(ids)
        self._waiting_bytes += size
        self._flow.owe(size)

    def _end(self, error: CellstreamError | None) -> None:
        if self._closed:
            return
        self._closed = True
        self._error = error
        self._call.ready()
        self._call.end(OK if error is None else self._context.errors.explain(error))
