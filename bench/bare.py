"""The floor of every row with a model: ONNX Runtime on the step graph, nothing around it.

The same graph, options and shape of call as the engine's, everything bound once. States stay in place: each
call reads them and writes them over. Nobody chooses sessions, looks at results or answers.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bench.measure import Run
from cellstream.repository import ModelVersion


class Bare:
    """One call of the step graph, again and again.

    Args:
        version: The model.
        tokens: int64 [steps, rows]; the same for each call, since their values change no cost.
    """

    def __init__(self, version: ModelVersion, tokens: NDArray[np.int64]) -> None:
        manifest = version.manifest
        self.steps, self.rows = tokens.shape
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        self._session = ort.InferenceSession(
            str(version.directory / manifest.step_graph), options, providers=["CPUExecutionProvider"]
        )
        self._binding = self._session.io_binding()
        self._kept: list[NDArray[Any]] = []  # a binding does not keep alive what is bound
        self._bind(self._binding.bind_input, manifest.input.name, tokens)
        if manifest.gates_switch is not None:
            self._bind(self._binding.bind_input, manifest.gates_switch, np.array(False))
        self.states: list[NDArray[Any]] = []
        for state in manifest.states:
            shape = (*state.shape[: state.batch_axis], self.rows, *state.shape[state.batch_axis :])
            array = np.full(shape, state.initial, state.dtype)
            self._bind(self._binding.bind_input, state.input, array)
            self._bind(self._binding.bind_output, state.output, array)
            self.states.append(array)
        self.outputs: list[NDArray[np.float32]] = []
        for output in manifest.outputs:
            array = np.empty((self.steps, self.rows, *output.shape), np.float32)
            self._bind(self._binding.bind_output, output.name, array)
            self.outputs.append(array)

    def _bind(self, bind: Any, name: str, array: NDArray[Any]) -> None:
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._kept.append(array)

    def step(self) -> None:
        """One call."""
        self._session.run_with_iobinding(self._binding)

    def run(self, seconds: float) -> Run:
        """Calls for so long."""
        cpu, began, calls = time.process_time(), time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            self.step()
            calls += 1
        return Run(
            tokens=calls * self.steps * self.rows,
            seconds=time.perf_counter() - began,
            cpu_seconds=time.process_time() - cpu,
            mean_batch=self.rows,
        )
