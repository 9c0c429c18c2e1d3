"""What a few runs at load tell of a graph on this machine: its numbers, what they depend on, and its costs.

All inputs are fixed, so that the same weights, ONNX Runtime, kernels and options give the same digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellstream.engine.graph import StepGraph
from cellstream.engine.sampling import uniforms
from cellstream.engine.scheduler import Costs
from cellstream.repository.manifest import Manifest

_ROWS, _STEPS = 64, 5
_BATCHES = (2, 3, 5, 8, 17, 32, 64)
"""Sizes that take different paths through ONNX Runtime's matrix kernels: odd ones and powers of two."""

_COSTED_ROWS = (1, 8, 64, 512)
_COSTING_SECONDS = 0.15
_COSTING_RUNS_MAX = 20


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """What the self-check found.

    Attributes:
        numerics_digest: SHA-256 of the results of rows alone; equal digests, equal answers bit for bit.
        rows_independent: Whether no row's results depend on the other rows, or on its place among them.
        steps_independent: Whether results do not depend on how steps are cut into calls, and the head graph
            predicts what the step did.
    """

    numerics_digest: str
    rows_independent: bool
    steps_independent: bool


@dataclass(frozen=True, slots=True)
class _Results:
    outputs: list[NDArray[np.float32]]  # [steps, rows, ...]
    states: list[NDArray[Any]]  # [rows, ...], after the last step
    gates: list[NDArray[np.float32]]  # [steps, rows, ...]


def self_check(graph: StepGraph, manifest: Manifest, batch_rows_max: int) -> SelfCheck:
    """Runs fixed inputs alone and together, at once and cut into steps, and compares bit for bit."""
    inputs, states = _fixed(manifest)

    def run(rows: Iterable[int], cuts: Sequence[int] = (1,) * _STEPS, *, gates: bool = False) -> _Results:
        """Runs these rows together, cut into calls of so many steps."""
        chosen = [row % _ROWS for row in rows]
        carried = [array[chosen] for array in states]
        outputs, shown, first = [], [], 0
        for steps in cuts:
            buffers = graph.buffers(len(chosen), steps, gates)
            buffers.inputs[:] = inputs[first : first + steps, chosen]
            for bound, array in zip(buffers.states, carried, strict=True):
                bound[:] = array
            graph.run(buffers)
            carried = [array.copy() for array in buffers.states_next]
            outputs.append([array.copy() for array in buffers.outputs])
            shown.append([array.copy() for array in buffers.gates])
            first += steps
        return _Results(_joined(outputs), carried, _joined(shown))

    alone = [run([row], gates=True) for row in range(_ROWS)]
    whole = _Results(
        _stacked([each.outputs for each in alone], 1),
        _stacked([each.states for each in alone], 0),
        _stacked([each.gates for each in alone], 1),
    )
    heads = np.concatenate([graph.head(each.states) for each in alone])
    digest = hashlib.sha256()
    for array in (*whole.outputs, *whole.states, *whole.gates, heads):
        digest.update(array.tobytes())

    together = {size: list(range(size)) for size in _BATCHES if size <= batch_rows_max}
    together[batch_rows_max] = list(range(batch_rows_max))
    rows_independent = all(
        _equal(run(order), whole, order) and _equal(run(order[::-1]), whole, order[::-1])
        for order in together.values()
    ) and np.array_equal(graph.head(whole.states), heads, equal_nan=True)
    steps_independent = all(
        _equal(run([row], cuts, gates=True), whole, [row])
        for row in (0, _ROWS - 1)
        for cuts in ((_STEPS,), (2, 3))
    ) and np.array_equal(heads, whole.outputs[0][-1], equal_nan=True)
    if rows_independent and steps_independent:
        order = list(range(min(_ROWS, batch_rows_max)))
        steps_independent = _equal(run(order, (_STEPS,)), whole, order)
    return SelfCheck(digest.hexdigest(), rows_independent, steps_independent)


def measure_costs(
    graph: StepGraph,
    manifest: Manifest,
    *,
    batch_rows_max: int,
    call_seconds_max: float,
    clock: Callable[[], float],
) -> Costs:
    """Times single steps of a few numbers of rows; the best of several runs each.

    Stops at the first number of rows that takes longer than a call may: more will not be run.
    """
    inputs, states = _fixed(manifest)
    costed, seconds = [], []
    for rows in sorted({min(rows, batch_rows_max) for rows in _COSTED_ROWS} | {batch_rows_max}):
        buffers = graph.buffers(rows, 1, False)
        chosen = [row % _ROWS for row in range(rows)]
        buffers.inputs[:] = inputs[:1, chosen]
        for bound, array in zip(buffers.states, states, strict=True):
            bound[:] = array[chosen]
        graph.run(buffers)  # The first run of a size lays out its memory.
        best, began = float("inf"), clock()
        for _ in range(_COSTING_RUNS_MAX):
            before = clock()
            graph.run(buffers)
            after = clock()
            best = min(best, after - before)
            if after - began > _COSTING_SECONDS / (len(_COSTED_ROWS) + 1):
                break
        costed.append(rows)
        seconds.append(max(best, 1e-9))  # A clock may stand still.
        if best > call_seconds_max:
            break
    return Costs(tuple(costed), tuple(seconds))


def _fixed(manifest: Manifest) -> tuple[NDArray[Any], list[NDArray[np.float32]]]:
    """Inputs [steps, rows, ...] and states, each [rows, *shape]: every other row is at its initial state."""
    given = manifest.input
    if given.vocabulary_size is not None:
        inputs: NDArray[Any] = np.floor(_fractions(0, (_STEPS, _ROWS)) * given.vocabulary_size).astype(
            np.int64
        )
    else:
        assert given.features is not None  # It takes the one or the other.
        inputs = (2 * _fractions(0, (_STEPS, _ROWS, given.features)) - 1).astype(np.float32)
    states = []
    for seed, state in enumerate(manifest.states, start=1):
        array = (2 * _fractions(seed, (_ROWS, *state.shape)) - 1).astype(np.dtype(state.dtype))
        array[::2] = state.initial
        states.append(array)
    return inputs, states


def _fractions(seed: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Numbers in [0, 1) that are the same everywhere."""
    size = int(np.prod(shape))
    return uniforms(np.full(size, seed, np.uint64), np.arange(size)).reshape(shape)


def _joined(calls: list[list[NDArray[Any]]]) -> list[NDArray[Any]]:
    """Call after call, along the axis of steps."""
    return [np.concatenate(arrays) for arrays in zip(*calls, strict=True)]


def _stacked(runs: list[list[NDArray[Any]]], axis: int) -> list[NDArray[Any]]:
    """Row beside row."""
    return [np.concatenate(arrays, axis) for arrays in zip(*runs, strict=True)]


def _equal(found: _Results, whole: _Results, rows: Sequence[int]) -> bool:
    """Whether these results are those of the same rows alone, bit for bit."""
    chosen = [row % _ROWS for row in rows]
    pairs = [
        *zip(found.outputs, (array[:, chosen] for array in whole.outputs), strict=True),
        # No gates are found where they were not asked for.
        *zip(found.gates, (array[:, chosen] for array in whole.gates), strict=False),
        *zip(found.states, (array[chosen] for array in whole.states), strict=True),
    ]
    return all(ours.tobytes() == theirs.tobytes() for ours, theirs in pairs)
