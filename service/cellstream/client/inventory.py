"""What a server holds, seen from outside its streams: its models, its sessions, its health."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

from cellstream.v1 import model_pb2, session_pb2


class Health(enum.IntEnum):
    """What the server says of itself; the numbers are those of grpc.health.v1."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2


@dataclass(frozen=True, slots=True)
class StateInfo:
    """A tensor that a session carries from step to step.

    Attributes:
        name: hidden, cell.
        dtype: As numpy writes it.
        shape: For one session.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One version of a model.

    Attributes:
        name: Its name.
        version: A positive integer, written out.
        is_default: Whether a session that names no model gets it.
        input_kind: What it takes.
        vocabulary_size: How many tokens it knows; 0 for values.
        features: How many features a frame has; 0 for tokens.
        states: The state that it keeps for each session.
        gates: Names of the gates it can show.
        numerics: `exact`: a session's answers are, bit for bit, those that it would get alone; `fast`: to
            1e-5.
        numerics_digest: Equal on two servers: their answers are equal, bit for bit where they are `exact`.
        manifest_digest: SHA-256 of its manifest.
        metrics: What it was measured at, by name.
        card: Its card, Markdown; empty in lists.
    """

    name: str
    version: str
    is_default: bool
    input_kind: Literal["tokens", "values"]
    vocabulary_size: int
    features: int
    states: tuple[StateInfo, ...]
    gates: tuple[str, ...]
    numerics: Literal["exact", "fast"]
    numerics_digest: str
    manifest_digest: str
    metrics: dict[str, float]
    card: str


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as the server sees it.

    Attributes:
        session_hash: A hash of its id, the same in the server's logs: an id lets whoever has it go on.
        model: The model that serves it.
        version: The version that serves it.
        position: How many tokens its state has absorbed.
        idle_seconds: Since its last feed.
        held: Whether a stream holds it.
    """

    session_hash: str
    model: str
    version: str
    position: int
    idle_seconds: float
    held: bool


def read_model(model: model_pb2.Model) -> ModelInfo:
    """Reads a model from the wire."""
    return ModelInfo(
        name=model.name,
        version=model.version,
        is_default=model.is_default,
        input_kind="values" if model.input_kind == model_pb2.INPUT_KIND_VALUES else "tokens",
        vocabulary_size=model.vocabulary_size,
        features=model.features,
        states=tuple(StateInfo(state.name, state.dtype, tuple(state.shape)) for state in model.states),
        gates=tuple(model.gates),
        # A server that does not tell is one that knew only `exact`.
        numerics="fast" if model.numerics == model_pb2.NUMERICS_FAST else "exact",
        numerics_digest=model.numerics_digest,
        manifest_digest=model.manifest_digest,
        metrics=dict(model.metrics),
        card=model.card,
    )


def read_session(session: session_pb2.Session) -> SessionInfo:
    """Reads a session from the wire."""
    return SessionInfo(
        session_hash=session.session_hash,
        model=session.model,
        version=session.version,
        position=session.position,
        idle_seconds=session.idle.ToTimedelta().total_seconds(),
        held=session.held,
    )


def read_health(response: bytes) -> Health:
    """Reads a `grpc.health.v1.HealthCheckResponse`, whose one field is the status.

    By hand, because the message is two bytes. grpcio-health-checking would be one more dependency of the bare
    install, and stubs of our own would register its names twice wherever both are imported.

    Args:
        response: Nothing at all (the default, UNKNOWN), or the tag of field 1 and a number below 128.
    """
    if len(response) == 2 and response[0] == _STATUS_TAG and response[1] in Health._value2member_map_:
        return Health(response[1])
    return Health.UNKNOWN


_STATUS_TAG = 1 << 3  # field 1, a varint
