"""The model's graphs in ONNX Runtime, run on buffers that stay.

Knows the manifest's names, shapes and axes, and nothing of sessions. The step graph runs with all its
inputs and outputs bound to memory of ours: that saves 4 to 5 µs a call, and the engine gathers states
straight into the inputs and reads results where they were written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cellstream.repository.manifest import Manifest

BUFFERS_MAX = 256
"""Sets of bound buffers kept, one for each size of call; each is a few kilobytes of views on one memory."""


@dataclass(frozen=True, slots=True)
class Buffers:
    """What one call of the step graph reads and writes; valid until the next call of any size.

    Attributes:
        rows: How many sessions step.
        steps: How many steps.
        inputs: Tokens, int64 [steps, rows], or values, float32 [steps, rows, features]; to be filled.
        states: For each state, [rows, *shape]; to be filled.
        outputs: For each output, float32 [steps, rows, *shape].
        states_next: For each state, after the last step, [rows, *shape].
        gates: For each gate, float32 [steps, rows, *shape]; empty if not asked for.
        binding: ONNX Runtime's view of all these.
    """

    rows: int
    steps: int
    inputs: NDArray[Any]
    states: list[NDArray[Any]]
    outputs: list[NDArray[np.float32]]
    states_next: list[NDArray[Any]]
    gates: list[NDArray[np.float32]]
    binding: Any

    def only(self, rows: list[int]) -> Buffers:
        """A copy of what these rows read and wrote."""
        return Buffers(
            rows=len(rows),
            steps=self.steps,
            inputs=self.inputs[:, rows],
            states=[array[rows] for array in self.states],
            outputs=[array[:, rows] for array in self.outputs],
            states_next=[array[rows] for array in self.states_next],
            gates=[array[:, rows] for array in self.gates],
            binding=None,
        )


class StepGraph(Protocol):
    """What the engine needs of a graph."""

    def buffers(self, rows: int, steps: int, gates: bool) -> Buffers:
        """The buffers of a call of this size; fill `inputs` and `states`, then `run`."""

    def run(self, buffers: Buffers) -> None:
        """Runs `buffers.steps` steps; the results are in the buffers. Raises what the graph raises."""

    def head(self, states: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """The prediction (the first output, [rows, *shape]) from states [rows, *shape] alone."""


class Graph:
    """`model.onnx` and `head.onnx` of one model version.

    Args:
        manifest: What the graphs take and give.
        step_file: Path of the step graph.
        head_file: Path of the head graph.
        intra_op_threads: ONNX Runtime's threads.
    """

    def __init__(
        self, manifest: Manifest, step_file: Path, head_file: Path, *, intra_op_threads: int = 1
    ) -> None:
        self._manifest = manifest
        self._session = _load(step_file, intra_op_threads)
        self._head = _load(head_file, intra_op_threads)
        self._head_inputs = {given.name for given in self._head.get_inputs()}
        # Memory by tensor name. Every call's arrays start where the tensor's memory starts, whatever
        # their size, so that many sizes of call share it.
        self._memory: dict[str, NDArray[Any]] = {}
        self._buffers: dict[tuple[int, int, bool], Buffers] = {}

    def buffers(self, rows: int, steps: int, gates: bool) -> Buffers:
        """The buffers of a call of this size; fill `inputs` and `states`, then `run`."""
        key = rows, steps, gates
        # Taken out and put back: the first key is always the one not used for longest.
        buffers = self._buffers.pop(key, None) or self._bind(rows, steps, gates)
        self._buffers[key] = buffers
        if len(self._buffers) > BUFFERS_MAX:
            del self._buffers[next(iter(self._buffers))]
        return buffers

    def run(self, buffers: Buffers) -> None:
        """Runs `buffers.steps` steps; the results are in the buffers. Raises what the graph raises."""
        self._session.run_with_iobinding(buffers.binding)

    def head(self, states: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """The prediction (the first output, [rows, *shape]) from states [rows, *shape] alone."""
        given = {
            state.input: np.ascontiguousarray(np.moveaxis(rows, 0, state.batch_axis))
            for state, rows in zip(self._manifest.states, states, strict=True)
            if state.input in self._head_inputs
        }
        prediction: NDArray[np.float32] = self._head.run([self._manifest.outputs[0].name], given)[0]
        return prediction

    def _bind(self, rows: int, steps: int, gates: bool) -> Buffers:
        """Makes the buffers of a call of this size, in memory shared with all other sizes."""
        manifest = self._manifest
        binding = self._session.io_binding()

        def bound(bind: Any, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
            array = self._reserved(name, shape, np.dtype(dtype))
            # A raw pointer does not keep the array alive; the buffers, which hold the binding, do.
            bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            return array

        def by_row(bind: Any, name: str, state: Any) -> NDArray[Any]:
            shape = (*state.shape[: state.batch_axis], rows, *state.shape[state.batch_axis :])
            return np.moveaxis(bound(bind, name, shape, state.dtype), state.batch_axis, 0)

        given = manifest.input
        frame, dtype = ((), np.int64) if given.features is None else ((given.features,), np.float32)
        read, write = binding.bind_input, binding.bind_output
        return Buffers(
            rows=rows,
            steps=steps,
            inputs=bound(read, given.name, (steps, rows, *frame), dtype),
            states=[by_row(read, state.input, state) for state in manifest.states],
            outputs=[bound(write, each.name, (steps, rows, *each.shape)) for each in manifest.outputs],
            states_next=[by_row(write, state.output, state) for state in manifest.states],
            gates=[bound(write, each.name, (steps, rows, *each.shape)) for each in manifest.gates if gates],
            binding=binding,
        )

    def _reserved(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """A contiguous array at the start of the tensor's memory, which grows where it is too small."""
        elements = int(np.prod(shape))
        memory = self._memory.get(name, np.empty(0, dtype))
        if len(memory) < elements:
            # Buffers made before still read and write the old memory; without them it is freed.
            self._buffers.clear()
            memory = self._memory[name] = np.empty(max(elements, 2 * len(memory)), dtype)
        return memory[:elements].reshape(shape)


class RowByRow:
    """Runs a graph one row at a time, for a machine where its results depend on who shares the batch."""

    def __init__(self, graph: StepGraph) -> None:
        self._graph = graph

    def buffers(self, rows: int, steps: int, gates: bool) -> Buffers:
        """The buffers of a call of this size; fill `inputs` and `states`, then `run`."""
        one = self._graph.buffers(1, steps, gates)

        def empty(array: NDArray[Any], axis: int) -> NDArray[Any]:
            return np.empty((*array.shape[:axis], rows, *array.shape[axis + 1 :]), array.dtype)

        return Buffers(
            rows=rows,
            steps=steps,
            inputs=empty(one.inputs, 1),
            states=[empty(array, 0) for array in one.states],
            outputs=[empty(array, 1) for array in one.outputs],
            states_next=[empty(array, 0) for array in one.states_next],
            gates=[empty(array, 1) for array in one.gates],
            binding=None,
        )

    def run(self, buffers: Buffers) -> None:
        """Runs `buffers.steps` steps of each row, alone."""
        one = self._graph.buffers(1, buffers.steps, bool(buffers.gates))
        for row in range(buffers.rows):
            one.inputs[:, 0] = buffers.inputs[:, row]
            for alone, rows in zip(one.states, buffers.states, strict=True):
                alone[0] = rows[row]
            self._graph.run(one)
            for rows, alone in zip(buffers.outputs + buffers.gates, one.outputs + one.gates, strict=True):
                rows[:, row] = alone[:, 0]
            for rows, alone in zip(buffers.states_next, one.states_next, strict=True):
                rows[row] = alone[0]

    def head(self, states: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """The prediction of each row from its states alone, one row at a time."""
        rows = range(len(states[0]))
        return np.concatenate([self._graph.head([array[row : row + 1] for array in states]) for row in rows])


def _load(file: Path, intra_op_threads: int) -> Any:
    """Loads a graph for this process's one CPU provider."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    # A spinning thread takes a core from whoever shares the machine: 2 to 4 times slower there.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4  # What a step raises is caught, and told to the feed that caused it.
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
