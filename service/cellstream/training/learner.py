"""One update of the weights from one window of text."""

from __future__ import annotations

import math

import torch
from torch import nn

from cellstream.cells.stack import FusedStack, States
from cellstream.errors import TrainingFailed
from cellstream.training.data import Window
from cellstream.training.recipe import Precision, Training


class Learner:
    """AdamW on a window at a time, the states carried from window to window.

    Args:
        model: What learns.
        training: How.
        precision: Of the forward and backward run; weights and moments are float32 in any case.
    """

    def __init__(self, model: FusedStack, training: Training, precision: Precision) -> None:
        self.model = model
        self.precision = precision
        self._gradient_norm_max = training.gradient_norm_max
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
        )
        self._states: States | None = None

    def learn(self, window: Window, learning_rate: float) -> float:
        """Update the weights once.

        Args:
            window: What to learn from.
            learning_rate: How far to step.

        Returns:
            The mean loss of the window before the update, in nats a token.

        Raises:
            TrainingFailed: The loss is not finite; the weights are as they were.
        """
        if window.fresh:
            self._states = None
        inputs, targets = torch.from_numpy(window.inputs), torch.from_numpy(window.targets)
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            trace = self.model(inputs, self._states)
            loss = nn.functional.nll_loss(trace.prediction.flatten(0, 1), targets.flatten())
        nats = loss.item()
        if not math.isfinite(nats):
            raise TrainingFailed(
                f"The loss became {nats}; a lower learning_rate or gradient_norm_max, or float32, may help."
            )
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it without annotations
        nn.utils.clip_grad_norm_(self.model.parameters(), self._gradient_norm_max)
        self._optimizer.step()
        # Truncated backpropagation: the states go on, the gradient ends here.
        self._states = {name: state.detach().float() for name, state in trace.states.items()}
        return nats
