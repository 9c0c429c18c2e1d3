"""From weights to the files of a version: its graphs, and the `weights.bin` that they share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cellstream.cells.checkpoint import Weights
from cellstream.cells.config import StackConfig
from cellstream.export.folding import fold, fold_input
from cellstream.export.forms import WEIGHTS_FILE, pack, serialize
from cellstream.export.graph import head_graph, step_graph
from cellstream.export.quantizing import is_weight, quantize
from cellstream.export.sequence import sequence_graph
from cellstream.repository.manifest import WeightsDtype

STEP_FILE, HEAD_FILE, SEQUENCE_FILE = "model.onnx", "head.onnx", "sequence.onnx"


@dataclass(frozen=True, slots=True)
class Graphs:
    """What `build` made: the bytes of its files by name."""

    files: dict[str, bytes]

    def write(self, directory: Path) -> None:
        """Write the files into a directory that exists."""
        for name, contents in self.files.items():
            (directory / name).write_bytes(contents)


def build(config: StackConfig, weights: Weights, weights_dtype: WeightsDtype = "float32") -> Graphs:
    """Build the graphs. The same weights give the same bytes.

    A model in 8 bits has no `sequence.onnx`: ONNX's LSTM takes float32, and what it would give is not what
    the step graph gives, which rounds activations too.

    Args:
        config: What the weights are the weights of.
        weights: PyTorch's weights by the names of `cells.config`, float32.
        weights_dtype: How to store what products multiply with.

    Raises:
        CheckpointInvalid: The weights are not those of this configuration.
    """
    folded = fold(config, weights)
    if weights_dtype == "int8":
        in_8_bits = {name: tensor.shape for name, tensor in folded.items() if is_weight(name)}
        contents, references = pack(quantize(folded))
        sequence = {}
    else:
        in_8_bits = {}
        of_input = fold_input(config, weights)
        contents, everything = pack(folded | of_input)
        references = {name: everything[name] for name in folded}
        sequence = {SEQUENCE_FILE: serialize(sequence_graph(config, everything))}
    head = [reference for name, reference in references.items() if name.startswith("head.")]
    step = list(references.values())
    contributed = bool(in_8_bits)
    return Graphs(
        {
            STEP_FILE: serialize(step_graph(config, step, in_8_bits), contributed=contributed),
            HEAD_FILE: serialize(head_graph(config, head, in_8_bits), contributed=contributed),
            **sequence,
            WEIGHTS_FILE: contents,
        }
    )
