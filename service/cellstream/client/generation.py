"""Tokens made by the model, as an asynchronous iterator that never outlives its loop unnoticed.

A call that nobody reads goes on in the server, and holds its session, until it is cancelled. So it is
cancelled wherever the iteration can end: at its end, at an error, by `aclose`, and when a loop that was
broken out of lets go of the iterator.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self, TypeAlias, TypedDict

import grpc

from cellstream.client.connection import Connection, bounded
from cellstream.client.feeds import check_names, encode, fill_ids
from cellstream.errors import ConnectionLost, GenerationInvalid
from cellstream.v1 import prediction_pb2 as pb
from cellstream.v1 import prediction_pb2_grpc

FinishReason: TypeAlias = Literal["length", "stop"]
"""Why generation ended: `max_tokens` were made, or a stop text came."""

_FINISH_REASONS: dict[int, FinishReason] = {pb.FINISH_REASON_LENGTH: "length", pb.FINISH_REASON_STOP: "stop"}

MAX_TOKENS = 256
"""How many tokens a generation makes at most, unless told."""


class SamplingOptions(TypedDict, total=False):
    """How tokens are drawn; what is not given is as the server has it.

    Attributes:
        max_tokens: How many to make at most; 256 unless told.
        temperature: 1 unless told; 0: always the most likely.
        top_k: Draw among this many most likely; 0, or not told: all.
        top_p: Draw among the most likely that hold this much probability; 1 unless told.
        seed: The same seed, state and request give the same tokens; drawn by the server unless told.
        stop: A text, or several, that end it; absorbed, not sent.
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: str | Sequence[str]


@dataclass(frozen=True, slots=True)
class Piece:
    """What was made since the piece before.

    Attributes:
        text: Whole characters; may be empty while one is unfinished.
        ids: The tokens.
        position: How many tokens the session has absorbed.
        finish_reason: Why it ended, in the last piece; None before.
    """

    text: str
    ids: tuple[int, ...]
    position: int
    finish_reason: FinishReason | None = None


class Lender(Protocol):
    """A session that lets a generation have its place as writer, and takes it back."""

    async def lend(self) -> tuple[object, int]:
        """Lets go of its handle; gives back what the loan is known by, and the position."""

    def take_back(self, loan: object, position: int | None) -> None:
        """The generation is over; at `position`, if it told one. A loan that is no longer known: nothing."""

    async def open(self) -> None:
        """Attaches to the session again and checks its position."""


class Generation(AsyncIterator[Piece]):
    """The pieces of one generation, in order; the call is made when the first is asked for.

    Breaking out of `async for` cancels the call; so do `aclose` and leaving `async with`. The server may by
    then have made, and absorbed, more tokens than it has sent: only `stop` and `max_tokens` end exactly.

    Args:
        connection: To the server.
        request: What to generate.
        timeout_seconds: How long to wait for each piece.
        lender: The session that it goes on with; None: the request says it all.
    """

    def __init__(
        self,
        connection: Connection,
        request: pb.GenerateRequest,
        timeout_seconds: float,
        lender: Lender | None = None,
    ) -> None:
        self.seed: int | None = None
        """The seed, once the first piece is there."""
        self.position: int | None = None
        """How many tokens the session had absorbed at the last piece."""
        self.finish_reason: FinishReason | None = None
        """Why it ended, once it has."""
        self._connection = connection
        self._request = request
        self._timeout_seconds = timeout_seconds
        self._lender = lender
        self._loan: object = None
        self._call: grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse] | None = None
        self._over = False

    def __repr__(self) -> str:
        ended = (
            f"ended by {self.finish_reason}" if self.finish_reason else "over" if self._over else "going on"
        )
        return f"<Generation at {self.position}: {ended}>"

    async def __anext__(self) -> Piece:
        if self._over:
            raise StopAsyncIteration
        try:
            async with self._connection.calling(), bounded(self._timeout_seconds, "the next piece"):
                call = self._call or await self._start()
                response = await call.read()
        except BaseException:
            self._end()
            raise
        if isinstance(response, pb.GenerateResponse):
            return self._read(response)
        self._end()
        if self.finish_reason is None:
            # A call that was cut may look like one that ended well; this one did not say why it ended.
            raise ConnectionLost("generation ended before its end")
        if self._lender is not None:
            await self._lender.open()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends it here. Over already: nothing."""
        self._end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def __del__(self) -> None:
        self._end()

    async def _start(self) -> grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse]:
        if self._lender is not None:
            self._loan, self._request.position = await self._lender.lend()
        channel = await self._connection.connected()
        self._call = prediction_pb2_grpc.PredictionServiceStub(channel).Generate(self._request)
        return self._call

    def _read(self, response: pb.GenerateResponse) -> Piece:
        if self.seed is None:
            self.seed = response.seed
        self.position = response.position
        self.finish_reason = _FINISH_REASONS.get(response.finish_reason)
        return Piece(response.text, tuple(response.ids), response.position, self.finish_reason)

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        if self._call is not None:
            self._call.cancel()
        if self._lender is not None:
            self._lender.take_back(self._loan, self.position)


def generate_request(
    prompt: str | Sequence[int] | None,
    sampling: SamplingOptions,
    *,
    session_id: str = "",
    model: str = "",
    version: str = "",
    mode: pb.Mode.ValueType = pb.MODE_UNSPECIFIED,
) -> pb.GenerateRequest:
    """Makes the request of a generation.

    Args:
        prompt: Text or token ids to absorb first; None: go on from where the session stands.
        sampling: How tokens are drawn.
        session_id: Empty: a session for this call alone.
        model: Empty: the session's own, or the server's default.
        version: Empty: the session's own, or the highest.
        mode: How to treat a session that exists, or does not.

    Raises:
        GenerationInvalid: A number is not one that its field can hold.
        TokenOutOfRange: An id of the prompt is negative or beyond 32 bits.
        TextNotEncodable: The prompt has half a surrogate pair: UTF-8 has no bytes for it.
        TypeError: There is no setting of that name.
    """
    check_names(sampling, SamplingOptions)
    stop = sampling.get("stop", ())
    request = pb.GenerateRequest(
        session_id=session_id,
        model=model,
        version=version,
        mode=mode,
        stop=[stop] if isinstance(stop, str) else stop,
    )
    try:
        request.max_tokens = sampling.get("max_tokens", MAX_TOKENS)
        request.top_k = sampling.get("top_k", 0)
        if "temperature" in sampling:
            request.temperature = sampling["temperature"]
        if "top_p" in sampling:
            request.top_p = sampling["top_p"]
        if "seed" in sampling:
            request.seed = sampling["seed"]
    except ValueError as error:
        raise GenerationInvalid(f"a setting of the generation is out of range: {error}") from error
    if isinstance(prompt, str):
        encode(prompt)
        request.text = prompt
    elif prompt is not None:
        fill_ids(request.tokens, prompt)
    return request
