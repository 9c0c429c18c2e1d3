"""How ONNX writes things down: values, tensors in `weights.bin`, a model's bytes.

The bytes written are the same for the same graph: no time, path or machine is in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from cellstream.cells.config import StackConfig
from cellstream.export.equations import Nodes
from cellstream.export.quantizing import CONTRIBUTED

WEIGHTS_FILE = "weights.bin"

OPSET, IR_VERSION = 18, 8
"""The oldest that have what we need, so that old runtimes read our models too."""

_ALIGNMENT_BYTES = 64
"""Where a tensor may begin in `weights.bin`: at a cache line."""


def output_name(config: StackConfig) -> str:
    """Name the graph's prediction: `log_probabilities` of the next token, or the next frame, `prediction`."""
    return "log_probabilities" if config.input == "tokens" else "prediction"


def input_value(config: StackConfig, name: str, *axes: str) -> ValueInfoProto:
    """What a step takes: int64 [*axes] of tokens, or float32 [*axes, features]."""
    if config.input == "tokens":
        return helper.make_tensor_value_info(name, TensorProto.INT64, axes)
    return float_value(name, *axes, config.outputs_size)


def float_value(name: str, *shape: str | int) -> ValueInfoProto:
    """A float32 tensor; a word stands for a free axis."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def constants(nodes: Nodes) -> list[TensorProto]:
    """The whole numbers that nodes need."""
    return [
        helper.make_tensor(name, TensorProto.INT64, [len(numbers)], numbers)
        for name, numbers in nodes.constants.items()
    ]


def pack(tensors: Mapping[str, NDArray[Any]]) -> tuple[bytes, dict[str, TensorProto]]:
    """Lay tensors out one after the other, and make a reference to each for the graphs."""
    contents = bytearray()
    references = {}
    for name, tensor in tensors.items():
        contents += bytes(-len(contents) % _ALIGNMENT_BYTES)
        stored = tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()
        reference = TensorProto(
            name=name, data_type=helper.np_dtype_to_tensor_dtype(tensor.dtype), dims=tensor.shape
        )
        reference.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS_FILE), ("offset", len(contents)), ("length", len(stored))):
            reference.external_data.add(key=key, value=str(value))
        references[name] = reference
        contents += stored
    return bytes(contents), references


def serialize(graph: GraphProto, *, contributed: bool = False) -> bytes:
    """A model's bytes; `contributed`: whether it has operators of ONNX Runtime's own."""
    domains = ["", *([CONTRIBUTED] if contributed else [])]
    model: ModelProto = helper.make_model(
        graph,
        producer_name="cellstream",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid(domain, 1 if domain else OPSET) for domain in domains],
    )
    return model.SerializeToString(deterministic=True)
