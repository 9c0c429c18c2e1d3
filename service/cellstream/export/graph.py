"""The graphs that serve: `model.onnx`, `head.onnx` and the `weights.bin` that both share.

The step graph is one step written out as equations (`equations.py`), inside an ONNX Scan over time: the
network unrolled through time, with log-softmax inside and the gates as outputs. Its inputs and outputs are
those of the manifest. It is written with `onnx.helper` and not by an exporter of PyTorch, because those bake
the number of steps in without a word, and have written the GRU with a wrong equation.

Copying the gates out costs 3 to 22 % of a step (LSTM 2 × 256, B 1 to 64, T 1 to 8), so a switch,
`with_gates`, says whether they are wanted. Switched off it costs about 4 µs a call: 2 to 3 % at B = 1, lost
in the noise at B = 64.

Bits matter here. Every product is a Gemm whose right side is a constant of the main graph, which ONNX Runtime
packs once at load: so a row's result does not depend on the rows beside it (`proof.py` sees to it).

The bytes written are the same for the same weights: no time, path or machine is in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from cellstream.cells.checkpoint import Weights
from cellstream.cells.config import StackConfig
from cellstream.export.equations import CELLS, Layer, Nodes
from cellstream.export.folding import fold

STEP_FILE, HEAD_FILE, WEIGHTS_FILE = "model.onnx", "head.onnx", "weights.bin"

GATES_SWITCH = "with_gates"
"""The step graph's boolean scalar input: whether the gates are wanted. Only where the cell shows gates."""

OPSET, IR_VERSION = 18, 8
"""The oldest that have what we need, so that old runtimes read our models too."""

_ALIGNMENT_BYTES = 64
"""Where a tensor may begin in `weights.bin`: at a cache line."""


@dataclass(frozen=True, slots=True)
class Graphs:
    """What `build` made: the bytes of the three files."""

    step: bytes
    head: bytes
    weights: bytes

    def write(self, directory: Path) -> None:
        """Write `model.onnx`, `head.onnx` and `weights.bin` into a directory that exists."""
        (directory / STEP_FILE).write_bytes(self.step)
        (directory / HEAD_FILE).write_bytes(self.head)
        (directory / WEIGHTS_FILE).write_bytes(self.weights)


def build(config: StackConfig, weights: Weights) -> Graphs:
    """Build both graphs.

    Args:
        config: What the weights are the weights of.
        weights: PyTorch's weights by the names of `cells.config`, float32.

    Raises:
        CheckpointInvalid: The weights are not those of this configuration.
    """
    contents, references = _pack(fold(config, weights))
    return Graphs(
        step=_serialize(_step_graph(config, list(references.values()))),
        head=_serialize(_head_graph(config, [references["head.weight"], references["head.bias"]])),
        weights=contents,
    )


def output_name(config: StackConfig) -> str:
    """Name the graph's prediction: `log_probabilities` of the next token, or the next frame, `prediction`."""
    return "log_probabilities" if config.input == "tokens" else "prediction"


# ---------------------------------------------------------------- the step graph


def _step_graph(config: StackConfig, references: Sequence[TensorProto]) -> GraphProto:
    layers, units, states, gates = config.layers, config.hidden_size, config.states, config.gates
    nodes = Nodes()
    flat = nodes.constant("flat_state", 0, layers * units)  # 0: as it was
    by_layer = nodes.constant("state_by_layer", 0, layers, units)
    before = [nodes.add("Reshape", [state, flat], f"{state}_flat") for state in states]
    after = [f"{state}_next_flat" for state in states]
    nodes.add_many(
        "Scan",
        [*before, config.input],
        [*after, output_name(config), *(["gates_flat"] if gates else [])],
        num_scan_inputs=1,
        body=_scan_body(config, nodes.constants),
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
            _input(config, config.input, "time", "batch"),
            *(_float(state, *state_shape) for state in states),
            *([helper.make_tensor_value_info(GATES_SWITCH, TensorProto.BOOL, [])] if gates else []),
        ],
        outputs=[
            _float(output_name(config), "time", "batch", config.outputs_size),
            *(_float(f"{state}_next", *state_shape) for state in states),
            *(_float(gate, "time_shown", "batch_shown", layers, units) for gate in gates),
        ],
        initializer=[*references, *_constants(nodes)],
    )


def _scan_body(config: StackConfig, constants: dict[str, tuple[int, ...]]) -> GraphProto:
    """One step: flat states and one input in; flat states, prediction and gates out, gates by layer."""
    layers, units, states = config.layers, config.hidden_size, config.states
    nodes = Nodes(constants=constants)
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
        *(_float(f"{state}_after", *flat) for state in states),
        _float("prediction_of_step", "batch", config.outputs_size),
    ]
    if config.gates:
        columns = layers * len(config.gates) * units
        wanted = Nodes()
        wanted.add("Concat", [name for layer in stepped for name in layer.gates], "gates_wanted", axis=1)
        _add_if_wanted(
            nodes,
            wanted,
            then=[_float("gates_wanted", "batch", columns)],
            otherwise=[_float("gates_unwanted", 0, columns)],
            outputs=["gates_of_step"],
        )
        outputs.append(_float("gates_of_step", "batch_shown", columns))
    return helper.make_graph(
        nodes.made,
        "one_step",
        inputs=[*(_float(f"{state}_before", *flat) for state in states), _input(config, "x", "batch")],
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
        then=[_float(f"{gate}_wanted", "time", "batch", layers, units) for gate in gates],
        otherwise=[_float(f"{gate}_unwanted", 0, 0, layers, units) for gate in gates],
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


# ---------------------------------------------------------------- the head graph


def _head_graph(config: StackConfig, references: Sequence[TensorProto]) -> GraphProto:
    """From a state alone to the prediction that its step gave: the same nodes on the same weights."""
    layers, units = config.layers, config.hidden_size
    nodes = Nodes()
    flat = nodes.add("Reshape", ["hidden", nodes.constant("flat_state", 0, layers * units)], "hidden_flat")
    hidden = nodes.split(flat, [units] * layers, [f"layers.{number}.hidden" for number in range(layers)])
    _add_head(nodes, config, hidden[-1], output_name(config))
    return helper.make_graph(
        nodes.made,
        "head",
        inputs=[_float("hidden", "batch", layers, units)],
        outputs=[_float(output_name(config), "batch", config.outputs_size)],
        initializer=[*references, *_constants(nodes)],
    )


def _add_head(nodes: Nodes, config: StackConfig, top: str, output: str) -> None:
    """The prediction from the top layer's hidden state [batch, units]."""
    if config.input == "values":
        nodes.add("Gemm", [top, "head.weight", "head.bias"], output)
    else:
        logits = nodes.add("Gemm", [top, "head.weight", "head.bias"], "logits")
        nodes.add("LogSoftmax", [logits], output, axis=-1)


# ---------------------------------------------------------------- ONNX's forms


def _input(config: StackConfig, name: str, *axes: str) -> ValueInfoProto:
    if config.input == "tokens":
        return helper.make_tensor_value_info(name, TensorProto.INT64, axes)
    return _float(name, *axes, config.outputs_size)


def _float(name: str, *shape: str | int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _constants(nodes: Nodes) -> list[TensorProto]:
    return [
        helper.make_tensor(name, TensorProto.INT64, [len(numbers)], numbers)
        for name, numbers in nodes.constants.items()
    ]


def _pack(tensors: dict[str, NDArray[np.float32]]) -> tuple[bytes, dict[str, TensorProto]]:
    """Lay the tensors out one after the other, and make a reference to each for the graphs."""
    contents = bytearray()
    references = {}
    for name, tensor in tensors.items():
        contents += bytes(-len(contents) % _ALIGNMENT_BYTES)
        stored = tensor.astype("<f4").tobytes()
        reference = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=tensor.shape)
        reference.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS_FILE), ("offset", len(contents)), ("length", len(stored))):
            reference.external_data.add(key=key, value=str(value))
        references[name] = reference
        contents += stored
    return bytes(contents), references


def _serialize(graph: GraphProto) -> bytes:
    model: ModelProto = helper.make_model(
        graph,
        producer_name="cellstream",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    return model.SerializeToString(deterministic=True)
