"""Gradient norms against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from studies.gradients import gradient_norms

from cellstream.cells.config import CellKind, StackConfig
from cellstream.cells.stack import FusedStack


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_norms_are_what_pushing_a_state_does_to_the_loss(cell: CellKind) -> None:
    """Each number of each state is pushed a little at each distance, in float64."""
    torch.manual_seed(2)
    config = StackConfig(cell=cell, layers=2, hidden_size=3, embedding_size=2, vocabulary_size=5)
    model = FusedStack(config).double().eval()
    tokens = np.random.default_rng(2).integers(5, size=(7, 2))
    norms = gradient_norms(model, tokens)

    inputs, step = torch.from_numpy(tokens), 1e-5
    with torch.no_grad():
        for distance in range(1, 7):
            at = 6 - distance
            states = model(inputs[:at], None).states if at else model.initial(2)
            for name, state in states.items():
                squares = np.zeros(2)
                for layer in range(2):
                    for unit in range(3):
                        losses = []
                        for push in (step, -step):
                            pushed = {key: value.clone() for key, value in states.items()}
                            pushed[name][:, layer, unit] += push
                            prediction = model(inputs[at:6], pushed).prediction[-1]
                            losses.append(-prediction.gather(-1, inputs[6][:, None])[:, 0].numpy())
                        squares += ((losses[0] - losses[1]) / (2 * step)) ** 2
                np.testing.assert_allclose(norms[name][distance - 1], np.sqrt(squares), rtol=1e-6, atol=1e-9)
                assert state.shape == (2, 2, 3)
