"""From a trained model to a version that can be served: ONNX graphs, manifest, proof that they agree."""

from cellstream.export.exporting import export, read_checkpoint
from cellstream.export.writing import write_version

__all__ = ["export", "read_checkpoint", "write_version"]
