"""What a model said, as numpy arrays, and the reading of it from the wire."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from cellstream.v1 import prediction_pb2 as pb

_NO_SCORES = np.empty(0, np.float32)
_NO_SCORES.flags.writeable = False  # all replies share it


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Reply:
    """The answer to a feed, or to a part of one. What was not asked for is empty.

    Attributes:
        position: How many tokens or frames the session has absorbed now.
        steps: How many steps answered: all of the feed's, the last, or none, as `want` said.
        top_ids: The most likely next tokens, best first: int64 [steps, top_k].
        top_log_probabilities: Theirs, natural logarithm: float32 [steps, top_k].
        scores: The log-probability of each token that came, natural logarithm: float32 [steps];
            NaN for a session's very first.
        outputs: Whole outputs by name (log-probabilities, predicted values): [steps, ...].
        states: The session's state tensors by name (hidden, cell): [steps, ...].
        gates: Gates by name (forget, input, output, candidate): float32 [steps, layers, units].
    """

    position: int
    steps: int
    top_ids: NDArray[np.int64]
    top_log_probabilities: NDArray[np.float32]
    scores: NDArray[np.float32]
    outputs: dict[str, NDArray[np.float32]]
    states: dict[str, NDArray[np.float32]]
    gates: dict[str, NDArray[np.float32]]

    @property
    def surprise_bits(self) -> NDArray[np.float32]:
        """How surprising each token was: −log₂ of its probability, float32 [steps]."""
        return self.scores / np.float32(-math.log(2.0))

    def __repr__(self) -> str:
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        said = []
        if self.top_ids.size:
            likely = zip(self.top_ids[-1].tolist(), np.exp(self.top_log_probabilities[-1]), strict=True)
            said.append("next " + ", ".join(f"{token} ({p:.0%})" for token, p in likely))
        if self.scores.size:
            said.append("scores")
        said += [
            f"{field.name} {', '.join(sorted(named))}"
            for field in fields(self)
            if isinstance(named := getattr(self, field.name), dict) and named
        ]
        return f"<Reply at {self.position}: {'; '.join([steps, *said])}>"


def read_result(result: pb.Result) -> Reply:
    """Reads one result.

    Args:
        result: One without an error.
    """
    said = result.predictions
    steps, top_k = said.steps, said.top_k
    # fromiter with a count is twice as fast here as np.array over a repeated field.
    return Reply(
        result.position,
        steps,
        np.fromiter(said.top_ids, np.int64, steps * top_k).reshape(steps, top_k),
        np.fromiter(said.top_log_probabilities, np.float32, steps * top_k).reshape(steps, top_k),
        np.fromiter(said.scores, np.float32, len(said.scores)) if said.scores else _NO_SCORES,
        _read_tensors(said.outputs) if said.outputs else {},
        _read_tensors(said.states) if said.states else {},
        _read_tensors(said.gates) if said.gates else {},
    )


def join_replies(parts: Sequence[Reply]) -> Reply:
    """Joins the parts of one feed's answer, in order, into one reply.

    Args:
        parts: At least one; the last one's position is the reply's.
    """
    answering = [part for part in parts if part.steps] or parts[-1:]
    if len(answering) == 1 and answering[0] is parts[-1]:
        return parts[-1]
    return Reply(
        parts[-1].position,
        sum(part.steps for part in answering),
        np.concatenate([part.top_ids for part in answering]),
        np.concatenate([part.top_log_probabilities for part in answering]),
        np.concatenate([part.scores for part in answering]),
        _join_tensors([part.outputs for part in answering]),
        _join_tensors([part.states for part in answering]),
        _join_tensors([part.gates for part in answering]),
    )


def _read_tensors(tensors: Iterable[pb.Tensor]) -> dict[str, NDArray[np.float32]]:
    return {
        tensor.name: np.frombuffer(tensor.data, np.dtype(tensor.dtype).newbyteorder("<")).reshape(
            tuple(tensor.shape)
        )
        for tensor in tensors
    }


def _join_tensors(parts: Sequence[dict[str, NDArray[np.float32]]]) -> dict[str, NDArray[np.float32]]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
