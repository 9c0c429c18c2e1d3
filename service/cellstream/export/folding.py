"""From PyTorch's weights to the tensors of the graph: folded, fused, in the graph's order.

What does not depend on the state is multiplied out once, here, and not at every step: the embedding (or the
linear input) disappears into the first layer, and a token's whole share of the first layer's gates becomes a
row of a table. Products are taken in float64 and rounded once. This module knows arrays, not ONNX.

The tensors, where G is the number of gates, U that of units, and `width` what a layer sees (the features in
layer 0 of values, else the units of the layer below):

    layers.0.table           [vocabulary, G × U]    tokens: embedding · W_ihᵀ + b
    layers.{l}.weight        [width + U, G × U]     RNN, LSTM: W_ihᵀ above W_hhᵀ; layer 0 of tokens: W_hhᵀ
    layers.{l}.bias          [G × U]                b; not in layer 0 of tokens
    layers.{l}.input_weight  [width, 3 × U]         GRU: W_ihᵀ; not in layer 0 of tokens
    layers.{l}.input_bias    [3 × U]                GRU: b; not in layer 0 of tokens
    layers.{l}.state_weight  [U, 3 × U]             GRU: W_hhᵀ
    layers.{l}.state_bias    [3 × U]                GRU: c
    head.weight              [U, outputs]
    head.bias                [outputs]

and, only for the portable form of a model of tokens, whose first layer computes what the table holds:

    embedding.weight         [vocabulary, embedding]  as training has it
    layers.0.input_weight    [embedding, G × U]       W_ihᵀ
    layers.0.input_bias      [G × U]                  b

RNN and LSTM: b = b_ih + b_hh. The GRU's reset gate stands between the two biases of its candidate n, so there
b is b_ih + b_hh for r and z and b_ih for n; c is 0 for r and z and b_hh for n.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellstream.cells.checkpoint import Weights, check_weights
from cellstream.cells.config import GATE_ORDER, StackConfig
from cellstream.errors import CheckpointInvalid

BLOCK_ORDER: dict[str, tuple[str, ...]] = {
    "rnn": ("candidate",),
    "lstm": ("forget", "input", "output", "candidate"),  # what σ takes stands together
    "gru": ("reset", "update", "candidate"),
}
"""The blocks of the graph's gate columns, left to right; `_in_graph_order` makes them of PyTorch's."""


def fold(config: StackConfig, weights: Weights) -> dict[str, NDArray[np.float32]]:
    """Make the graph's tensors, in the order in which they are written.

    Args:
        config: What the weights are the weights of.
        weights: PyTorch's, by the names of `cells.config`: all of them, and nothing else.

    Raises:
        CheckpointInvalid: A weight is missing, unknown, of another shape or type, or not finite.
    """
    check_weights(config, weights, where="weights")
    for name, weight in weights.items():
        if not np.isfinite(weight).all():
            raise CheckpointInvalid(f"weights: {name}: expected finite numbers, found NaN or an infinity.")
    folded: dict[str, NDArray[np.float64]] = {}
    for layer in range(config.layers):
        folded |= _fold_layer(config, weights, layer)
    folded["head.weight"] = _wide(weights["head.weight"]).T
    folded["head.bias"] = _wide(weights["head.bias"])
    return {name: np.ascontiguousarray(tensor, dtype=np.float32) for name, tensor in folded.items()}


def fold_input(config: StackConfig, weights: Weights) -> dict[str, NDArray[np.float32]]:
    """Make what the portable form of a model of tokens has in the place of the table; nothing for values."""
    if config.input == "values":
        return {}
    weight_ih, _, bias, _ = _in_parts(config, weights, layer=0)
    return {"embedding.weight": weights["embedding.weight"]} | {
        f"layers.0.{name}": np.ascontiguousarray(tensor, dtype=np.float32)
        for name, tensor in (("input_weight", weight_ih.T), ("input_bias", bias))
    }


def _fold_layer(config: StackConfig, weights: Weights, layer: int) -> dict[str, NDArray[np.float64]]:
    weight_ih, weight_hh, bias, state_bias = _in_parts(config, weights, layer)
    folded: dict[str, NDArray[np.float64]] = {}
    takes_token = layer == 0 and config.input == "tokens"
    if takes_token:
        folded["table"] = _wide(weights["embedding.weight"]) @ weight_ih.T + bias
    elif layer == 0:
        bias = weight_ih @ _wide(weights["input.bias"]) + bias
        weight_ih = weight_ih @ _wide(weights["input.weight"])

    if config.cell == "gru":
        if not takes_token:
            folded |= {"input_weight": weight_ih.T, "input_bias": bias}
        folded |= {"state_weight": weight_hh.T, "state_bias": state_bias}
    elif takes_token:
        folded["weight"] = weight_hh.T
    else:
        folded |= {"weight": np.concatenate([weight_ih, weight_hh], axis=1).T, "bias": bias}
    return {f"layers.{layer}.{name}": tensor for name, tensor in folded.items()}


def _in_parts(config: StackConfig, weights: Weights, layer: int) -> list[NDArray[np.float64]]:
    """W_ih and W_hh [G × U, width], b and c [G × U] of a layer, in the graph's order."""
    weight_ih, weight_hh, bias_ih, bias_hh = (
        _in_graph_order(config, weights[f"layers.{layer}.{name}"])
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    state_bias = np.zeros_like(bias_hh)
    if config.cell == "gru":  # what the reset gate multiplies stays apart from what it does not
        state_bias[-config.hidden_size :] = bias_hh[-config.hidden_size :]
    return [weight_ih, weight_hh, bias_ih + bias_hh - state_bias, state_bias]


def _in_graph_order(config: StackConfig, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Permute the gate blocks from PyTorch's order (LSTM i f g o) to the graph's (f i o g), as float64."""
    blocks = dict(
        zip(GATE_ORDER[config.cell], np.split(_wide(rows), len(GATE_ORDER[config.cell])), strict=True)
    )
    return np.concatenate([blocks[gate] for gate in BLOCK_ORDER[config.cell]])


def _wide(tensor: NDArray[np.float32]) -> NDArray[np.float64]:
    return tensor.astype(np.float64)
