"""The proof that an exported graph does what the PyTorch model does, and does it the same way every time.

With PyTorch it has to agree within `TOLERANCE`: with the equations of `cells/`, gates and states too, and
with PyTorch's own recurrence. With itself it has to agree bit for bit, because a server promises each session
the answers that it would get alone: whatever the states it starts from, however its steps are cut into calls,
whoever shares the batch and in whatever order, with the gates shown or not, and by `head.onnx` too.

With weights in 8 bits the agreement with PyTorch is a wider one, which is written down as it was found. All
that is promised of bits is promised of them too. `sequence.onnx` is proven apart (`sequence_proof.py`).

Cuts are a matter of the graph. That rows do not depend on each other is also a matter of ONNX Runtime's
kernels for this machine's processor, and a server checks it again on its own; so that alone may be waived.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from cellstream.cells.checkpoint import Weights
from cellstream.cells.config import StackConfig
from cellstream.cells.stack import FusedStack, Stack, load_weights
from cellstream.errors import ExportUnproven
from cellstream.export.comparing import (
    TOLERANCE,
    States,
    differences,
    listed,
    random_case,
    run_by_pytorch,
)
from cellstream.export.running import Exported, Trace
from cellstream.repository.manifest import WeightsDtype

TOLERANCE_INT8 = 0.5
"""That of weights in 8 bits, whose rounding moved single numbers of trained models by up to 0.2. A gate in
another's place moves some by 1. How well such a model predicts is measured instead (`measuring.py`)."""

_STEPS, _ROWS = 12, 96
"""Of the run that is compared with PyTorch, and of the one that all others are compared with bit for bit."""

_ROWS_CUT = (1, 7, _ROWS)
"""How many rows run in other cuts."""

_BATCHES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 95)
"""Around the sizes at which matrix kernels change their path."""

_SEED = 20_261_124


def prove(
    config: StackConfig,
    weights: Weights,
    directory: Path,
    *,
    weights_dtype: WeightsDtype = "float32",
    allow_row_by_row: bool = False,
    console: Console | None = None,
) -> dict[str, bool | int | float | str]:
    """Prove the graphs of a folder against PyTorch and against themselves.

    Args:
        config: What the weights are the weights of.
        weights: Those of the PyTorch model.
        directory: Holds `model.onnx`, `head.onnx` and what they read.
        weights_dtype: How the weights are stored there.
        allow_row_by_row: Go on where rows depend on each other on this machine, and only record it. A server
            on such a machine runs one row at a time.
        console: Where to tell how it goes; None: nowhere.

    Returns:
        What was compared and the largest differences, for the manifest.

    Raises:
        ExportUnproven: They differ; the message says in what, where, and by how much.
    """
    tell = (console or Console(quiet=True)).print
    exported = Exported(config, directory)
    random = np.random.default_rng(_SEED)

    tolerance = TOLERANCE if weights_dtype == "float32" else TOLERANCE_INT8
    tell(f"Proof: {_STEPS} steps × {_ROWS} rows against PyTorch's equations and its own recurrence …")
    largest = _compare_with_pytorch(config, weights, exported, random, tolerance)
    tell(f"       {listed(largest)} at most")

    tell(f"Proof: {_ROWS} rows × {_STEPS} steps bit for bit, in other cuts, batches and orders …")
    inputs, states = random_case(config, random, _STEPS, _ROWS)
    cuts = sum(
        _compare_cuts(
            exported, inputs[:, :rows], {name: state[:rows] for name, state in states.items()}, random
        )
        for rows in _ROWS_CUT
    )
    batches, difference = _compare_batches(exported, inputs, states, random)
    if difference and not allow_row_by_row:
        raise ExportUnproven(
            f"rows depend on each other on this machine: {difference}. Export elsewhere, or allow it: a "
            "server on such a machine runs one row at a time."
        )
    tell(f"       {cuts} cuts equal; {difference or f'{batches} batches equal'}")
    return {
        "tolerance": tolerance,
        "pytorch_steps": _STEPS * _ROWS,
        **{f"largest_difference_{what}": difference for what, difference in largest.items()},
        "cuts": cuts,
        "cuts_bit_exact": True,
        "batches": batches,
        "batches_bit_exact": not difference,
    }


# ---------------------------------------------------------------- with PyTorch


def _compare_with_pytorch(
    config: StackConfig,
    weights: Weights,
    exported: Exported,
    random: np.random.Generator,
    tolerance: float,
) -> dict[str, float]:
    """Take each step from where the graph itself has come; the largest differences by what differs.

    Step by step, because a network may amplify: then a difference in the last bit grows beyond any tolerance,
    with nothing wrong. That many steps are many single steps is compared below, and there bit for bit.
    """
    equations, fused = Stack(config).eval(), FusedStack(config).eval()
    load_weights(equations, weights)
    load_weights(fused, weights)
    inputs, states = random_case(config, random, _STEPS, _ROWS)
    largest: dict[str, float] = {}
    for step in range(_STEPS):
        x = inputs[step : step + 1]  # [1, batch] or [1, batch, features]
        found = exported.run(x, states)
        for model, source in ((equations, "the equations"), (fused, f"torch.nn.{config.cell.upper()}")):
            expected = run_by_pytorch(model, x, states)
            apart = differences(tolerance, f"step {step} against {source}", expected, found)
            for name, difference in apart.items():
                kind = _kind(config, name)
                largest[kind] = max(largest.get(kind, 0.0), difference)
        states = found.states
    return largest


def _kind(config: StackConfig, name: str) -> str:
    return "states" if name in config.states else "gates" if name in config.gates else "prediction"


# ---------------------------------------------------------------- with itself


def _compare_cuts(
    exported: Exported,
    inputs: NDArray[Any],
    states: States,
    random: np.random.Generator,
) -> int:
    """Run the same steps in other cuts, without the gates, and through the head; how many cuts there were."""
    whole = exported.run(inputs, states)
    every, halves = range(_STEPS + 1), (0, _STEPS // 2, _STEPS)
    some = (0, *np.flatnonzero(random.random(_STEPS - 1) < 0.4) + 1, _STEPS)
    cuts: list[Sequence[int]] = [every, halves, some]
    for cut in cuts:
        traces: list[Trace] = []
        for begin, end in itertools.pairwise(cut):
            traces.append(exported.run(inputs[begin:end], traces[-1].states if traces else states))
            name, predictions = next(iter(traces[-1].steps.items()))
            _same(f"{name} by head.onnx", predictions[-1], exported.head(traces[-1].states["hidden"]))
        _same_trace(f"steps cut at {list(cut)}", whole, Trace.join(traces))
    _same_trace("without the gates", whole, exported.run(inputs, states, gates=False))
    return len(cuts)


def _compare_batches(
    exported: Exported,
    inputs: NDArray[Any],
    states: States,
    random: np.random.Generator,
) -> tuple[int, str]:
    """Run the same rows in other batches and orders; how many there were, and what differed, if anything."""
    whole = exported.run(inputs, states)
    batches = [random.choice(_ROWS, size, replace=False) for size in _BATCHES]
    batches += [np.arange(_ROWS)[::-1], random.permutation(_ROWS)]
    for rows in batches:
        found = exported.run(inputs[:, rows], {name: state[rows] for name, state in states.items()})
        try:
            _same_trace(f"{len(rows)} of {_ROWS} rows in another order", whole.rows(rows), found)
        except ExportUnproven as difference:
            return len(batches), difference.message
    return len(batches), ""


def _same_trace(case: str, expected: Trace, found: Trace) -> None:
    for name, array in found.arrays.items():
        _same(f"{name}, {case}", expected.arrays[name], array)


def _same(case: str, expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
    if not np.array_equal(expected.view(np.int32), found.view(np.int32)):
        largest = np.max(np.abs(expected - found))
        raise ExportUnproven(f"{case}: expected the same bits, found a difference of {largest:.1e}")
