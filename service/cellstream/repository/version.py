"""One version of a model, read and verified: it is served only if every byte is what it should be."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cellstream.errors import DigestMismatch, ModelFileMissing, RepositoryError
from cellstream.repository.manifest import MANIFEST_FILE, Manifest
from cellstream.repository.signature import check_signatures

CARD_FILE = "CARD.md"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version whose files were verified.

    Attributes:
        manifest: What it says of itself.
        directory: Where its files are.
        manifest_digest: SHA-256 of `manifest.json`, hexadecimal. The manifest holds the digest of every other
            file, so this one stands for them all.
    """

    manifest: Manifest
    directory: Path
    manifest_digest: str

    @property
    def step_graph(self) -> Path:
        """The graph that serves."""
        return self.directory / self.manifest.step_graph

    @property
    def head_graph(self) -> Path:
        """The graph from states to outputs."""
        return self.directory / self.manifest.head_graph

    @property
    def sequence_graph(self) -> Path | None:
        """The graph over rows of different lengths; None for a version that has none."""
        return self.directory / self.manifest.sequence_graph if self.manifest.sequence_graph else None

    @property
    def tokenizer(self) -> Path | None:
        """The tokeniser's file; None for a model that has none."""
        return self.directory / self.manifest.tokenizer if self.manifest.tokenizer else None

    def load_card(self) -> str:
        """Read its card, Markdown; empty if it has none."""
        if CARD_FILE not in self.manifest.files:
            return ""
        return (self.directory / CARD_FILE).read_text(encoding="utf-8", errors="replace")

    def __repr__(self) -> str:
        return f"<ModelVersion {self.manifest.name}/{self.manifest.version} in {str(self.directory)!r}>"


def load_version(directory: Path) -> ModelVersion:
    """Read a version and verify all of it: manifest, size and digest of every file, both graphs' signatures.

    Raises:
        ModelFileMissing: The manifest, or a file that it names, is not there.
        ManifestInvalid: The manifest is not one that this version reads.
        DigestMismatch: A file is not the one that the manifest was written for, or is not in the manifest.
        SignatureMismatch: A graph takes or gives something else than the manifest says.
        RepositoryError: A file cannot be read, or ONNX Runtime cannot read a graph.
    """
    path = directory / MANIFEST_FILE
    try:
        if not path.is_file():
            raise ModelFileMissing(
                f"{path} is not there: expected a model's version in this folder.", file=path
            )
        contents = path.read_bytes()
        manifest = Manifest.from_json(contents, where=str(path))
        _check_files(manifest, directory)
    except OSError as error:
        raise RepositoryError(f"{directory} cannot be read: {error}.", directory=directory) from error
    check_signatures(manifest, directory)
    return ModelVersion(manifest, directory, hashlib.sha256(contents).hexdigest())


def digest_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_files(manifest: Manifest, directory: Path) -> None:
    # A file that the manifest does not name would have no digest, and a graph could read its weights from it.
    for name in sorted({entry.name for entry in directory.iterdir()} - {MANIFEST_FILE, *manifest.files}):
        raise DigestMismatch(
            f"{directory / name}: expected only the files that the manifest names, found this one beside "
            "them; remove it, or export again.",
            file=directory / name,
        )
    for name, file in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise ModelFileMissing(f"{path} is not there, and the manifest names it.", file=path)
        if (found_bytes := path.stat().st_size) != file.bytes:
            raise DigestMismatch(
                f"{path}: expected {file.bytes} bytes, found {found_bytes}.",
                file=path,
                expected=file.bytes,
                found=found_bytes,
            )
        if (found := digest_file(path)) != file.sha256:
            raise DigestMismatch(
                f"{path}: expected SHA-256 {file.sha256}, found {found}.",
                file=path,
                expected=file.sha256,
                found=found,
            )
