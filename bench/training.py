"""Training's pace: updates of one model from windows of random tokens, in one precision or the other."""

from __future__ import annotations

import time
from typing import Literal

import numpy as np
import torch

from bench.measure import Run
from cellstream.cells.config import StackConfig
from cellstream.cells.stack import FusedStack
from cellstream.cells.threads import threads_set
from cellstream.training.data import Window
from cellstream.training.learner import Learner
from cellstream.training.pace import check_bfloat16
from cellstream.training.recipe import Training


class TrainingLoad:
    """One update after the other.

    Args:
        hidden_size: Units of each of two layers.
        precision: Of the forward and backward run.
        seed: Of weights and tokens.

    Raises:
        RecipeInvalid: This machine cannot learn in that precision.
    """

    def __init__(self, *, hidden_size: int, precision: Literal["float32", "bfloat16"], seed: int) -> None:
        torch.manual_seed(seed)
        config = StackConfig(
            cell="lstm",
            layers=2,
            hidden_size=hidden_size,
            input="tokens",
            embedding_size=64,
            vocabulary_size=256,
        )
        training = Training(tokens=1)
        shape = training.window, training.batch_rows
        tokens = np.random.default_rng(seed).integers(0, 256, (2, *shape))
        model = FusedStack(config)
        self._window = Window(tokens[0], tokens[1], fresh=False)
        if precision == "bfloat16":
            check_bfloat16(model, self._window)
        self._learner = Learner(model, training, precision)

    def run(self, seconds: float) -> Run:
        """Updates for so long, on one thread: several wait for each other where a core is taken."""
        cpu, began, tokens = time.process_time(), time.perf_counter(), 0
        with threads_set(1):
            while time.perf_counter() - began < seconds:
                self._learner.learn(self._window, 1e-3)
                tokens += self._window.inputs.size
        return Run(tokens=tokens, seconds=time.perf_counter() - began, cpu_seconds=time.process_time() - cpu)
