"""The model's graphs in ONNX Runtime, run on buffers that stay.

Knows the manifest's names, shapes and axes, and nothing of sessions. The graphs run with all their inputs and
outputs bound to memory of ours: that saves 4 to 5 µs a call, and the engine gathers states straight into the
inputs and reads results where they were written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cellstream.repository.manifest import Manifest, State

BUFFERS_MAX = 256
"""Sets of bound buffers kept, one for each size of call; each is a few kilobytes of views on one memory."""

_SWITCH = {wanted: np.array(wanted) for wanted in (False, True)}
"""What a graph's switch for its gates is bound to."""


@dataclass(frozen=True, slots=True)
class Buffers:
    """What one call of a graph reads and writes; valid until the graph's next call of any size.

    Attributes:
        rows: How many sessions step.
        steps: How many steps.
        inputs: Tokens, int64 [steps, rows], or values, float32 [steps, rows, features]; to be filled.
        states: For each state, [rows, *shape]; to be filled.
        lengths: How many of the steps each row has, int32 [rows]; to be filled where a sequence graph runs,
            the only one that reads it.
        results: `outputs` and `states_next`, flat, one after the other: all that has to be finite.
        outputs: For each output, float32 [steps, rows, *shape].
        states_next: For each state, after the last step, [rows, *shape].
        gates: For each gate, float32 [steps, rows, *shape]; empty if not asked for.
        binding: ONNX Runtime's view of all these; None where another graph's buffers are bound.
    """

    rows: int
    steps: int
    inputs: NDArray[Any]
    states: list[NDArray[np.float32]]
    lengths: NDArray[np.int32]
    results: NDArray[np.float32]
    outputs: list[NDArray[np.float32]]
    states_next: list[NDArray[np.float32]]
    gates: list[NDArray[np.float32]]
    binding: Any = None


class Runs(Protocol):
    """What runs steps: both graphs do."""

    def buffers(self, rows: int, steps: int, gates: bool) -> Buffers:
        """The buffers of a call of this size; fill `inputs` and `states`, then `run`."""

    def run(self, buffers: Buffers) -> None:
        """Runs `buffers.steps` steps; the results are in the buffers. Raises what the graph raises."""


class StepGraph(Runs, Protocol):
    """What the engine needs of the graph that serves."""

    def head(self, states: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """The prediction (the first output, [rows, *shape]) from states [rows, *shape] alone."""


class Memory:
    """Memory that all sizes of call share: every tensor begins where it always begins, however large."""

    def __init__(self) -> None:
        self._tensors: dict[str, NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """A contiguous array in the tensor's memory; where it is too small, a larger one takes its place."""
        elements = math.prod(shape)
        tensor = self._tensors.get(name, np.empty(0, dtype))
        if len(tensor) < elements:
            tensor = self._tensors[name] = np.empty(max(elements, 2 * len(tensor)), dtype)
        return tensor[:elements].reshape(shape)


def lay_out(manifest: Manifest, rows: int, steps: int, gates: bool, memory: Memory) -> Buffers:
    """Makes the buffers of a call, bound to nothing yet."""
    given = manifest.input
    if given.features is None:
        inputs = memory.array(given.name, (steps, rows), np.int64)
    else:
        inputs = memory.array(given.name, (steps, rows, given.features), np.float32)
    shapes = [
        *((steps, rows, *output.shape) for output in manifest.outputs),
        *(_graph_shape(state, rows) for state in manifest.states),
    ]
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    results = memory.array("outputs and next states", (ends[-1],), np.float32)
    parts = [part.reshape(shape) for part, shape in zip(np.split(results, ends[:-1]), shapes, strict=True)]
    return Buffers(
        rows=rows,
        steps=steps,
        inputs=inputs,
        states=[
            np.moveaxis(memory.array(state.input, _graph_shape(state, rows), np.float32), state.batch_axis, 0)
            for state in manifest.states
        ],
        lengths=memory.array("lengths", (rows,), np.int32),
        results=results,
        outputs=parts[: len(manifest.outputs)],
        states_next=[
            np.moveaxis(part, state.batch_axis, 0)
            for state, part in zip(manifest.states, parts[len(manifest.outputs) :], strict=True)
        ],
        gates=[
            memory.array(gate.name, (steps, rows, *gate.shape), np.float32)
            for gate in manifest.gates
            if gates
        ],
    )


class BoundGraph:
    """One graph of steps, with a set of bound buffers for each size of call.

    Args:
        manifest: What the graph takes and gives.
        file: Its path.
        intra_op_threads: ONNX Runtime's threads.
    """

    def __init__(self, manifest: Manifest, file: Path, intra_op_threads: int) -> None:
        self._manifest = manifest
        self._session = load_graph(file, intra_op_threads)
        self._memory = Memory()
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

    def _bind(self, rows: int, steps: int, gates: bool) -> Buffers:
        """Lays out the buffers of a call, and tells ONNX Runtime where they are.

        Raw pointers do not keep an array alive; the buffers, which hold the binding too, do.
        """
        manifest = self._manifest
        binding = self._session.io_binding()
        buffers = replace(lay_out(manifest, rows, steps, gates, self._memory), binding=binding)
        states = manifest.states
        inputs = [
            (manifest.input.name, buffers.inputs),
            *zip((state.input for state in states), self._as_graph(buffers.states), strict=True),
            *self._inputs_beside(buffers, gates),
        ]
        outputs = [
            *zip((output.name for output in manifest.outputs), buffers.outputs, strict=True),
            *zip((state.output for state in states), self._as_graph(buffers.states_next), strict=True),
            *zip((gate.name for gate in manifest.gates if gates), buffers.gates, strict=True),
        ]
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array in arrays:
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return buffers

    def _inputs_beside(self, buffers: Buffers, gates: bool) -> Iterator[tuple[str, NDArray[Any]]]:
        """What the graph takes beside the input and the states, by name."""
        if self._manifest.gates_switch is not None:
            yield self._manifest.gates_switch, _SWITCH[gates]

    def _as_graph(self, rows_first: Sequence[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """Each state as the graph has it, the batch on its own axis."""
        for state, array in zip(self._manifest.states, rows_first, strict=True):
            yield np.moveaxis(array, 0, state.batch_axis)


class Graph(BoundGraph):
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
        super().__init__(manifest, step_file, intra_op_threads)
        self._head = load_graph(head_file, intra_op_threads)
        self._head_inputs = {given.name for given in self._head.get_inputs()}

    def head(self, states: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """The prediction (the first output, [rows, *shape]) from states [rows, *shape] alone."""
        given = {
            state.input: np.ascontiguousarray(np.moveaxis(rows, 0, state.batch_axis))
            for state, rows in zip(self._manifest.states, states, strict=True)
            if state.input in self._head_inputs
        }
        prediction: NDArray[np.float32] = self._head.run([self._manifest.outputs[0].name], given)[0]
        return prediction


class RowByRow:
    """Runs a graph one row at a time, for a machine where its results depend on who shares the batch.

    Args:
        manifest: What the graph takes and gives.
        graph: The graph.
    """

    def __init__(self, manifest: Manifest, graph: StepGraph) -> None:
        self._manifest = manifest
        self._graph = graph
        self._memory = Memory()

    def buffers(self, rows: int, steps: int, gates: bool) -> Buffers:
        """The buffers of a call of this size; fill `inputs` and `states`, then `run`."""
        return lay_out(self._manifest, rows, steps, gates, self._memory)

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

    def head(self, states: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """The prediction of each row from its states alone, one row at a time."""
        rows = range(len(states[0]))
        return np.concatenate([self._graph.head([array[row : row + 1] for array in states]) for row in rows])


def _graph_shape(state: State, rows: int) -> tuple[int, ...]:
    """The shape of the graph's tensor for a state of so many rows."""
    return (*state.shape[: state.batch_axis], rows, *state.shape[state.batch_axis :])


def load_graph(file: Path, intra_op_threads: int) -> Any:
    """Loads a graph for the CPU, as one of ONNX Runtime's sessions."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    # A spinning thread takes a core from whoever shares the machine: 2 to 4 times slower there.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4  # What a step raises is caught, and told to the feed that caused it.
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
