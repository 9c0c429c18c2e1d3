"""What a few runs at load tell of a graph on this machine: its numbers, what they depend on, and its costs.

All inputs are fixed, so that the same weights, ONNX Runtime, kernels and options give the same digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellstream.engine.batch import Answer, Feed, Want
from cellstream.engine.costs import Costs, Telling
from cellstream.engine.graph import Memory, Runs, StepGraph, lay_out
from cellstream.engine.sampling import uniforms
from cellstream.engine.sequence import SequenceGraph
from cellstream.engine.settling import settle
from cellstream.repository.manifest import Manifest

_ROWS, _STEPS = 64, 5
_BATCHES = (2, 3, 5, 8, 17, 32, 64)
"""Sizes that take different paths through ONNX Runtime's matrix kernels: odd ones and powers of two."""

_COSTED_ROWS = (1, 8, 64, 512)
_COSTED_STEPS, _COSTED_STEPS_HEAVY = 16, 4
"""Steps of the longer calls that are timed, and where so many would take longer than a call may."""
_COSTING_SECONDS = 0.03
"""For each of at most ten sizes of call."""
_COSTING_RUNS_MAX = 20

_TOLD_TOP_K = (1, 4, 16, 64)
_TOLD_ROWS, _TOLD_NUMBERS = 8, 1 << 18
"""Of the call whose telling is timed: as many log-probabilities as no cache near the core holds."""


TOLERANCE = 1e-5
"""How far the sequence graph may be from the step graph, relative to the number where that is above 1: both
sum the same float32 products, in different orders."""

_Fixed = tuple[NDArray[Any], list[NDArray[np.float32]]]


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


@dataclass(frozen=True, slots=True)
class SequenceCheck:
    """What the check of a sequence graph found.

    Attributes:
        why_not: Why it must not serve; None: it may.
        numerics_digest: SHA-256 of its results, and of the step graph's digest.
    """

    why_not: str | None
    numerics_digest: str


def self_check(graph: StepGraph, manifest: Manifest, batch_rows_max: int) -> SelfCheck:
    """Runs fixed inputs alone and together, at once and cut into steps, and compares bit for bit."""
    fixed = _fixed(manifest)

    def run(rows: Iterable[int], cuts: Sequence[int] = (1,) * _STEPS, *, gates: bool = False) -> _Results:
        return _run(graph, fixed, rows, cuts, gates=gates)

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

    rows_independent = all(
        _equal(run(order), whole, order) for order in _orders(batch_rows_max)
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


def check_sequence(
    sequence: SequenceGraph, graph: StepGraph, manifest: Manifest, checked: SelfCheck, batch_rows_max: int
) -> SequenceCheck:
    """Runs rows of different lengths through the sequence graph, and compares with the step graph.

    First finds the tokens that it must be spared (`SequenceGraph.unsound`), by a step of each.
    """
    inputs, states = fixed = _fixed(manifest)
    lengths = [1 + row % _STEPS for row in range(_ROWS)]
    digest = hashlib.sha256(checked.numerics_digest.encode())

    def run(rows: Sequence[int]) -> list[list[NDArray[np.float32]]]:
        """For each row, its outputs [its length, ...] and its states."""
        chosen = [row % _ROWS for row in rows]
        buffers = sequence.buffers(len(rows), _STEPS, gates=False)
        buffers.inputs[:] = inputs[:, chosen]
        buffers.lengths[:] = [lengths[row] for row in chosen]
        for bound, array in zip(buffers.states, states, strict=True):
            bound[:] = array[chosen]
        sequence.run(buffers)
        return [
            [array[: lengths[row], place].copy() for array in buffers.outputs]
            + [array[place].copy() for array in buffers.states_next]
            for place, row in enumerate(chosen)
        ]

    try:
        sequence.unsound[:] = _tokens_not_finite(graph, manifest, batch_rows_max)
        alone = [run([row])[0] for row in range(_ROWS)]
        together = [(order, run(order)) for order in _orders(batch_rows_max)]
    except Exception as error:
        return SequenceCheck(f"its sequence graph fails: {error}", digest.hexdigest())
    for found in alone:
        for array in found:
            digest.update(array.tobytes())
    expected = []
    for row, length in enumerate(lengths):
        stepped = _run(graph, fixed, [row], (1,) * length)
        expected.append([array[:, 0] for array in stepped.outputs] + [array[0] for array in stepped.states])
    sound = [sequence.is_sound(inputs[:length, row]) for row, length in enumerate(lengths)]
    # Beside others too: a row that saw them would be further off than rounding takes it.
    for order, rows in [(range(_ROWS), alone), *together]:
        for row, found in zip((row % _ROWS for row in order), rows, strict=True):
            if sound[row] and not all(map(_near, found, expected[row])):
                why = f"its sequence graph is further than {TOLERANCE:g} from its step graph"
                return SequenceCheck(why, digest.hexdigest())
    return SequenceCheck(None, digest.hexdigest())


def measure_costs(
    graph: Runs,
    manifest: Manifest,
    *,
    batch_rows_max: int,
    call_seconds_max: float,
    clock: Callable[[], float],
) -> Costs:
    """Times calls of a few numbers of rows, of one step and of more; the best of several runs each.

    Stops at the first number of rows of which one step takes longer than a call may: more will not be run.
    A single row's further steps are timed all the same: there is nothing smaller to run.
    """
    inputs, states = _fixed(manifest)

    def measure(rows: int, steps: int) -> float:
        buffers = graph.buffers(rows, steps, False)
        chosen = [row % _ROWS for row in range(rows)]
        buffers.inputs[:] = inputs[np.arange(steps) % _STEPS][:, chosen]
        for bound, array in zip(buffers.states, states, strict=True):
            bound[:] = array[chosen]
        buffers.lengths[:] = steps
        graph.run(buffers)  # The first run of a size lays out its memory.
        return _fastest(lambda: graph.run(buffers), clock)

    costed, firsts, furthers = [], [], []
    for rows in sorted({min(rows, batch_rows_max) for rows in _COSTED_ROWS} | {batch_rows_max}):
        first = further = measure(rows, 1)
        if first <= call_seconds_max or rows == 1:
            steps = _COSTED_STEPS if first * _COSTED_STEPS <= call_seconds_max else _COSTED_STEPS_HEAVY
            whole = measure(rows, steps)
            # However noisy the machine: what a call costs beside its steps is at most half of this one, and
            # at least nothing.
            further = min(max((whole - first) / (steps - 1), whole / steps / 2), first)
        costed.append(rows)
        firsts.append(first)
        furthers.append(further)
        if first > call_seconds_max:
            break
    return Costs(tuple(costed), tuple(firsts), tuple(furthers))


def measure_telling(manifest: Manifest, clock: Callable[[], float]) -> Telling:
    """Times how feeds are told of every step, by how many most likely tokens they want."""
    vocabulary_size = manifest.input.vocabulary_size
    if vocabulary_size is None:
        return Telling()
    rows, steps = _TOLD_ROWS, max(1, _TOLD_NUMBERS // (_TOLD_ROWS * vocabulary_size))
    results = lay_out(manifest, rows, steps, False, Memory())
    results.outputs[0][:] = _fractions(0, results.outputs[0].shape)

    def measure(top_k: int) -> float:
        answer = Answer(Want.EVERY_STEP, top_k)
        feeds = [Feed(row, [0] * steps, answer, lambda feed, progress: None, 0.0) for row in range(rows)]
        return _fastest(lambda: settle(manifest, feeds, results, [steps] * rows, {}), clock) / (rows * steps)

    wanted = tuple(sorted({min(top_k, vocabulary_size) for top_k in _TOLD_TOP_K}))
    return Telling(wanted, tuple(map(measure, wanted)))


def _fastest(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """The seconds of the fastest of several runs."""
    best, began = float("inf"), clock()
    for _ in range(_COSTING_RUNS_MAX):
        before = clock()
        run()
        after = clock()
        best = min(best, after - before)
        if after - began > _COSTING_SECONDS:
            break
    return max(best, 1e-9)  # A clock may stand still.


def _run(
    graph: Runs, fixed: _Fixed, rows: Iterable[int], cuts: Sequence[int], *, gates: bool = False
) -> _Results:
    """Runs these rows of the fixed inputs together, cut into calls of so many steps."""
    inputs, states = fixed
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


def _near(found: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Whether all numbers are within the tolerance; what is not a number is not."""
    return bool((np.abs(found - expected) <= TOLERANCE * np.maximum(1, np.abs(expected))).all())


def _orders(batch_rows_max: int) -> Iterator[list[int]]:
    """Rows that run together: of several sizes, each in two orders."""
    for size in sorted({size for size in _BATCHES if size <= batch_rows_max} | {batch_rows_max}):
        yield list(range(size))
        yield list(reversed(range(size)))


def _tokens_not_finite(graph: Runs, manifest: Manifest, batch_rows_max: int) -> NDArray[np.bool_]:
    """For each token, whether a step on it from the initial state is not finite; empty for values."""
    tokens = np.arange(manifest.input.vocabulary_size or 0)
    found = np.zeros(len(tokens), dtype=bool)
    for first in range(0, len(tokens), batch_rows_max):
        some = tokens[first : first + batch_rows_max]
        buffers = graph.buffers(len(some), 1, False)
        buffers.inputs[0] = some
        for bound, state in zip(buffers.states, manifest.states, strict=True):
            bound[:] = state.initial
        graph.run(buffers)
        for array in (*(output[0] for output in buffers.outputs), *buffers.states_next):
            found[some] |= ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    return found


def _fixed(manifest: Manifest) -> _Fixed:
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
