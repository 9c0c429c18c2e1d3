"""Models for tests, made once: tiny, random weights, written by the real export. And what each does alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

# uvloop starts a process by fork, where gRPC's own fork handlers now and then abort the child before it is
# another program (seen with grpcio 1.81: SIGABRT in 1 of 30). Nothing here goes on with gRPC after a fork.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

from cellstream.testing import write_model

# A shell's background job ignores Ctrl-C, and whatever it starts inherits that: tests of Ctrl-C must not.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one model, `tiny`: an LSTM over bytes, 2 layers × 16."""
    return write_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with several: two versions of `tiny`, a GRU over values, an RNN over 40 characters."""
    models = write_model(tmp_path_factory.mktemp("many"))
    write_model(models, version=2, seed=1)
    write_model(models, name="meter", cell="gru", input="values", seed=2)
    return write_model(models, name="letters", cell="rnn", vocabulary_size=40, seed=3)


@dataclass
class Step:
    """What a session gets for one token, alone; arrays without axes of time and batch."""

    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    states: dict[str, np.ndarray] = field(default_factory=dict)
    gates: dict[str, np.ndarray] = field(default_factory=dict)
    next: dict[Any, Step] = field(default_factory=dict)

    @property
    def log_probabilities(self) -> np.ndarray:
        """Of every next token, [vocabulary]."""
        return self.outputs["log_probabilities"]


class Alone:
    """One session at a time, one token (or frame) a call: what every answer is held against.

    A plain loop over ONNX Runtime, which shares no line with the engine.
    """

    def __init__(self, directory: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(directory / "model.onnx", options)
        given = {wanted.name: wanted for wanted in self._session.get_inputs()}
        self._is_text = "tokens" in given
        self._outputs = [made.name for made in self._session.get_outputs()]
        self._states = [name for name in given if f"{name}_next" in self._outputs]
        self._switch = {"with_gates": np.array(True)} if "with_gates" in given else {}
        self._start = Step(
            states={name: np.zeros(given[name].shape[1:], np.float32) for name in self._states}
        )

    def after(self, history: Sequence[Any]) -> Step:
        """What the session gets for the last of these tokens (or frames, as tuples)."""
        return self.steps(history)[-1]

    def steps(self, history: Sequence[Any]) -> list[Step]:
        """What it gets for each of them, the state before the first included."""
        steps = [self._start]
        for came in history:
            before = steps[-1]
            if came not in before.next:
                before.next[came] = self._step(before, came)
            steps.append(before.next[came])
        return steps

    def _step(self, before: Step, came: Any) -> Step:
        given = {"tokens": np.array([[came]])} if self._is_text else {"values": np.float32([[came]])}
        states = {name: array[np.newaxis] for name, array in before.states.items()}
        made = self._session.run(self._outputs, {**given, **states, **self._switch})
        found = dict(zip(self._outputs, made, strict=True))
        after = Step(states={name: found.pop(f"{name}_next")[0] for name in self._states})
        for name, array in found.items():
            kind = after.outputs if name in ("log_probabilities", "prediction") else after.gates
            kind[name] = array[0, 0]
        return after


@pytest.fixture(scope="session")
def alone() -> Callable[[Path], Alone]:
    """Makes the oracle of a version's directory; one is made once."""
    made: dict[Path, Alone] = {}

    def of(directory: Path) -> Alone:
        if directory not in made:
            made[directory] = Alone(directory)
        return made[directory]

    return of
