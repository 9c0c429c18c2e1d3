"""The graphs that serve: `model.onnx`, a step, and `head.onnx`, from a state to its prediction.

The step graph is one step written out as equations (`equations.py`), inside an ONNX Scan over time: the
network unrolled through time, with log-softmax inside and the gates as outputs. Its inputs and outputs are
those of the manifest. It is written with `onnx.helper` and not by an exporter of PyTorch, because those bake
the number of steps in without a word, and have written the GRU with a wrong equation.

Copying the gates out costs 3 to 22 % of a step (LSTM 2 × 256, B 1 to 64, T 1 to 8), so a switch,
`with_gates`, says whether they are wanted. Switched off it costs about 4 µs a call: 2 to 3 % at B = 1, lost
in the noise at B = 64.

Bits matter here. Every product has a constant of the main graph on its right side, which ONNX Runtime packs
once at load: so a row's result does not depend on the rows beside it (`proof.py` sees to it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import GraphProto, TensorProto, ValueInfoProto, helper

from cellstream.cells.config import StackConfig
from cellstream.export.equations import CELLS, Layer, Nodes
from cellstream.export.forms import constants, float_value, input_value, output_name

GATES_SWITCH = "with_gates"
"""The step graph's boolean scalar input: whether the gates are wanted. Only where the cell shows gates."""


def step_graph(
    config: StackConfig, references: Sequence[TensorProto], in_8_bits: Mapping[str, tuple[int, int]]
) -> GraphProto:
    """From input and states to predictions, states and gates, over any number of steps.

    Args:
        config: The network's sizes.
        references: To the tensors of `folding.fold`, or what `quantizing.quantize` made of them.
        in_8_bits: The weights that it quantized, by name, with their shape before.
    """
    layers, units, states, gates = config.layers, config.hidden_size, config.states, config.gates
    nodes = Nodes(in_8_bits=in_8_bits)
    flat = nodes.constant("flat_state", 0, layers * units)  # 0: as it was
    by_layer = nodes.constant("state_by_layer", 0, layers, units)
    before = [nodes.add("Reshape", [state, flat], f"{state}_flat") for state in states]
    after = [f"{state}_next_flat" for state in states]
    nodes.add_many(
        "Scan",
        [*before, config.input],
        [*after, output_name(config), *(["gates_flat"] if gates else [])],
        num_scan_inputs=1,
        body=_scan_body(config, nodes),
    )
    for state in states:
        nodes.add("Reshape", [f"{state}_next_flat", by_layer], f"{state}_next")
    if gates:
        _add_gates(nodes, config)

    state_shape = ("batch", layers, units)
    return helper.make_graph(
        nodes.made,
        "step",
        inputs=[
            input_value(config, config.input, "time", "batch"),
            *(float_value(state, *state_shape) for state in states),
            *([helper.make_tensor_value_info(GATES_SWITCH, TensorProto.BOOL, [])] if gates else []),
        ],
        outputs=[
            float_value(output_name(config), "time", "batch", config.outputs_size),
            *(float_value(f"{state}_next", *state_shape) for state in states),
            *(float_value(gate, "time_shown", "batch_shown", layers, units) for gate in gates),
        ],
        initializer=[*references, *constants(nodes)],
    )


def _scan_body(config: StackConfig, around: Nodes) -> GraphProto:
    """One step: flat states and one input in; flat states, prediction and gates out, gates by layer."""
    layers, units, states = config.layers, config.hidden_size, config.states
    nodes = Nodes(constants=around.constants, in_8_bits=around.in_8_bits)
    before = {
        state: nodes.split(
            f"{state}_before", [units] * layers, [f"layers.{n}.{state}" for n in range(layers)]
        )
        for state in states
    }
    x = "x"
    stepped = []
    for number in range(layers):
        layer = Layer(
            prefix=f"layers.{number}.",
            units=units,
            x=x,
            x_is_token=config.input == "tokens" and number == 0,
            states={state: before[state][number] for state in states},
        )
        stepped.append(CELLS[config.cell](nodes, layer))
        x = stepped[-1].states["hidden"]
    for state in states:
        nodes.add("Concat", [layer.states[state] for layer in stepped], f"{state}_after", axis=1)
    _add_head(nodes, config, x, "prediction_of_step")

    flat = ("batch", layers * units)
    outputs = [
        *(float_value(f"{state}_after", *flat) for state in states),
        float_value("prediction_of_step", "batch", config.outputs_size),
    ]
    if config.gates:
        columns = layers * len(config.gates) * units
        wanted = Nodes()
        wanted.add("Concat", [name for layer in stepped for name in layer.gates], "gates_wanted", axis=1)
        _add_if_wanted(
            nodes,
            wanted,
            then=[float_value("gates_wanted", "batch", columns)],
            otherwise=[float_value("gates_unwanted", 0, columns)],
            outputs=["gates_of_step"],
        )
        outputs.append(float_value("gates_of_step", "batch_shown", columns))
    return helper.make_graph(
        nodes.made,
        "one_step",
        inputs=[
            *(float_value(f"{state}_before", *flat) for state in states),
            input_value(config, "x", "batch"),
        ],
        outputs=outputs,
    )


def _add_gates(nodes: Nodes, config: StackConfig) -> None:
    """From the gates of all steps, [time, batch, layers × gates × units], to an output for each gate."""
    layers, units, gates = config.layers, config.hidden_size, config.gates
    wanted = Nodes(constants=nodes.constants)
    by_layer = wanted.constant("gates_by_layer", 0, 0, layers, len(gates) * units)
    wanted.add("Reshape", ["gates_flat", by_layer], "gates_by_layer")
    wanted.split("gates_by_layer", [units] * len(gates), [f"{gate}_wanted" for gate in gates], axis=3)
    _add_if_wanted(
        nodes,
        wanted,
        then=[float_value(f"{gate}_wanted", "time", "batch", layers, units) for gate in gates],
        otherwise=[float_value(f"{gate}_unwanted", 0, 0, layers, units) for gate in gates],
        outputs=gates,
    )


def _add_if_wanted(
    nodes: Nodes,
    wanted: Nodes,
    then: Sequence[ValueInfoProto],
    otherwise: Sequence[ValueInfoProto],
    outputs: Sequence[str],
) -> None:
    """Run these nodes where the gates are wanted, else give empty tensors of the shapes in `otherwise`."""
    empty = Nodes()
    for value in otherwise:
        shape = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        empty.add("Constant", [], value.name, value=helper.make_tensor("", TensorProto.FLOAT, shape, []))
    nodes.add_many(
        "If",
        [GATES_SWITCH],
        outputs,
        then_branch=helper.make_graph(wanted.made, "gates_wanted", inputs=[], outputs=then),
        else_branch=helper.make_graph(empty.made, "gates_unwanted", inputs=[], outputs=otherwise),
    )


def head_graph(
    config: StackConfig, references: Sequence[TensorProto], in_8_bits: Mapping[str, tuple[int, int]]
) -> GraphProto:
    """From a state alone to the prediction that its step gave: the same nodes on the same weights.

    Args:
        config: The network's sizes.
        references: To the head's weight and bias.
        in_8_bits: As of the step graph.
    """
    layers, units = config.layers, config.hidden_size
    nodes = Nodes(in_8_bits=in_8_bits)
    flat = nodes.add("Reshape", ["hidden", nodes.constant("flat_state", 0, layers * units)], "hidden_flat")
    hidden = nodes.split(flat, [units] * layers, [f"layers.{number}.hidden" for number in range(layers)])
    _add_head(nodes, config, hidden[-1], output_name(config))
    return helper.make_graph(
        nodes.made,
        "head",
        inputs=[float_value("hidden", "batch", layers, units)],
        outputs=[float_value(output_name(config), "batch", config.outputs_size)],
        initializer=[*references, *constants(nodes)],
    )


def _add_head(nodes: Nodes, config: StackConfig, top: str, output: str) -> None:
    """The prediction from the top layer's hidden state [batch, units]."""
    if config.input == "values":
        nodes.affine(top, "head.weight", "head.bias", output)
    else:
        logits = nodes.affine(top, "head.weight", "head.bias", "logits")
        nodes.add("LogSoftmax", [logits], output, axis=-1)
