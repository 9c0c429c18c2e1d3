"""What the load client sends: requests serialised before the clock starts, and the server's part in a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bench.client import LoadClient
from bench.measure import Run
from bench.processes import Server
from cellstream.v1 import prediction_pb2 as pb

MESSAGES = 64
"""Different messages, sent in a circle; each stream begins at another one."""


class Traffic:
    """Streams × feeds of one token a message, ping-pong, against one server; a context that ends them.

    Args:
        server: The server.
        streams: How many.
        feeds: Sessions of a stream; a message feeds each of them and asks for the likeliest next token.
        seed: Of the tokens.
        echo: Whether the server is the echo, which has to be told its answer.
        names: What the sessions' names begin with, for one stream; empty: they have none.
        messages: How many different ones.
        connections: Over how many connections.
    """

    def __init__(
        self,
        server: Server,
        *,
        streams: int,
        feeds: int,
        seed: int,
        echo: bool = False,
        names: str = "",
        messages: int = MESSAGES,
        connections: int = 1,
    ) -> None:
        random = np.random.default_rng(seed)
        self._server = server
        self._echo = echo
        self._client = LoadClient(
            server.port,
            [
                _answer(feeds) if echo else _opening(feeds, names),
                *(_message(random.integers(0, 256, feeds)) for _ in range(messages)),
            ],
            streams=streams,
            connections=connections,
            feeds=feeds,
            tokens=1,
            echo=echo,
        )

    def run(self, seconds: float) -> Run:
        """Keeps all streams busy for so long."""
        tokens_before, steps_before = self._counts()
        run = _run(self._client, self._server, seconds)
        if self._echo:
            return run
        stepped, steps = self._counts()
        assert stepped - tokens_before == run.tokens, "the service did not step what was answered"
        return replace(run, mean_batch=(stepped - tokens_before) / (steps - steps_before))

    def _counts(self) -> tuple[float, float]:
        """How many tokens and how many steps the server has made so far."""
        if self._echo:
            return 0, 0
        return self._server.count("cellstream_tokens_total"), self._server.count("cellstream_steps_total")

    def __enter__(self) -> Self:
        """They are open since they were made."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the streams."""
        self._client.close()


class UnaryTraffic:
    """Unary calls of one method, so many under way at a time; a context that ends them.

    Args:
        server: The server.
        path: Of the method.
        message: The request of every call.
        calls: How many are under way.
        connections: Over how many connections.
    """

    def __init__(self, server: Server, *, path: str, message: bytes, calls: int, connections: int) -> None:
        self._server = server
        self._client = LoadClient(
            server.port,
            [message, message],
            streams=calls,
            connections=connections,
            feeds=1,
            tokens=1,
            path=path,
        )

    def run(self, seconds: float) -> Run:
        """Call for so long; what a run counts as tokens are calls."""
        return _run(self._client, self._server, seconds)

    def __enter__(self) -> Self:
        """They are under way since they were made."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the calls."""
        self._client.close()


def _run(client: LoadClient, server: Server, seconds: float) -> Run:
    cpu = server.cpu_seconds()
    told = client.run(seconds)
    cpu_seconds = server.cpu_seconds() - cpu
    return Run(
        tokens=told["tokens"],
        seconds=told["seconds"],
        cpu_seconds=cpu_seconds,
        client_cpu_seconds=told["cpu_seconds"],
        p50_ms=told["p50_ms"],
        p99_ms=told["p99_ms"],
        stream_replies=(told["stream_replies_min"], told["stream_replies_max"]),
    )


def _opening(feeds: int, names: str) -> bytes:
    answer = pb.Answer(top_k=1)
    opens = [
        pb.Open(handle=handle, session_id=f"{names}{handle}" if names else "", answer=answer)
        for handle in range(feeds)
    ]
    return pb.PredictRequest(opens=opens).SerializeToString()


def _message(tokens: NDArray[np.int64]) -> bytes:
    """A request that feeds handle after handle the token of its number, [feeds]."""
    feeds = [pb.Feed(handle=handle, tokens=pb.Tokens(ids=[token])) for handle, token in enumerate(tokens)]
    return pb.PredictRequest(feeds=feeds).SerializeToString()


def _answer(feeds: int) -> bytes:
    """What the service would answer, about: results with one token and its log-probability."""
    predictions = pb.Predictions(steps=1, top_k=1, top_ids=[200], top_log_probabilities=[-1.5])
    results = [
        pb.Result(handle=handle, position=20_000, done=True, predictions=predictions)
        for handle in range(feeds)
    ]
    return pb.PredictResponse(results=results).SerializeToString()
