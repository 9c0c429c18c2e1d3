"""What a session gets alone: a plain loop over ONNX Runtime, which shares no line with the engine.

Also the two small models with random weights that every trial serves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cellstream.testing import write_model

TEXT_MODEL = "tiny"
"""An LSTM over bytes."""
FRAME_MODEL = "meter"
"""A GRU over frames of FEATURES numbers."""
FEATURES = 46
"""So that 16,320 frames, just below `feed_tokens_max`, make a message of 3 MB."""
FRAMES = 16_320


def write_models(models: Path) -> Path:
    """Write the two models; the default is TEXT_MODEL."""
    write_model(models, name=TEXT_MODEL)
    return write_model(models, name=FRAME_MODEL, cell="gru", input="values", features=FEATURES, seed=2)


@dataclass(frozen=True, slots=True)
class Expected:
    """The answer to a feed: where the session stands, the likeliest next token, its log-probability."""

    position: int
    top_id: int
    log_probability: float


class Oracle:
    """Steps one session of TEXT_MODEL, token by token, from its initial state.

    Args:
        models: What `write_models` wrote.
    """

    def __init__(self, models: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        path = models / TEXT_MODEL / "1" / "model.onnx"
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        given = {wanted.name: wanted for wanted in self._session.get_inputs()}
        self._outputs = [made.name for made in self._session.get_outputs()]
        self._state_names = [name for name in given if f"{name}_next" in self._outputs]
        self._switch = {"with_gates": np.array(False)} if "with_gates" in given else {}
        self._start = {name: np.zeros((1, *given[name].shape[1:]), np.float32) for name in self._state_names}

    def answers(self, feeds: Iterable[bytes]) -> list[Expected]:
        """What a new session is answered for each of these feeds, in order."""
        states, position, found = dict(self._start), 0, []
        for feed in feeds:
            for token in feed:
                log_probabilities, states = self._step(token, states)
            position += len(feed)
            best = int(np.argmax(log_probabilities))
            found.append(Expected(position, best, float(log_probabilities[best])))
        return found

    def greedy(self, prompt: bytes, count: int) -> bytes:
        """The tokens that a new session makes after this prompt, always the likeliest."""
        states, made = dict(self._start), bytearray()
        for token in prompt:
            log_probabilities, states = self._step(token, states)
        for _ in range(count):
            made.append(int(np.argmax(log_probabilities)))
            log_probabilities, states = self._step(made[-1], states)
        return bytes(made)

    def _step(
        self, token: int, states: dict[str, NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        given = {"tokens": np.array([[token]]), **states, **self._switch}
        made = dict(zip(self._outputs, self._session.run(self._outputs, given), strict=True))
        after = {name: made[f"{name}_next"] for name in self._state_names}
        return made["log_probabilities"][0, 0], after
