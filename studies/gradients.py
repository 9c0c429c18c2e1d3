"""How far back a lesson reaches: the gradient of one loss by the states that led to it, step by step.

For the loss of the character at t, the norm of ∂loss_t/∂s for the states s carried out of step t − k into
step t − k + 1: h of all layers together, and C of an LSTM likewise. It is what backpropagation through time
multiplies from step to step (Bengio, Simard and Frasconi, "Learning long-term dependencies with gradient
descent is difficult", 1994): where it has vanished, nothing that far back is learned from this loss.

On held-out text, of the trained networks and of the same networks before training; float32, nothing clipped.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from numpy.typing import NDArray

from cellstream.cells.stack import FusedStack
from studies.memory import SEED, heldout_works, places
from studies.study import NETWORKS, read_checkpoint, read_network, read_recipe, read_result, write_result

DISTANCE_MAX = 256

PLACES = 128

DISTANCES = tuple(sorted({round(2 ** (quarter / 4)) for quarter in range(4 * 8 + 1)}))
"""1 to `DISTANCE_MAX`, evenly on a logarithmic axis."""


def main() -> None:
    """Measure the networks that were named, or all."""
    torch.set_num_threads(1)
    works = heldout_works()
    at = places(works, PLACES, SEED)
    tokens = np.stack([works[work][token - DISTANCE_MAX : token + 1] for work, token in at], axis=1)
    for network in sys.argv[1:] or NETWORKS:
        torch.manual_seed(read_recipe(network).seed)
        untrained = FusedStack(read_checkpoint(network).config).eval()
        measured = {
            when: {name: summarise(norms) for name, norms in gradient_norms(model, tokens).items()}
            for when, model in (("trained", read_network(network)), ("untrained", untrained))
        }
        write_result("gradients", {**read_result("gradients"), network: measured})
        print(f"{network}: done", flush=True)


def gradient_norms(model: FusedStack, tokens: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Take the loss of the last token back through all steps.

    Args:
        model: The network.
        tokens: int64 [steps + 1, places]; the states before the first step are zeros.

    Returns:
        For each state by name, float64 [steps, places]: in row k the norm of the gradient by the state k + 1
        steps before the prediction (row 0: out of the last step but one, into the last).
    """
    inputs, target = torch.from_numpy(tokens[:-1]), torch.from_numpy(tokens[-1])
    states = {name: state.requires_grad_() for name, state in model.initial(tokens.shape[1]).items()}
    carried = [states]
    for x in inputs[:, None]:  # [1, places], one step at a time, to have the states between
        trace = model(x, carried[-1])
        carried.append(trace.states)
        for state in trace.states.values():
            state.retain_grad()
    loss = -trace.prediction[0].gather(-1, target[:, None]).sum()  # each place by its own states only
    loss.backward()
    return {
        name: np.stack([_norms(one[name]) for one in reversed(carried[:-1])])  # the last states saw no loss
        for name in states
    }


def summarise(norms: NDArray[np.float64]) -> dict[str, list[float]]:
    """Give the median and the quartiles over places at `DISTANCES`."""
    low, median, high = np.quantile(norms[np.array(DISTANCES) - 1], (0.25, 0.5, 0.75), axis=1)
    return {
        name: [float(f"{value:.3g}") for value in values]
        for name, values in (("low", low), ("median", median), ("high", high))
    }


def _norms(state: torch.Tensor) -> NDArray[np.float64]:
    """Of the gradient by a state [places, layers, units]: [places]."""
    assert state.grad is not None
    norms: NDArray[np.float64] = state.grad.double().flatten(1).norm(dim=1).numpy()
    return norms


if __name__ == "__main__":
    main()
