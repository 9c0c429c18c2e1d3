"""The whole network: embedding or linear input → layers, dropout between them → head.

Two forms of the same function with the same weights. `Stack` is the equations, step by step, and shows its
gates: read it, and compare exports with it. `FusedStack` runs PyTorch's own recurrence, several times faster:
train it. `numpy_weights` and `load_weights` carry weights from either to either, and to export.

Time comes first: inputs are token ids [time, batch] or frames [time, batch, features]. States go in and come
out by name, each [batch, layers, units], as a served graph has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cellstream.cells.checkpoint import Weights, check_weights
from cellstream.cells.config import GATE_ORDER, StackConfig
from cellstream.cells.dropout import Dropout, hide, hide_rows, hide_weights
from cellstream.cells.gru import GRUCell
from cellstream.cells.lstm import LSTMCell
from cellstream.cells.rnn import RNNCell

States = dict[str, Tensor]
"""`hidden` and, for an LSTM, `cell`: each [batch, layers, units]."""

_CELLS = {"rnn": RNNCell, "lstm": LSTMCell, "gru": GRUCell}
_FUSED: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
_RUNS: dict[str, Callable[..., Any]] = {"rnn": torch.rnn_tanh, "lstm": torch.lstm, "gru": torch.gru}
"""What those modules call: outputs of all steps, and each state after the last."""


class Trace(NamedTuple):
    """What a run over some steps gives.

    Attributes:
        prediction: After each step: log-probabilities of the next token (natural logarithm)
            [time, batch, vocabulary], or the next frame [time, batch, features].
        states: The states after the last step.
        gates: Each gate by name, [time, batch, layers, units].
    """

    prediction: Tensor
    states: States
    gates: dict[str, Tensor]


class _Ends(nn.Module):
    """Input and head, which both forms share."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config = config
        if config.input == "tokens":
            self.embedding = nn.Embedding(config.outputs_size, config.embedding_size)
        else:
            self.input = nn.Linear(config.outputs_size, config.embedding_size)
        self.head = nn.Linear(config.hidden_size, config.outputs_size)

    def initial(self, batch: int) -> States:
        """The states before the first step: zeros."""
        shape = (batch, self.config.layers, self.config.hidden_size)
        return {name: self.head.weight.new_zeros(shape) for name in self.config.states}

    def read(self, inputs: Tensor) -> Tensor:
        """Make of inputs what the first layer sees, [time, batch, embedding]."""
        x: Tensor = self.embedding(inputs) if self.config.input == "tokens" else self.input(inputs)
        return x

    def predict(self, h: Tensor) -> Tensor:
        """Predict from the last layer's hidden state, [..., units] → [..., outputs]."""
        y: Tensor = self.head(h)
        return nn.functional.log_softmax(y, dim=-1) if self.config.input == "tokens" else y

    def weights(self) -> dict[str, Tensor]:
        """Every weight by the names of `config.py`; the tensors themselves, not copies."""
        return {_common_name(name): weight.data for name, weight in self.named_parameters()}


class Stack(_Ends):
    """The network as equations.

    Args:
        config: Its sizes.
    """

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config)
        widths = [config.embedding_size] + [config.hidden_size] * (config.layers - 1)
        self.layers = nn.ModuleList(_CELLS[config.cell](width, config.hidden_size) for width in widths)

    def forward(self, inputs: Tensor, states: States | None = None) -> Trace:
        """Run over some steps.

        Args:
            inputs: Token ids [time, batch], or frames [time, batch, features].
            states: The states before the first step; None: zeros.
        """
        states = states or self.initial(inputs.shape[1])
        kind = type(self.layers[0].initial(0))  # type: ignore[operator]  # a Cell, behind ModuleList's Module
        layer_states = [
            kind(*(states[name][:, layer] for name in self.config.states))
            for layer in range(len(self.layers))
        ]
        predictions: list[Tensor] = []
        gates: dict[str, list[Tensor]] = {name: [] for name in self.config.gates}
        for x in self.read(inputs):  # x: [batch, embedding]
            shown: list[dict[str, Tensor]] = []
            for layer, cell in enumerate(self.layers):
                if layer:
                    x = nn.functional.dropout(x, self.config.dropout, self.training)
                layer_states[layer], layer_gates = cell(x, layer_states[layer])
                shown.append(layer_gates)
                x = layer_states[layer].h
            predictions.append(self.predict(x))
            for name, steps in gates.items():
                steps.append(torch.stack([one[name] for one in shown], dim=1))  # [batch, layers, units]
        return Trace(
            torch.stack(predictions),
            {
                name: torch.stack([state[place] for state in layer_states], dim=1)
                for place, name in enumerate(self.config.states)
            },
            {name: torch.stack(steps) for name, steps in gates.items()},
        )


class FusedStack(_Ends):
    """The network on PyTorch's own recurrence, for training; it shows no gates.

    Args:
        config: Its sizes.
        dropout: What is hidden while it learns, beside the share between the layers in `config`.
        forget_bias: Added to the forget gates' bias of an LSTM at the beginning: 1 keeps the cell state
            until something else has been learned (Gers et al., 2000; Jozefowicz et al., 2015).

    Raises:
        ValueError: An embedding is to be hidden where there is none.
    """

    def __init__(
        self, config: StackConfig, dropout: Dropout | None = None, *, forget_bias: float = 0.0
    ) -> None:
        super().__init__(config)
        self.dropout = dropout or Dropout()
        if self.dropout.embedding and config.input != "tokens":
            raise ValueError("embedding: expected 0 for an input of values, which has no embedding")
        self.recurrence = _FUSED[config.cell](config.embedding_size, config.hidden_size, config.layers)
        if forget_bias and "forget" in GATE_ORDER[config.cell]:
            block, units = GATE_ORDER[config.cell].index("forget"), config.hidden_size
            with torch.no_grad():
                for layer in range(config.layers):
                    bias = getattr(self.recurrence, f"bias_hh_l{layer}")
                    bias[block * units : (block + 1) * units] += forget_bias

    def forward(self, inputs: Tensor, states: States | None = None) -> Trace:
        """Run over some steps, as `Stack.forward` does; the gates are empty.

        Layer by layer, which costs nothing: so PyTorch runs them too, and something can be hidden between.
        """
        states = states or self.initial(inputs.shape[1])
        names, learns, dropout = self.config.states, self.training, self.dropout
        run = _RUNS[self.config.cell]
        after: dict[str, list[Tensor]] = {name: [] for name in names}
        x = self.read(inputs)  # [time, batch, embedding]
        for layer, (weight_ih, weight_hh, *biases) in enumerate(self.recurrence.all_weights):
            recurrent: Tensor = weight_hh
            if learns:
                x = hide(x, self.config.dropout if layer else 0.0, locked=dropout.locked)
                recurrent = hide_weights(weight_hh, dropout.recurrent)
            before = [states[name][:, layer].unsqueeze(0).contiguous() for name in names]  # [1, batch, units]
            x, *layer_after = run(
                x,
                before if len(before) > 1 else before[0],
                [weight_ih, recurrent, *biases],
                *(True, 1, 0.0, learns),  # with biases, one layer, no dropout in it, to learn from
                *(False, False),  # not in both directions, batch not first
            )
            for name, state in zip(names, layer_after, strict=True):
                after[name].append(state)
        if learns:
            x = hide(x, dropout.output, locked=dropout.locked)
        return Trace(
            self.predict(x), {name: torch.cat(layers).transpose(0, 1) for name, layers in after.items()}, {}
        )

    def read(self, inputs: Tensor) -> Tensor:
        """Make of inputs what the first layer sees, some tokens hidden while it learns."""
        if self.training and self.dropout.embedding:
            return nn.functional.embedding(inputs, hide_rows(self.embedding.weight, self.dropout.embedding))
        return super().read(inputs)


def _common_name(name: str) -> str:
    """`recurrence.weight_ih_l0`, as PyTorch calls it, is `layers.0.weight_ih`."""
    if not name.startswith("recurrence."):
        return name
    weight, layer = name.removeprefix("recurrence.").rsplit("_l", 1)
    return f"layers.{layer}.{weight}"


def numpy_weights(model: Stack | FusedStack) -> Weights:
    """Copy a model's weights out, by the names of `config.py`, in its order."""
    weights = model.weights()
    return {
        name: weights[name].to("cpu", torch.float32).numpy().copy() for name in model.config.weight_shapes()
    }


def load_weights(model: Stack | FusedStack, weights: Weights) -> None:
    """Copy weights into a model.

    Raises:
        CheckpointInvalid: They are not the weights of the model's configuration.
    """
    check_weights(model.config, weights, where="weights")
    for name, weight in model.weights().items():
        weight.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))
