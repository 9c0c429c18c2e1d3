"""A version is read only if every byte is what it should be; else the message says file, expected, found."""

from __future__ import annotations

import errno
import hashlib
import io
from pathlib import Path
from typing import Any

import pytest

from cellstream.errors import DigestMismatch, ManifestInvalid, ModelFileMissing, RepositoryError
from cellstream.repository import load_version

FILES = ("model.onnx", "head.onnx", "sequence.onnx", "weights.bin", "tokenizer.json")


def test_whole_version_is_read(directory) -> None:
    """The digest is that of the manifest's bytes, and paths lead to the files that the manifest names."""
    version = load_version(directory)
    assert version.manifest.name == "tiny"
    assert version.manifest_digest == hashlib.sha256((directory / "manifest.json").read_bytes()).hexdigest()
    assert (version.step_graph, version.head_graph) == (directory / "model.onnx", directory / "head.onnx")
    assert version.sequence_graph == directory / "sequence.onnx"
    assert version.tokenizer == directory / "tokenizer.json"
    assert version.load_card() == ""
    assert repr(version) == f"<ModelVersion tiny/1 in {str(directory)!r}>"


def test_version_of_before_the_portable_form_is_read(directory, change_manifest) -> None:
    """What was exported once is served for years; what its manifest does not say has its old meaning."""
    (directory / "sequence.onnx").unlink()

    def age(values: dict[str, Any]) -> None:
        del values["files"]["sequence.onnx"], values["sequence_graph"], values["weights_dtype"]

    change_manifest(age)
    version = load_version(directory)
    assert version.sequence_graph is None
    assert version.manifest.weights_dtype == "float32"


def test_card_is_read(directory, replace_file) -> None:
    """GetModel and `cellstream inspect` show it."""
    replace_file("CARD.md", "# Tiny, naïve\n".encode())
    assert load_version(directory).load_card() == "# Tiny, naïve\n"


def test_card_in_another_encoding_is_shown_as_well_as_can_be(directory, replace_file) -> None:
    """It is for people alone, and no reason not to serve."""
    replace_file("CARD.md", "na\xefve".encode("latin-1"))
    assert load_version(directory).load_card() == "na\ufffdve"


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_missing_file_is_named(directory, name) -> None:
    """Half a copy of a model is not served."""
    (directory / name).unlink()
    with pytest.raises(ModelFileMissing, match=f"{name} is not there") as caught:
        load_version(directory)
    assert caught.value.values["file"] == str(directory / name)


def test_folder_that_is_not_there_is_named(models) -> None:
    """The same for the whole folder."""
    with pytest.raises(ModelFileMissing, match=r"tiny/9/manifest.json is not there"):
        load_version(models / "tiny" / "9")


@pytest.mark.parametrize("name", FILES)
def test_one_changed_bit_is_found(directory, name) -> None:
    """A disk or a copy that flips one bit would change answers in silence."""
    contents = bytearray((directory / name).read_bytes())
    expected = hashlib.sha256(contents).hexdigest()
    contents[len(contents) // 2] ^= 1
    (directory / name).write_bytes(contents)
    with pytest.raises(DigestMismatch, match=f"{name}: expected SHA-256 {expected}, found") as caught:
        load_version(directory)
    assert caught.value.values["found"] == hashlib.sha256(contents).hexdigest()


@pytest.mark.parametrize("name", FILES)
def test_file_cut_short_is_found(directory, name) -> None:
    """What a full disk or a broken download leaves; the sizes say more than two digests."""
    contents = (directory / name).read_bytes()
    (directory / name).write_bytes(contents[:-1])
    with pytest.raises(
        DigestMismatch, match=f"{name}: expected {len(contents)} bytes, found {len(contents) - 1}"
    ):
        load_version(directory)


def test_file_beside_is_refused(directory) -> None:
    """A graph could read weights from a file that no digest covers; so there is none."""
    (directory / "more.bin").write_bytes(b"?")
    with pytest.raises(DigestMismatch, match=r"more\.bin: expected only the files that the manifest names"):
        load_version(directory)


def test_folder_in_a_files_place_is_refused(directory) -> None:
    """It is no file of that name."""
    (directory / "weights.bin").unlink()
    (directory / "weights.bin").mkdir()
    with pytest.raises(ModelFileMissing, match=r"weights\.bin is not there"):
        load_version(directory)


@pytest.mark.parametrize("name", ["weights.bin", "manifest.json"])
def test_file_that_cannot_be_read_is_named(directory, name, monkeypatch) -> None:
    """A disk that fails, or the rights of another user, are told as all else that keeps a model away."""
    real = io.open

    def failing(file, *arguments, **named) -> object:
        if Path(file).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return real(file, *arguments, **named)

    monkeypatch.setattr(io, "open", failing)  # a test that is run by root may read everything
    with pytest.raises(RepositoryError, match=f"cannot be read: .*Permission denied.*{name}"):
        load_version(directory)


@pytest.mark.parametrize("contents", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_manifest_that_is_no_json_object_is_refused(directory, contents) -> None:
    """A file that merely has the name."""
    (directory / "manifest.json").write_bytes(contents)
    with pytest.raises(ManifestInvalid, match=r"manifest\.json is no manifest that this version reads"):
        load_version(directory)
