"""The proof that `sequence.onnx` does what PyTorch and the step graph do, within `TOLERANCE`.

Rows of other lengths than the batch's, 0 among them, from states that no training has seen, whole and cut in
two. A network may amplify: then a difference in the last bit grows over the steps, with nothing wrong. So
where the step graph makes more and more of a hair's breadth in its states, so many times the tolerance is
allowed, and rows that end in chaos are left out. Single steps have to agree strictly, and so has
all of a network that forgets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from cellstream.cells.checkpoint import Weights
from cellstream.cells.config import StackConfig
from cellstream.cells.stack import FusedStack, load_weights
from cellstream.export.building import SEQUENCE_FILE
from cellstream.export.comparing import (
    TOLERANCE,
    States,
    differences,
    listed,
    random_case,
    run_by_pytorch,
)
from cellstream.export.forms import output_name
from cellstream.export.running import Exported, Trace, session_of
from cellstream.repository.manifest import LENGTHS

_SIZES = ((1, 1), (1, 33), (2, 7), (5, 17), (33, 8), (64, 8), (100, 3))
"""Steps and rows of the runs that are compared."""

_HAIR = 1e-6
"""How far states are moved to see how much a network amplifies: some last bits."""

_LAST_BIT = 1e-7
_CHAOS = 1e-2
"""Where so much would have to be allowed, nothing is compared: a wrong gate would pass."""

_SEED = 20_261_125


class Sequence:
    """`sequence.onnx` of a folder."""

    def __init__(self, config: StackConfig, directory: Path) -> None:
        self._config = config
        self._session = session_of(directory / SEQUENCE_FILE)

    def run(self, inputs: NDArray[Any], lengths: NDArray[np.int32], states: States) -> Trace:
        """Run rows of different lengths.

        Args:
            inputs: Tokens, int64 [time, batch], or frames, float32 [time, batch, features].
            lengths: Steps of each row, int32 [batch].
            states: Before the first step, by name.
        """
        config = self._config
        names = [output_name(config), *(f"{state}_next" for state in config.states)]
        given = {config.input: np.ascontiguousarray(inputs), LENGTHS: lengths, **states}
        prediction, *after = self._session.run(names, given)
        return Trace({names[0]: prediction}, dict(zip(config.states, after, strict=True)))


@dataclass(frozen=True, slots=True)
class _Case:
    inputs: NDArray[Any]
    lengths: NDArray[np.int32]
    states: States


def prove_sequence(
    config: StackConfig, weights: Weights, directory: Path, console: Console | None = None
) -> dict[str, bool | int | float | str]:
    """Prove `sequence.onnx` of a folder against PyTorch and the step graph beside it.

    Args:
        config: What the weights are the weights of.
        weights: PyTorch's, which the graphs were made of.
        directory: Where the graphs are.
        console: Where to tell how it goes; None: nowhere.

    Returns:
        What was compared and the largest differences, for the manifest.

    Raises:
        ExportUnproven: They differ; the message says in what, where, and by how much.
    """
    tell = (console or Console(quiet=True)).print
    tell(f"Proof: {SEQUENCE_FILE}, {len(_SIZES)} batches of rows of different lengths …")
    sequence, step = Sequence(config, directory), Exported(config, directory)
    fused = FusedStack(config).eval()
    load_weights(fused, weights)
    random = np.random.default_rng(_SEED)
    largest: dict[str, float] = {"pytorch": 0.0, "step": 0.0, "cut": 0.0}
    tokens = 0
    for steps, rows in _SIZES:
        case = _case(config, random, steps, rows)
        found = sequence.run(case.inputs, case.lengths, case.states)
        halves = _in_two(sequence, case)
        for row, length in enumerate(case.lengths):
            where = f"{SEQUENCE_FILE}, row {row} of {rows}, {length} steps"
            inputs = case.inputs[:length, row : row + 1]
            before = {name: state[row : row + 1] for name, state in case.states.items()}
            ours = _row(found, row, length)
            if not length:
                differences(0.0, where, Trace({}, before), ours)
                continue
            expected = step.run(inputs, before, gates=False)
            allowed = TOLERANCE * _growth(step, inputs, before, expected)
            if allowed > _CHAOS:
                continue
            for source, theirs in (
                ("pytorch", run_by_pytorch(fused, inputs, before)),
                ("step", expected),
                ("cut", _row(halves, row, length)),
            ):
                apart = differences(allowed, f"{where}, against {source}", theirs, ours)
                largest[source] = max(largest[source], *apart.values())
            tokens += int(length)
    tell(f"       {listed(largest)} at most, over {tokens:,} steps")
    return {
        "sequence_steps": tokens,
        **{f"sequence_largest_difference_{what}": difference for what, difference in largest.items()},
    }


def _case(config: StackConfig, random: np.random.Generator, steps: int, rows: int) -> _Case:
    inputs, states = random_case(config, random, steps, rows)
    lengths = random.integers(0, steps + 1, rows).astype(np.int32)
    lengths[0] = steps
    if rows > 2:
        lengths[1:3] = 0, 1
    return _Case(inputs, lengths, states)


def _in_two(sequence: Sequence, case: _Case) -> Trace:
    """The same rows in two calls, the second of which goes on from the states of the first."""
    cut = (len(case.inputs) + 1) // 2
    first = np.minimum(case.lengths, cut)
    begun = sequence.run(case.inputs[:cut], first, case.states)
    if cut == len(case.inputs):
        return begun
    return Trace.join([begun, sequence.run(case.inputs[cut:], case.lengths - first, begun.states)])


def _row(trace: Trace, row: int, length: int) -> Trace:
    """What a run gave one row, as far as the row goes."""
    one = trace.rows(np.array([row]))
    return Trace({name: array[:length] for name, array in one.steps.items()}, one.states)


def _growth(step: Exported, inputs: NDArray[Any], states: States, expected: Trace) -> float:
    """What the step graph makes of a hair's breadth in its states: times as much, at least 1.

    A hair is put in before each step, in a row of its own that goes the others' way until then, because a
    last bit may be lost at any step, and what is made of it differs from step to step. It is looked for in
    the states after the last step, and in every prediction beside what the newest hair does there: a head
    may amplify too, and does so at a single step already.
    """
    length = len(inputs)
    if length == 1:
        return 1.0
    ((name, predictions),) = expected.steps.items()
    growth = 1.0
    rows = {state: np.repeat(array, length, axis=0) for state, array in states.items()}
    for at in range(length):
        for array in rows.values():
            array[at] += np.float32(_HAIR)
        moved = step.run(np.repeat(inputs[at : at + 1], length, axis=1), rows, gates=False)
        rows = moved.states
        apart = np.abs(moved.steps[name][0] - predictions[at]).max(axis=1)[: at + 1]  # [hairs so far]
        growth = max(growth, float(apart.max() / max(apart[at], _LAST_BIT)))
    of_states = (float(np.abs(rows[state] - after).max()) for state, after in expected.states.items())
    return max(growth, *(difference / _HAIR for difference in of_states))
