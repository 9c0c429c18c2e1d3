"""From weights to the files of a version: its graphs, and the `weights.bin` that they share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cellstream.cells.checkpoint import Weights
from cellstream.cells.config import StackConfig
from cellstream.export.folding import fold, fold_input
from cellstream.export.forms import WEIGHTS_FILE, pack, serialize
from cellstream.export.graph import head_graph, step_graph
from cellstream.export.sequence import sequence_graph

STEP_FILE, HEAD_FILE, SEQUENCE_FILE = "model.onnx", "head.onnx", "sequence.onnx"


@dataclass(frozen=True, slots=True)
class Graphs:
    """What `build` made: the bytes of its files by name."""

    files: dict[str, bytes]

    def write(self, directory: Path) -> None:
        """Write the files into a directory that exists."""
        for name, contents in self.files.items():
            (directory / name).write_bytes(contents)


def build(config: StackConfig, weights: Weights) -> Graphs:
    """Build the graphs. The same weights give the same bytes.

    Args:
        config: What the weights are the weights of.
        weights: PyTorch's weights by the names of `cells.config`, float32.

    Raises:
        CheckpointInvalid: The weights are not those of this configuration.
    """
    folded = fold(config, weights)
    contents, references = pack(folded | fold_input(config, weights))
    head = [references[name] for name in ("head.weight", "head.bias")]
    return Graphs(
        {
            STEP_FILE: serialize(step_graph(config, [references[name] for name in folded])),
            HEAD_FILE: serialize(head_graph(config, head)),
            SEQUENCE_FILE: serialize(sequence_graph(config, references)),
            WEIGHTS_FILE: contents,
        }
    )
