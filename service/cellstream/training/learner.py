"""One update of the weights from one window of text."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import nn

from cellstream.cells.stack import FusedStack, States
from cellstream.errors import TrainingFailed
from cellstream.training.data import Window
from cellstream.training.muon import Muon
from cellstream.training.recipe import Precision, Training

_ADVICE = "a lower learning_rate or gradient_norm_max, or float32, may help."


class Update(NamedTuple):
    """What an update shows.

    Attributes:
        loss: Mean surprise of the window's targets before the update, in nats a token; without smoothing.
        gradient_norm: Before it was clipped.
    """

    loss: float
    gradient_norm: float


class Learner:
    """One optimiser's step for each window, the states carried from window to window.

    Where the recipe says `averaging`, what is measured and kept is not the weights that learn but their
    exponential moving average (Polyak & Juditsky 1992). Of n updates it takes in the last by at least
    9 / (10 + n), so that the beginning is soon forgotten.

    AdamW (Loshchilov & Hutter 2019) for every weight; or, where the recipe says `muon`, Muon for the matrices
    of the recurrence and AdamW for the embedding, the biases and the head; one learning rate serves both.

    Args:
        model: What learns.
        training: How.
        precision: Of the forward and backward run; weights and moments are float32 in any case.
    """

    def __init__(self, model: FusedStack, training: Training, precision: Precision) -> None:
        self.model = model
        self.precision = precision
        self._gradient_norm_max = training.gradient_norm_max
        self._optimizers = _optimizers(model, training)
        self._states: States | None = None
        self._label_smoothing, self._averaging = training.label_smoothing, training.averaging
        self._average = copy.deepcopy(model).eval().requires_grad_(False) if training.averaging else None
        self._averaged = 0

    def learn(self, window: Window, learning_rate: float) -> Update:
        """Update the weights once.

        Args:
            window: What to learn from.
            learning_rate: How far to step.

        Returns:
            The loss, and how long the gradient was.

        Raises:
            TrainingFailed: The loss or its gradient is not finite; the weights are as they were.
        """
        if window.fresh:
            self._states = None
        device = self.model.head.weight.device
        inputs, targets = (torch.from_numpy(ids).to(device) for ids in (window.inputs, window.targets))
        self.model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            trace = self.model(inputs, self._states)
            told = nn.functional.nll_loss(trace.prediction.flatten(0, 1), targets.flatten())
        nats = told.item()
        loss = told
        if self._label_smoothing:
            # A share of the target goes to all tokens alike (Szegedy et al. 2016).
            loss = told + self._label_smoothing * (-trace.prediction.mean() - told)
        if not math.isfinite(loss.item()):
            raise TrainingFailed(f"The loss became {loss.item()}; {_ADVICE}")
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it without annotations
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._gradient_norm_max).item()
        if not math.isfinite(norm):  # the loss can be finite where its gradient is not
            raise TrainingFailed(f"The gradient became {norm}; {_ADVICE}")
        for optimizer in self._optimizers:
            optimizer.step()
        self._take_average()
        # Truncated backpropagation: the states go on, the gradient ends here.
        self._states = {name: state.detach().float() for name, state in trace.states.items()}
        return Update(nats, norm)

    @property
    def kept_model(self) -> FusedStack:
        """What is measured and kept: the average of what learns, or what learns itself."""
        return self.model if self._average is None else self._average

    def saved(self) -> dict[str, Any]:
        """Give all that the next update depends on, as tensors and plain values; not copies."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "states": self._states,
            "average": None if self._average is None else self._average.state_dict(),
            "averaged": self._averaged,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Stand where `saved` was taken."""
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self._optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        device = self.model.head.weight.device
        states = saved["states"]
        self._states = states and {name: state.to(device) for name, state in states.items()}
        if self._average is not None:
            self._average.load_state_dict(saved["average"])
        self._averaged = saved["averaged"]

    def _take_average(self) -> None:
        """Move the average towards the weights."""
        if self._average is None:
            return
        self._averaged += 1
        decay = min(self._averaging, (1 + self._averaged) / (10 + self._averaged))
        with torch.no_grad():
            for average, weight in zip(self._average.parameters(), self.model.parameters(), strict=True):
                average.lerp_(weight, 1 - decay)


def _optimizers(model: FusedStack, training: Training) -> list[torch.optim.Optimizer]:
    """Share the weights out among optimisers."""
    rate, decay = training.learning_rate, training.weight_decay
    matrices = [weight for weight in model.recurrence.parameters() if weight.ndim == 2]
    if training.optimizer == "adamw":
        matrices = []
    taken = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in taken]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=rate, weight_decay=decay, fused=True)
    ]
    if matrices:
        optimizers.append(Muon(matrices, lr=rate, weight_decay=decay))
    return optimizers
