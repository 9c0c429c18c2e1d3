"""The graphs that serve: `model.onnx`, `head.onnx` and the `weights.bin` that both share.

The step graph is one step written out as equations (`equations.py`), inside an ONNX Scan over time: the
network unrolled through time, with log-softmax inside and the gates as outputs. Its inputs and outputs are
those of the manifest. It is written with `onnx.helper` and not by an exporter of PyTorch, because those bake
the number of steps in without a word, and have written the GRU with a wrong equation.

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

from cellstream.cells.config import StackConfig
from cellstream.export.equations import CELLS, Layer, Nodes
from cellstream.export.folding import Weights, fold

MODEL_FILE, HEAD_FILE, WEIGHTS_FILE = "model.onnx", "head.onnx", "weights.bin"

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
        (directory / MODEL_FILE).write_bytes(self.step)
        (directory / HEAD_FILE).write_bytes(self.head)
        (directory / WEIGHTS_FILE).write_bytes(self.weights)


def build(config: StackConfig, weights: Weights) -> Graphs:
    """Build both graphs.

    Args:
        config: What the weights are the weights of.
        weights: PyTorch's weights by the names of `cells.config`, float32.

    Raises:
        ValueError: The weights are not those of this configuration.
    """
    tensors = fold(config, weights)
    contents, references = _pack(tensors)
    return Graphs(
        step=_serialize(_step_graph(config, references)),
        head=_serialize(_head_graph(config, [references["head.weight"], references["head.bias"]])),
        weights=contents,
    )


def input_name(config: StackConfig) -> str:
    """Name the graph's input: `tokens` or `values`."""
    return config.input


def output_name(config: StackConfig) -> str:
    """Name the graph's prediction: `log_probabilities` of the next token, or the next frame, `prediction`."""
    return "log_probabilities" if config.input == "tokens" else "prediction"


def _step_graph(config: StackConfig, references: dict[str, TensorProto]) -> GraphProto:
    layers, units, states, gates = config.layers, config.hidden_size, config.states, config.gates
    body, constants = _scan_body(config)
    nodes = Nodes(constants=constants)
    flat = nodes.constant("flat_state", 0, layers * units)  # 0: as it was
    by_layer = nodes.constant("state_by_layer", 0, layers, units)
    nodes.add_many(
        "Scan",
        [*(nodes.add("Reshape", [state, flat], f"{state}_flat") for state in states), input_name(config)],
        [
            *(f"{state}_next_flat" for state in states),
            output_name(config),
            *(f"{gate}_flat" for gate in gates),
        ],
        num_scan_inputs=1,
        body=body,
    )
    for state in states:
        nodes.add("Reshape", [f"{state}_next_flat", by_layer], f"{state}_next")
    for gate in gates:
        gate_by_layer = nodes.constant("gate_by_layer", 0, 0, layers, units)
        nodes.add("Reshape", [f"{gate}_flat", gate_by_layer], gate)
    state_shape = ("batch", layers, units)
    return helper.make_graph(
        nodes.made,
        "step",
        inputs=[
            _input(config, "time", "batch"),
            *(_float(state, state_shape) for state in states),
        ],
        outputs=[
            _float(output_name(config), ("time", "batch", config.outputs_size)),
            *(_float(f"{state}_next", state_shape) for state in states),
            *(_float(gate, ("time", *state_shape)) for gate in gates),
        ],
        initializer=[*references.values(), *_constants(nodes)],
    )


def _scan_body(config: StackConfig) -> tuple[GraphProto, dict[str, tuple[int, ...]]]:
    """One step: flat states and one input in; flat states, prediction and flat gates out."""
    layers, units, states, gates = config.layers, config.hidden_size, config.states, config.gates
    nodes = Nodes()
    before = {
        state: nodes.split(
            f"{state}_before", [units] * layers, [f"layers.{n}.{state}" for n in range(layers)]
        )
        for state in states
    }
    tokens = config.input == "tokens"
    x = None if tokens else "frame"
    stepped = []
    for number in range(layers):
        layer = Layer(
            prefix=f"layers.{number}.",
            units=units,
            x=x,
            token="token" if tokens and number == 0 else None,
            states={state: before[state][number] for state in states},
        )
        stepped.append(CELLS[config.cell](nodes, layer))
        x = stepped[-1].states["hidden"]
    assert x is not None  # there is a layer
    for state in states:
        nodes.add("Concat", [layer.states[state] for layer in stepped], f"{state}_after", axis=1)
    _add_head(nodes, config, x, "prediction_of_step")
    for gate in gates:
        nodes.add("Concat", [layer.gates[gate] for layer in stepped], f"{gate}_of_step", axis=1)
    flat = ("batch", layers * units)
    body = helper.make_graph(
        nodes.made,
        "one_step",
        inputs=[*(_float(f"{state}_before", flat) for state in states), _input(config, "batch")],
        outputs=[
            *(_float(f"{state}_after", flat) for state in states),
            _float("prediction_of_step", ("batch", config.outputs_size)),
            *(_float(f"{gate}_of_step", flat) for gate in gates),
        ],
    )
    return body, nodes.constants


def _head_graph(config: StackConfig, references: Sequence[TensorProto]) -> GraphProto:
    """From a state alone to the prediction that its step gave: the same nodes on the same weights."""
    layers, units = config.layers, config.hidden_size
    nodes = Nodes()
    flat = nodes.add("Reshape", ["hidden", nodes.constant("flat_state", 0, layers * units)], "hidden_flat")
    below = [f"layers.{number}.hidden" for number in range(layers)]
    top = nodes.split(flat, [units] * layers, below)[-1]
    _add_head(nodes, config, top, output_name(config))
    return helper.make_graph(
        nodes.made,
        "head",
        inputs=[_float("hidden", ("batch", layers, units))],
        outputs=[_float(output_name(config), ("batch", config.outputs_size))],
        initializer=[*references, *_constants(nodes)],
    )


def _add_head(nodes: Nodes, config: StackConfig, top: str, output: str) -> None:
    """The prediction from the top layer's hidden state [batch, units]."""
    scores = output if config.input == "values" else "logits"
    nodes.add("Gemm", [top, "head.weight", "head.bias"], scores)
    if config.input == "tokens":
        nodes.add("LogSoftmax", ["logits"], output, axis=-1)


def _input(config: StackConfig, *axes: str) -> ValueInfoProto:
    """The graph's input with these axes; without `time`, one step's under the body's name for it."""
    of_graph = "time" in axes
    if config.input == "tokens":
        return helper.make_tensor_value_info("tokens" if of_graph else "token", TensorProto.INT64, axes)
    return _float("values" if of_graph else "frame", (*axes, config.outputs_size))


def _float(name: str, shape: Sequence[str | int]) -> ValueInfoProto:
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
