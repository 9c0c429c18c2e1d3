"""One Generate call: a stream with one handle, whose feed goes on by itself.

The prompt and every token made run through the same queue, batch and state as any other feed.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from grpc.aio import ServicerContext

from cellstream.api import convert
from cellstream.api.stop_texts import StopTexts
from cellstream.engine import Answer, Feed, Progress, Sampling, Want
from cellstream.errors import (
    CellstreamError,
    GenerationInvalid,
    InputKindMismatch,
    MalformedMessage,
    PromptEmpty,
)
from cellstream.metrics import HistogramChild, Metrics
from cellstream.sessions import Cause, Ending, Handle, Mode, Open, QueuedFeed, Registry, Session, Stream
from cellstream.settings import Settings
from cellstream.text import Decoder
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
        elif kind == "tokens" and self.request.tokens.ids:
            inputs = convert.load_tokens(self.request.tokens.ids[:], served, self.tokens_max)
        elif session.position == 0:
            raise PromptEmpty(
                "the session has absorbed nothing, and there is no prompt; send text or tokens to start from."
            )
        return Feed(session.slot, inputs, answer, on_progress, self.received_at, sampling=self.sampling)


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


class Generation:
    """Answers one GenerateRequest.

    Args:
        request: It.
        registry: Who holds which state.
        settings: The bounds.
        metrics: Where latency is counted.
        clock: Seconds, monotonic.

    Raises:
        CellstreamError: It cannot be begun.
    """

    def __init__(
        self,
        request: pb.GenerateRequest,
        registry: Registry,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._request = request
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._received_at = clock()
        self._sampling = load_sampling(request, settings)
        self._stops = StopTexts(list(request.stop))
        self._response = pb.GenerateResponse(seed=self._sampling.seed)
        self._pending = asyncio.Event()
        self._error: CellstreamError | None = None
        self._closed = False
        self._decoder: Decoder | None = None
        self._latencies: tuple[HistogramChild, HistogramChild] | None = None

    async def run(self, context: ServicerContext[bytes, pb.GenerateResponse]) -> None:
        """Send tokens as they are made.

        Raises:
            CellstreamError: What ended it early, after all tokens that were absorbed have been sent.
        """
        stream = self._registry.connect(self)
        try:
            self._begin(stream)
            await self._write(context)
        finally:
            self._registry.disconnect(stream)
        if self._error is not None:
            raise self._error

    def _begin(self, stream: Stream) -> None:
        """Open the session, feed it, and let go of it once the feed has ended, whichever way."""
        request = self._request
        try:
            mode = Mode(request.mode)
        except ValueError:
            raise MalformedMessage(f"mode is {request.mode}; it is 0, 1 or 2.") from None
        opening = Open(request.session_id, request.model, request.version, mode, lambda _served: SILENT)
        self._registry.open(stream, HANDLE, opening)
        if self._error is None:
            position = request.position if request.HasField("position") else None
            tokens_max = self._settings.feed_tokens_max
            prompt = Prompt(0, position, self._received_at, 1, request, self._sampling, tokens_max)
            self._registry.feed(stream, HANDLE, prompt)
            self._registry.close(stream, HANDLE, keep=bool(request.session_id))

    async def _write(self, context: ServicerContext[bytes, pb.GenerateResponse]) -> None:
        """Send what has been made meanwhile, one message at a time."""
        written_at: float | None = None
        while True:
            await self._pending.wait()
            self._pending.clear()
            response, self._response = self._response, pb.GenerateResponse()
            closed = self._closed
            if response.ids or response.finish_reason:
                await context.write(response)
                now = self._clock()
                if self._latencies is not None:
                    first_piece, piece = self._latencies
                    if written_at is None:
                        first_piece.observe(now - self._received_at)
                    else:
                        piece.observe(now - written_at)
                written_at = now
            if closed:
                return

    # ------------------------------------------------------------ told by the registry

    def opened(self, handle: Handle, created: bool, previous: Ending | None) -> None:
        """The session is held."""
        assert handle.session is not None, "a handle that is opened has its session"
        served = handle.session.served
        labels = (served.name, served.version)
        metrics = self._metrics
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
        response = self._response
        response.position = progress.position
        for token in progress.made:
            assert self._decoder is not None, "only a model with a tokeniser makes tokens"
            self._add(*self._stops.push(token, self._decoder.feed([token])))
            if self._stops.stopped and handle.feed is not None:
                handle.feed.finished = True
                break
        if response.ids:
            self._pending.set()

    def event(self, number: int, cause: Cause, position: int, error: CellstreamError | None) -> None:
        """The session was let go of: nothing more will be made."""
        if self._error is not None:
            self._add(*self._stops.finish(""))  # absorbed, so whoever goes on must know it
        elif self._stops.stopped:
            self._response.finish_reason = pb.FINISH_REASON_STOP
        else:
            self._response.finish_reason = pb.FINISH_REASON_LENGTH
            self._add(*self._stops.finish(self._decoder.finish() if self._decoder is not None else ""))
        self._response.position = position
        self._end(self._error)

    def _add(self, text: str, ids: list[int]) -> None:
        self._response.text += text
        self._response.ids.extend(ids)

    def _end(self, error: CellstreamError | None) -> None:
        self._error = error
        self._closed = True
        self._pending.set()
