"""From a version back to a checkpoint, so that other forms can be made of a model without its training.

The inverse of `folding.py`, as far as there is one. A table does not say of which embedding it was made: a
version with a portable form has the embedding beside it; of an older one the singular value decomposition
gives an embedding of the same size that makes the same table, to the last bits. Biases that were added stay
added. For values the linear input stays folded, and so the first layer sees the frames themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from cellstream.cells.checkpoint import Checkpoint, Record
from cellstream.cells.config import GATE_ORDER, StackConfig
from cellstream.errors import CheckpointInvalid
from cellstream.export.folding import BLOCK_ORDER
from cellstream.repository import ModelVersion
from cellstream.text import load_tokenizer

Tensors = dict[str, NDArray[np.float32]]


def unfold(version: ModelVersion) -> Checkpoint:
    """Make a checkpoint that does what a version does.

    Args:
        version: One that `export` wrote, in float32.

    Raises:
        CheckpointInvalid: Its weights are in 8 bits, or it was made by something else.
    """
    manifest = version.manifest
    if manifest.weights_dtype != "float32":
        raise CheckpointInvalid(
            f"{version.directory}: expected weights in float32, found {manifest.weights_dtype}, which have "
            "lost what other forms need; export the version or the checkpoint that they were made of."
        )
    try:
        config = _config(version)
        tensors = _tensors(version)
        weights = {
            name: np.array(weight, dtype=np.float32, order="C")  # a copy: onnx's cannot be written to
            for name, weight in _weights(config, tensors).items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointInvalid(
            f"{version.directory}: expected a version that `cellstream export` wrote, found none: {error}."
        ) from error
    return Checkpoint(
        config=config,
        weights=weights,
        tokenizer=None if version.tokenizer is None else load_tokenizer(version.tokenizer),
        record=Record(
            name=manifest.name,
            training_data_sha256=manifest.training_data_sha256,
            metrics=dict(manifest.metrics),
        ),
    )


def _config(version: ModelVersion) -> StackConfig:
    sizes, given = version.manifest.architecture, version.manifest.input
    values: dict[str, Any] = {
        "cell": sizes.cell,
        "layers": sizes.layers,
        "hidden_size": sizes.hidden_size,
        "input": given.kind,
        "embedding_size": sizes.embedding_size if given.kind == "tokens" else given.features,
        "vocabulary_size": given.vocabulary_size,
        "features": given.features,
    }
    return StackConfig(**values)


def _tensors(version: ModelVersion) -> Tensors:
    """All that the graphs of a version read from its `weights.bin`, by name."""
    tensors: Tensors = {}
    for path in (version.step_graph, version.sequence_graph):
        if path is not None:
            for tensor in onnx.load(path).graph.initializer:
                tensors[tensor.name] = onnx.numpy_helper.to_array(tensor)
    return tensors


def _weights(config: StackConfig, tensors: Tensors) -> dict[str, NDArray[Any]]:
    weights: dict[str, NDArray[Any]] = {}
    if config.input == "values":
        weights["input.weight"] = np.eye(config.outputs_size)
        weights["input.bias"] = np.zeros(config.outputs_size)
    else:
        if "embedding.weight" not in tensors:
            tensors = tensors | _factor(tensors["layers.0.table"], config.embedding_size)
        weights["embedding.weight"] = tensors["embedding.weight"]
    for layer in range(config.layers):
        of = {name: tensors.get(f"layers.{layer}.{name}") for name in _OF_A_LAYER}
        for name, rows in _of_layer(config, of, takes_token=layer == 0 and config.input == "tokens").items():
            weights[f"layers.{layer}.{name}"] = _in_pytorch_order(config, rows)
    weights["head.weight"], weights["head.bias"] = tensors["head.weight"].T, tensors["head.bias"]
    return weights


_OF_A_LAYER = ("weight", "bias", "input_weight", "input_bias", "state_weight", "state_bias")


def _of_layer(
    config: StackConfig, of: dict[str, NDArray[np.float32] | None], *, takes_token: bool
) -> dict[str, NDArray[Any]]:
    """A layer's weights by PyTorch's names, with the blocks still in the graph's order."""
    whole, bias, weight_ih, bias_ih, weight_hh, bias_hh = (of[name] for name in _OF_A_LAYER)
    if config.cell != "gru":
        assert whole is not None
        if takes_token:
            weight_hh = whole
        else:
            width = len(whole) - config.hidden_size
            weight_ih, weight_hh, bias_ih = whole[:width], whole[width:], bias
    assert weight_ih is not None
    assert weight_hh is not None
    assert bias_ih is not None
    return {
        "weight_ih": weight_ih.T,
        "weight_hh": weight_hh.T,
        "bias_ih": bias_ih,
        "bias_hh": np.zeros_like(bias_ih) if bias_hh is None else bias_hh,
    }


def _factor(table: NDArray[np.float32], embedding_size: int) -> Tensors:
    """An embedding, a weight and a bias that make a table: table = embedding · weight + bias."""
    wide = table.astype(np.float64)
    bias = wide.mean(axis=0)
    left, sizes, right = np.linalg.svd(wide - bias, full_matrices=False)
    rank = min(embedding_size, len(sizes))
    embedding = np.zeros((len(table), embedding_size))
    weight = np.zeros((embedding_size, table.shape[1]))
    embedding[:, :rank] = left[:, :rank] * np.sqrt(sizes[:rank])
    weight[:rank] = right[:rank] * np.sqrt(sizes[:rank])[:, np.newaxis]
    named = {"embedding.weight": embedding, "layers.0.input_weight": weight, "layers.0.input_bias": bias}
    return {name: array.astype(np.float32) for name, array in named.items()}


def _in_pytorch_order(config: StackConfig, rows: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `folding._in_graph_order`."""
    ours = BLOCK_ORDER[config.cell]
    blocks = dict(zip(ours, np.split(rows, len(ours)), strict=True))
    return np.concatenate([blocks[gate] for gate in GATE_ORDER[config.cell]])
