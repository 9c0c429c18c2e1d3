"""Models on disk: what a version says of itself, and whether it is what it says.

Serving reads it, export writes it. It needs ONNX Runtime and pydantic; it knows nothing of PyTorch, of the
`onnx` package, of gRPC or of text.
"""

from cellstream.repository.manifest import MANIFEST_FILE, Manifest
from cellstream.repository.repository import Repository
from cellstream.repository.signature import check_signatures
from cellstream.repository.version import CARD_FILE, ModelVersion, digest_file, load_version

__all__ = [
    "CARD_FILE",
    "MANIFEST_FILE",
    "Manifest",
    "ModelVersion",
    "Repository",
    "check_signatures",
    "digest_file",
    "load_version",
]
