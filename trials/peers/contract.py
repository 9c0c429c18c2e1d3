"""What is asked of a peer: a fixed conversation, and nine abilities that its program may have.

Knows the conversation and its answers. Knows no peer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from cellstream.v1 import prediction_pb2 as pb
from trials.certificates import Certificates
from trials.oracle import FEATURES, FRAME_MODEL, FRAMES, Expected
from trials.server import Server, wait_until

Ability = Literal[
    "stream", "cancel", "half-close", "deadline", "metadata", "gzip", "TLS", "mutual TLS", "3 MB message"
]
ABILITIES: tuple[Ability, ...] = get_args(Ability)

Security = Literal["plain", "TLS", "mutual TLS"]

SECONDS = 30.0
"""Longer than any cell takes; a hang fails its cell."""

GENERATE = "/cellstream.v1.PredictionService/Generate"
PREDICT = "/cellstream.v1.PredictionService/Predict"
GET_MODEL = "/cellstream.v1.ModelService/GetModel"
WATCH = "/grpc.health.v1.Health/Watch"

CONVERSATION = ("To be", ", or not", " to be: that is the question.")
"""Three feeds of one session."""

GENERATED_TOKENS = 64

DEADLINE_SECONDS = 0.5
"""Long enough for a call to begin on a busy machine."""

METADATA_TEXT = ("x-trial", "one, two")
METADATA_BYTES = ("x-trial-bin", b"\x00\xff\n")
UNKNOWN_MODEL = "modèle"
"""A name that is not ASCII, so that the status message has to be percent-encoded."""

CANCELLED_FEEDS = 12
CANCELLED_FEED_TOKENS = 16_000
"""Work for a second or more; a cancel must end it, a half-close would not."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a peer connects.

    Attributes:
        port: On 127.0.0.1, for which the server's certificate is made.
        security: What it needs there.
        server: The server that is behind it, to look at its metrics.
    """

    port: int
    security: Security
    server: Server

    @property
    def target(self) -> str:
        """The address as gRPC writes it."""
        return f"127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Site:
    """What a peer is given.

    Attributes:
        endpoints: One for each kind of security.
        certificates: To be trusted, and to be shown.
        answers: To CONVERSATION, from the oracle.
        generated: The tokens that `generation` makes, from the oracle.
        scratch: A folder for files.
        tools: The folder that `install.sh` filled.
        protos: The root of the .proto files.
    """

    endpoints: Mapping[Security, Endpoint]
    certificates: Certificates
    answers: Sequence[Expected]
    generated: bytes
    scratch: Path
    tools: Path
    protos: Path


Cell = Callable[[Site], None]
"""Tries one ability; raises AssertionError, or whatever a client raises, if the peer was not served right."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A client, or a proxy with a client behind it.

    Attributes:
        name: What it is called in the table.
        version: What it says of itself.
        cells: What it can do.
        lacks: For each ability that it has not, the reason.
    """

    name: str
    version: Callable[[Site], str]
    cells: Mapping[Ability, Cell]
    lacks: Mapping[Ability, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that no ability was forgotten."""
        assert set(self.cells) | set(self.lacks) == set(ABILITIES), f"{self.name} leaves abilities out"
        assert not set(self.cells) & set(self.lacks)


def opening(session_id: str = "") -> pb.Open:
    """Open handle 0, answering with the likeliest token."""
    return pb.Open(handle=0, session_id=session_id, answer=pb.Answer(top_k=1))


def conversation() -> list[pb.PredictRequest]:
    """CONVERSATION as requests: the first opens, each feeds once."""
    requests = [pb.PredictRequest(feeds=[pb.Feed(id=n, text=text)]) for n, text in enumerate(CONVERSATION)]
    requests[0].opens.append(opening())
    return requests


def joined() -> pb.PredictRequest:
    """The whole conversation in one message."""
    whole = pb.PredictRequest()
    for request in conversation():
        whole.MergeFrom(request)
    return whole


def generation() -> pb.GenerateRequest:
    """Asks for GENERATED_TOKENS tokens, always the likeliest: a stream of responses to one request."""
    return pb.GenerateRequest(text=CONVERSATION[0], max_tokens=GENERATED_TOKENS, temperature=0)


def large_request() -> pb.PredictRequest:
    """A message of 3 MB: one feed of FRAMES frames, every number finite and none zero."""
    numbers = np.linspace(-1, 1, FRAMES * FEATURES, dtype="<f4") + np.float32(0.01)
    feed = pb.Feed(values=pb.Values(data=numbers.tobytes()))
    request = pb.PredictRequest(opens=[pb.Open(handle=0, model=FRAME_MODEL)], feeds=[feed])
    assert request.ByteSize() > 3_000_000
    return request


def long_work(session_id: str) -> pb.PredictRequest:
    """A session of this name, and work that takes a while."""
    feeds = [pb.Feed(id=n, text="x" * CANCELLED_FEED_TOKENS) for n in range(CANCELLED_FEEDS)]
    return pb.PredictRequest(opens=[opening(session_id)], feeds=feeds)


def check_answers(site: Site, results: Sequence[pb.Result]) -> None:
    """Compare the results of CONVERSATION with the oracle's."""
    assert len(results) == len(site.answers), f"{len(results)} results: {results}"
    for result, expected in zip(results, site.answers, strict=True):
        assert not result.HasField("error"), result.error.message
        assert result.position == expected.position, f"position {result.position}, not {expected.position}"
        found = result.predictions
        assert list(found.top_ids) == [expected.top_id]
        assert np.float32(found.top_log_probabilities[0]) == np.float32(expected.log_probability), (
            f"{found.top_log_probabilities[0]!r}, not {expected.log_probability!r}"
        )


def check_large(results: Sequence[pb.Result]) -> None:
    """Compare the results of `large_request` with what was sent."""
    assert [(result.position, result.done) for result in results] == [(FRAMES, True)], results


def check_unknown_model(code: int, message: str, reason: str) -> None:
    """Compare the answer to GetModel(UNKNOWN_MODEL): status, percent-encoded message, details."""
    assert code == 5, f"code {code}, not NOT_FOUND"
    assert UNKNOWN_MODEL in message, message
    assert reason == "MODEL_UNKNOWN", f"details say {reason!r}"


def check_no_stream_stays(server: Server) -> None:
    """Wait until the server has no stream open."""
    wait_until(lambda: server.metrics()["cellstream_streams"] == 0, SECONDS, "no stream open")


def check_work_was_broken_off(position: int) -> None:
    """Compare where a cancelled `long_work` stands with where it would have ended."""
    everything = CANCELLED_FEEDS * CANCELLED_FEED_TOKENS
    assert position < everything, "the server went on after the cancel, as after a half-close"
