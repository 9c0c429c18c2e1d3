"""Models on disk: what a version says of itself, and whether it is what it says.

Serving reads it, export writes it. It needs ONNX Runtime and pydantic; it knows nothing of PyTorch, of the
`onnx` package, of gRPC or of text.
"""

from cellstream.repository.manifest import Manifest

__all__ = ["Manifest"]
