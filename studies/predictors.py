"""What a network makes of a text from an empty state, the same question to PyTorch and to ONNX Runtime."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from cellstream.cells.stack import FusedStack
from cellstream.repository.version import ModelVersion

STEPS = 64
"""Steps of one run: with a thousand places the predictions take 64 MiB."""

Tokens = NDArray[np.int64]
Bits = NDArray[np.float32]


class Predictor(Protocol):
    """Reads texts side by side and tells how much each token surprised it."""

    def surprises(self, tokens: Tokens) -> Bits:
        """Read from an empty state.

        Args:
            tokens: int64 [time, batch].

        Returns:
            The surprise of every token but the first, in bits, float32 [time − 1, batch].
        """


class TorchPredictor:
    """A trained network.

    Args:
        model: The network.
    """

    def __init__(self, model: FusedStack) -> None:
        self._model = model.eval()

    def surprises(self, tokens: Tokens) -> Bits:
        """Read from an empty state, as `Predictor` says."""
        bits, states = [], None
        with torch.inference_mode():
            for inputs, targets in _cut(tokens):
                trace = self._model(torch.from_numpy(inputs), states)
                states = trace.states
                bits.append(_bits(trace.prediction.numpy(), targets))
        return np.concatenate(bits)


class ServedPredictor:
    """A version as it is served: `model.onnx`, by ONNX Runtime.

    Args:
        version: The version.
    """

    def __init__(self, version: ModelVersion) -> None:
        self._manifest = version.manifest
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(
            str(version.step_graph), options, providers=["CPUExecutionProvider"]
        )

    def surprises(self, tokens: Tokens) -> Bits:
        """Read from an empty state, as `Predictor` says."""
        manifest = self._manifest
        batch = tokens.shape[1]
        given: dict[str, NDArray[np.generic]] = {}
        for state in manifest.states:
            shape = (*state.shape[: state.batch_axis], batch, *state.shape[state.batch_axis :])
            given[state.input] = np.full(shape, state.initial, dtype=np.float32)
        if manifest.gates_switch is not None:
            given[manifest.gates_switch] = np.array(False)
        asked = [manifest.outputs[0].name, *(state.output for state in manifest.states)]
        bits = []
        for inputs, targets in _cut(tokens):
            prediction, *states = self._session.run(asked, {**given, manifest.input.name: inputs})
            given.update(zip((state.input for state in manifest.states), states, strict=True))
            bits.append(_bits(prediction, targets))
        return np.concatenate(bits)


def _cut(tokens: Tokens) -> list[tuple[Tokens, Tokens]]:
    """Pieces of at most `STEPS` steps: what is read, and what comes after each of it."""
    return [
        (np.ascontiguousarray(tokens[at : at + STEPS][: len(targets)]), targets)
        for at in range(0, len(tokens) - 1, STEPS)
        if len(targets := tokens[at + 1 : at + 1 + STEPS])
    ]


def _bits(log_probabilities: NDArray[np.float32], targets: Tokens) -> Bits:
    """−log₂ p of what came, [time, batch]."""
    chosen = np.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
    return (-chosen / math.log(2)).astype(np.float32)
