"""What the load client sends: joined messages or single tokens, serialised before the clock starts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from bench.load import LoadClient
from bench.measure import Run
from bench.processes import Server
from cellstream.v1 import prediction_pb2 as pb

PATH = "/cellstream.v1.PredictionService/Predict"

MESSAGES = 16
"""Different messages of a stream, sent in a circle."""


class Traffic:
    """Streams × feeds of one token a message, against one server.

    Args:
        server: The server.
        streams: How many.
        feeds: Sessions of a stream; a message feeds each of them one token and asks for the likeliest next.
        seed: Of the tokens.
        echoed: Whether the server is the echo, which has to be told its answer.
    """

    def __init__(self, server: Server, *, streams: int, feeds: int, seed: int, echoed: bool = False) -> None:
        random = np.random.default_rng(seed)
        answer = pb.Answer(top_k=1)
        opening = pb.PredictRequest(opens=[pb.Open(handle=handle, answer=answer) for handle in range(feeds)])
        self._server = server
        self._echoed = echoed
        self._client = LoadClient(
            server.port,
            PATH,
            [_answer(feeds) if echoed else opening.SerializeToString()] * streams,
            [
                [_message(random.integers(0, 256, feeds).tolist()) for _ in range(MESSAGES)]
                for _ in range(streams)
            ],
            feeds,
        )

    def run(self, seconds: float) -> Run:
        """Keeps all streams busy for so long."""
        server = self._server
        tokens_before, steps_before = self._counts()
        cpu, client_cpu = server.cpu_seconds(), time.process_time()
        tokens, taken, latencies = self._client.run(seconds)
        client_cpu_seconds, cpu_seconds = time.process_time() - client_cpu, server.cpu_seconds() - cpu
        stepped, steps = self._counts()
        if not self._echoed:
            assert stepped - tokens_before == tokens, "the service did not step what was answered"
            self._check_positions()
        return Run(
            tokens=tokens,
            seconds=taken,
            cpu_seconds=cpu_seconds,
            mean_batch=None if self._echoed else (stepped - tokens_before) / (steps - steps_before),
            client_cpu_seconds=client_cpu_seconds,
            latencies=latencies,
        )

    def _counts(self) -> tuple[float, float]:
        """How many tokens and how many steps the server has made so far."""
        if self._echoed:
            return 0, 0
        return self._server.count("cellstream_tokens_total"), self._server.count("cellstream_steps_total")

    def _check_positions(self) -> None:
        """Every session absorbed exactly what was sent: what was measured is what was asked for."""
        for stream, response in self._client.last.items():
            positions = {result.position for result in response.results}
            assert positions == {self._client.sent[stream]}, f"{positions} after {self._client.sent[stream]}"

    def close(self) -> None:
        """Ends the streams."""
        self._client.close()


@contextmanager
def traffic(
    server: Server, *, streams: int, feeds: int, seed: int, echoed: bool = False
) -> Iterator[Traffic]:
    """Streams that end on leaving."""
    made = Traffic(server, streams=streams, feeds=feeds, seed=seed, echoed=echoed)
    try:
        yield made
    finally:
        made.close()


def _message(tokens: list[int]) -> bytes:
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
