"""Exported graphs, run as a server runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cellstream.cells.config import StackConfig
from cellstream.export.building import HEAD_FILE, STEP_FILE
from cellstream.export.forms import output_name
from cellstream.export.graph import GATES_SWITCH


@dataclass(frozen=True, slots=True)
class Trace:
    """What a run over some steps gave.

    Attributes:
        steps: For each step, by name, [time, batch, ...]: the prediction, and the gates if they were wanted.
        states: After the last step, by name, [batch, layers, units].
    """

    steps: dict[str, NDArray[np.float32]]
    states: dict[str, NDArray[np.float32]]

    @property
    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """All of it, by name."""
        return self.steps | self.states

    def rows(self, rows: NDArray[np.int64]) -> Trace:
        """The trace of these rows only."""
        return Trace(
            {name: array[:, rows] for name, array in self.steps.items()},
            {name: array[rows] for name, array in self.states.items()},
        )

    @classmethod
    def join(cls, traces: Sequence[Trace]) -> Trace:
        """Runs that went on from each other, as one."""
        first, last = traces[0], traces[-1]
        return cls(
            {name: np.concatenate([trace.steps[name] for trace in traces]) for name in first.steps},
            last.states,
        )


class Exported:
    """The two graphs of a folder, run as a server runs them: one thread, ONNX Runtime's own optimisations."""

    def __init__(self, config: StackConfig, directory: Path) -> None:
        self._config = config
        self._step = session_of(directory / STEP_FILE)
        self._head = session_of(directory / HEAD_FILE)

    def run(self, inputs: NDArray[Any], states: dict[str, NDArray[np.float32]], gates: bool = True) -> Trace:
        """Run some steps.

        Args:
            inputs: Tokens, int64 [time, batch], or frames, float32 [time, batch, features].
            states: Before the first step, by name.
            gates: Whether to ask for the gates.
        """
        config = self._config
        shown = config.gates if gates else ()
        switch = {GATES_SWITCH: np.array(gates)} if config.gates else {}
        names = [output_name(config), *(f"{state}_next" for state in config.states), *shown]
        given = {config.input: np.ascontiguousarray(inputs), **states, **switch}
        found = dict(zip(names, self._step.run(names, given), strict=True))
        return Trace(
            {name: found[name] for name in (output_name(config), *shown)},
            {state: found[f"{state}_next"] for state in config.states},
        )

    def head(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predict from states alone, [batch, layers, units] → [batch, outputs]."""
        prediction: NDArray[np.float32] = self._head.run(None, {"hidden": hidden})[0]
        return prediction


def session_of(file: Path) -> Any:
    """Load a graph as a server does."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
