"""Surprises from both libraries against the equations, a step at a time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from studies import predictors
from studies.predictors import ServedPredictor, TorchPredictor

from cellstream.cells.config import CellKind, StackConfig
from cellstream.cells.stack import FusedStack, Stack, load_weights, numpy_weights
from cellstream.repository.repository import Repository
from cellstream.testing import write_model


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_surprises_are_those_of_the_equations(cell: CellKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces carry the state on, and each surprise belongs to the token that came, not to the next one."""
    monkeypatch.setattr(predictors, "STEPS", 4)  # so that eleven tokens are cut twice
    torch.manual_seed(1)
    model = FusedStack(StackConfig(cell=cell, layers=2, hidden_size=6, embedding_size=3, vocabulary_size=9))
    equations = Stack(model.config)
    load_weights(equations, numpy_weights(model))
    tokens = np.random.default_rng(1).integers(9, size=(11, 3))

    expected = np.empty((10, 3))
    with torch.inference_mode():
        for row in range(3):
            states = None
            for step in range(10):
                trace = equations(torch.tensor([[tokens[step, row]]]), states)
                states = trace.states
                expected[step, row] = -trace.prediction[0, 0, tokens[step + 1, row]] / math.log(2)
    np.testing.assert_allclose(TorchPredictor(model).surprises(tokens), expected, atol=1e-5)


def test_a_served_version_surprises_the_same_alone_and_beside_others(tmp_path: Path) -> None:
    """The shipped form gives each text its own surprise, and uniform weights would give eight bits."""
    write_model(tmp_path, name="tiny", hidden_size=8, embedding_size=4, seed=1)
    predictor = ServedPredictor(Repository(tmp_path).load("tiny"))
    vocabulary = Repository(tmp_path).load("tiny").manifest.input.vocabulary_size or 0
    tokens = np.random.default_rng(2).integers(vocabulary, size=(150, 4))
    together = predictor.surprises(tokens)
    alone = predictor.surprises(tokens[:, 2:3])
    np.testing.assert_array_equal(together[:, 2:3], alone)
    assert together.mean() == pytest.approx(math.log2(vocabulary), abs=0.5)
