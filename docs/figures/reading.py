"""Models reading texts, one step a call, as a served session reads them: every state and gate on the way.

Knows the manifest's names and shapes. It runs `model.onnx` through ONNX Runtime, the graph that serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cellstream.repository.repository import Repository
from cellstream.repository.version import ModelVersion

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
GUIDE = ROOT / "docs" / "guide"
SENTENCE = "ANTONY.\nFriends, Romans, countrymen, lend me your ears;\n"
"""The characters that the guide follows; `passage.txt` has what stands before and behind them in the play."""

Array = NDArray[np.float32]
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """What one token did to every row.

    Attributes:
        log_probabilities: Of every next token, natural logarithms, float32 [rows, vocabulary].
        states: By name, after the token, float32 [rows, layers, units].
        gates: By name, float32 [rows, layers, units]; empty for a network without gates.
    """

    log_probabilities: Array
    states: dict[str, Array]
    gates: dict[str, Array]


@dataclass(frozen=True)
class Trace:
    """One text, read from an empty state; time stands first in every array.

    Attributes:
        text: What was read.
        log_probabilities: Of the token behind each one read, float32 [time, vocabulary].
        states: By name, after each token, float32 [time, layers, units].
        gates: By name, float32 [time, layers, units].
    """

    text: str
    log_probabilities: Array
    states: dict[str, Array]
    gates: dict[str, Array]


class Reader:
    """A model version that reads.

    Args:
        version: The version; its states have the batch axis first.
    """

    def __init__(self, version: ModelVersion) -> None:
        self.version = version
        self._manifest = version.manifest
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(
            str(version.step_graph), options, providers=["CPUExecutionProvider"]
        )

    def steps(self, tokens: Tokens) -> Iterator[Step]:
        """Reads rows side by side from empty states.

        Args:
            tokens: int64 [time, rows].
        """
        manifest = self._manifest
        rows = tokens.shape[1]
        names = [state.name for state in manifest.states]
        given: dict[str, NDArray[np.generic]] = {
            state.input: np.full((rows, *state.shape), state.initial, np.float32) for state in manifest.states
        }
        if manifest.gates_switch:
            given[manifest.gates_switch] = np.array(True)
        asked = [
            manifest.outputs[0].name,
            *(state.output for state in manifest.states),
            *(gate.name for gate in manifest.gates),
        ]
        for token in tokens:
            prediction, *made = self._session.run(asked, {**given, manifest.input.name: token[None]})
            states, gates = made[: len(names)], made[len(names) :]
            given.update({state.input: array for state, array in zip(manifest.states, states, strict=True)})
            yield Step(
                prediction[0],
                dict(zip(names, states, strict=True)),
                {gate.name: array[0] for gate, array in zip(manifest.gates, gates, strict=True)},
            )

    def trace(self, text: str) -> Trace:
        """Reads one text, and keeps everything."""
        steps = list(self.steps(as_tokens(text)[:, None]))
        return Trace(
            text,
            np.stack([step.log_probabilities[0] for step in steps]),
            {name: np.stack([step.states[name][0] for step in steps]) for name in steps[0].states},
            {name: np.stack([step.gates[name][0] for step in steps]) for name in steps[0].gates},
        )


def load_reader(name: str) -> Reader:
    """The newest version of a shipped model."""
    return Reader(Repository(MODELS).load(name))


def as_tokens(text: str) -> Tokens:
    """A text as the byte models take it, int64 [time].

    Raises:
        UnicodeEncodeError: It has a character beyond ASCII, for which places and bytes would differ.
    """
    return np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64)


def in_rows(text: str, rows: int, warm_up: int) -> tuple[Tokens, NDArray[np.intp]]:
    """Cuts a long text into stretches that can be read side by side.

    Args:
        text: The text.
        rows: How many stretches.
        warm_up: Characters before each stretch that are read, but whose states do not count.

    Returns:
        The tokens, int64 [warm_up + time, rows], and the place in the text of each one that counts,
        [time, rows].
    """
    time = (len(text) - warm_up) // rows
    places = warm_up + np.arange(rows) * time + np.arange(-warm_up, time)[:, None]
    return as_tokens(text)[places], places[warm_up:]
