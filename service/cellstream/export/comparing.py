"""What both proofs share: what is run, PyTorch's side of it, and how far the sides may be apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cellstream.cells.config import StackConfig
from cellstream.cells.stack import FusedStack, Stack
from cellstream.cells.threads import threads_set
from cellstream.errors import ExportUnproven
from cellstream.export.forms import output_name
from cellstream.export.running import Trace

TOLERANCE = 1e-5
"""How far ONNX Runtime may be from PyTorch, relative to the number where that is above 1. Both compute in
float32 and sum in another order: below 1e-6 is common, while a wrong gate is at 1e-2."""

States = dict[str, NDArray[np.float32]]
"""By name, [batch, layers, units]."""


def random_case(
    config: StackConfig, random: np.random.Generator, steps: int, rows: int
) -> tuple[NDArray[Any], States]:
    """Inputs and starting states that no training has seen; the first row starts as a new session does."""
    inputs: NDArray[Any]
    if config.input == "tokens":
        inputs = random.integers(0, config.outputs_size, (steps, rows))
    else:
        inputs = random.normal(size=(steps, rows, config.outputs_size)).astype(np.float32)
    states = {}
    for name in config.states:
        # Hidden states lie between -1 and 1; a cell state has no bounds.
        spread = random.uniform(-1, 1, (rows, config.layers, config.hidden_size))
        states[name] = (spread if name == "hidden" else 3 * spread).astype(np.float32)
        states[name][0] = 0
    return inputs, states


def run_by_pytorch(model: Stack | FusedStack, inputs: NDArray[Any], states: States) -> Trace:
    """Run a PyTorch model as `Exported.run` runs a graph; with gates, where the model shows some."""
    # For a few rows, more threads only wait for each other: for minutes, on a busy machine.
    with torch.no_grad(), threads_set(1):
        found = model(
            torch.from_numpy(np.ascontiguousarray(inputs)),
            {name: torch.from_numpy(state) for name, state in states.items()},
        )
    steps = {output_name(model.config): found.prediction, **found.gates}
    return Trace(
        {name: array.numpy() for name, array in steps.items()},
        {name: array.numpy() for name, array in found.states.items()},
    )


def differences(tolerance: float, case: str, expected: Trace, found: Trace) -> dict[str, float]:
    """The largest difference in each array that is expected, relative to the number where that is above 1.

    Raises:
        ExportUnproven: One is above the tolerance, or no number, or shapes differ.
    """
    largest = {}
    for name, theirs in expected.arrays.items():
        ours = found.arrays[name]
        if theirs.shape != ours.shape:
            raise ExportUnproven(f"{name}, {case}: expected the shape {theirs.shape}, found {ours.shape}.")
        difference = float(np.max(np.abs(theirs - ours) / np.maximum(1, np.abs(theirs)), initial=0.0))
        if not difference <= tolerance:  # NaN is not
            raise ExportUnproven(
                f"{name}, {case}: expected a difference of at most {tolerance:.0e}, found {difference:.1e}."
            )
        largest[name] = difference
    return largest


def listed(largest: Mapping[str, float]) -> str:
    """The largest differences in a line."""
    return ", ".join(f"{what} {difference:.1e}" for what, difference in largest.items())
