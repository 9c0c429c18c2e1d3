"""The portable form of a model: `sequence.onnx`, ONNX's own LSTM, GRU or RNN operator over time.

Any runtime that knows standard ONNX runs it. Rows of one call may have different lengths, 0 among them. It
shows no gates, and its results differ from the step graph's in the last bits, because the operator sums in
another order; in exchange a long run of one row is several times as fast (row `fast-1` of the bench).

The operator wants its weights as [gates × units, width], gates in an order of its own. They are made of the
tensors of `weights.bin` by Split, Concat and Transpose in the graph, which a runtime does once, at load: so
nothing is stored twice. Only for tokens there is more to store. The table that the step graph looks its first
layer up in has that layer's whole product in it; the operator computes this product itself, from the
embedding (`folding.fold_input`).

Lengths are kept to at least 1 for the operator, and a row of length 0 keeps its states by a Where: ONNX says
nothing of length 0, and ONNX Runtime gives zeros for the states (its RNN, before April 2026, whatever stood
in memory: onnxruntime #28052).
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, TensorProto, helper

from cellstream.cells.config import StackConfig
from cellstream.export.equations import Nodes
from cellstream.export.folding import BLOCK_ORDER
from cellstream.export.forms import constants, float_value, input_value, output_name
from cellstream.repository.manifest import LENGTHS

OPERATOR_ORDER: dict[str, tuple[str, ...]] = {
    "rnn": ("candidate",),
    "lstm": ("input", "output", "forget", "candidate"),  # ONNX's i, o, f, c
    "gru": ("update", "reset", "candidate"),  # ONNX's z, r, h
}
"""The blocks of the operator's weights, top to bottom, as ONNX has them."""


def sequence_graph(config: StackConfig, references: Mapping[str, TensorProto]) -> GraphProto:
    """From input, lengths and states to predictions and states; beyond a row's length predictions are idle.

    Args:
        config: The network's sizes.
        references: To the tensors of `folding.fold` and `folding.fold_input`, by name.
    """
    layers, units, states = config.layers, config.hidden_size, config.states
    nodes = Nodes()
    nodes.add("Constant", [], "one", value=helper.make_tensor("", TensorProto.INT32, [1], [1]))
    nodes.add("Max", [LENGTHS, "one"], "lengths_from_one")
    before = {state: _by_layer(nodes, config, state) for state in states}
    after: dict[str, list[str]] = {state: [] for state in states}
    x: str = config.input
    if config.input == "tokens":
        x = nodes.add("Gather", ["embedding.weight", x], "embedded", axis=0)  # [time, batch, embedding]
    for layer in range(layers):
        of = f"layers.{layer}."
        found = nodes.add_many(
            config.cell.upper(),
            [x, *_operator_weights(nodes, config, layer), "lengths_from_one"]
            + [before[state][layer] for state in states],
            [of + "y", *(f"{of}{state}_next" for state in states)],
            hidden_size=units,
            **({"linear_before_reset": 1} if config.cell == "gru" else {}),  # PyTorch's equation for n
        )
        for state, value in zip(states, found[1:], strict=True):
            after[state].append(value)  # [1, batch, units]
        x = nodes.add("Squeeze", [found[0], nodes.constant("axis", 1)], of + "hidden_over_time")
    _add_head(nodes, config, x)
    _add_states(nodes, config, after)

    stored = [reference for name, reference in references.items() if name != "layers.0.table"]
    return helper.make_graph(
        nodes.made,
        "sequence",
        inputs=[
            input_value(config, config.input, "time", "batch"),
            helper.make_tensor_value_info(LENGTHS, TensorProto.INT32, ["batch"]),
            *(float_value(state, "batch", layers, units) for state in states),
        ],
        outputs=[
            float_value(output_name(config), "time", "batch", config.outputs_size),
            *(float_value(f"{state}_next", "batch", layers, units) for state in states),
        ],
        initializer=[*stored, *constants(nodes)],
    )


def _by_layer(nodes: Nodes, config: StackConfig, state: str) -> list[str]:
    """A state [batch, layers, units] as what the operators of the layers take, [1, batch, units] each."""
    layers_first = nodes.add("Transpose", [state], f"{state}_layers_first", perm=[1, 0, 2])
    names = [f"layers.{layer}.{state}" for layer in range(config.layers)]
    return list(nodes.split(layers_first, [1] * config.layers, names, axis=0))


def _operator_weights(nodes: Nodes, config: StackConfig, layer: int) -> list[str]:
    """W [1, gates × units, width], R [1, gates × units, units] and B [1, 2 × gates × units] of a layer."""
    of, units = f"layers.{layer}.", config.hidden_size
    rows = len(BLOCK_ORDER[config.cell]) * units
    apart = config.cell == "gru" or (layer == 0 and config.input == "tokens")
    if apart:  # what meets x and what meets h₋₁ are stored as two tensors
        state = "state_weight" if config.cell == "gru" else "weight"
        parts = [_in_operator_order(nodes, config, of + name) for name in ("input_weight", state)]
    else:  # or as one, x above h₋₁
        width = units if layer else config.outputs_size
        whole = _in_operator_order(nodes, config, of + "weight")
        parts = list(nodes.split(whole, [width, units], [of + "w_columns", of + "r_columns"], axis=0))
    bias = _in_operator_order(nodes, config, of + ("input_bias" if apart else "bias"))
    if config.cell == "gru":
        state_bias = _in_operator_order(nodes, config, of + "state_bias")
    else:
        state_bias = nodes.add("ConstantOfShape", [nodes.constant("rows", rows)], of + "no_state_bias")
    first = nodes.constant("axis", 0)
    turned = [
        nodes.add("Transpose", [part], of + name, perm=[1, 0])
        for part, name in zip(parts, ("w", "r"), strict=True)
    ]
    both = nodes.add("Concat", [bias, state_bias], of + "b", axis=0)
    return [nodes.add("Unsqueeze", [value, first], value + "_forward") for value in (*turned, both)]


def _in_operator_order(nodes: Nodes, config: StackConfig, value: str) -> str:
    """Permute the blocks of the last axis from the step graph's order (LSTM f i o g) to the operator's."""
    ours, theirs = BLOCK_ORDER[config.cell], OPERATOR_ORDER[config.cell]
    if ours == theirs:
        return value
    blocks = {gate: f"{value}.{gate}" for gate in ours}
    nodes.split(value, [config.hidden_size] * len(ours), list(blocks.values()), axis=-1)
    return nodes.add("Concat", [blocks[gate] for gate in theirs], value + ".ordered", axis=-1)


def _add_head(nodes: Nodes, config: StackConfig, top: str) -> None:
    """The predictions from the top layer's hidden states [time, batch, units]."""
    product = nodes.add("MatMul", [top, "head.weight"], "head_product")
    if config.input == "values":
        nodes.add("Add", [product, "head.bias"], output_name(config))
    else:
        logits = nodes.add("Add", [product, "head.bias"], "logits")
        nodes.add("LogSoftmax", [logits], output_name(config), axis=-1)


def _add_states(nodes: Nodes, config: StackConfig, after: Mapping[str, list[str]]) -> None:
    """The states after each row's last step, [batch, layers, units]; those before, where it has none."""
    stepped = nodes.add("Cast", [LENGTHS], "has_steps", to=TensorProto.BOOL)
    by_row = nodes.add("Unsqueeze", [stepped, nodes.constant("axis", 1, 2)], "row_has_steps")
    for state, layers in after.items():
        layers_first = nodes.add("Concat", layers, f"{state}_after_layers_first", axis=0)
        rows_first = nodes.add("Transpose", [layers_first], f"{state}_after", perm=[1, 0, 2])
        nodes.add("Where", [by_row, rows_first, state], f"{state}_next")
