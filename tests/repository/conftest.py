"""A model on disk to be spoilt, and ways to spoil it so that only one thing is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cellstream.testing import write_model


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A directory of one model, an LSTM over 256 tokens, 2 layers × 16."""
    return write_model(tmp_path / "models")


@pytest.fixture
def directory(models: Path) -> Path:
    """Its only version."""
    return models / "tiny" / "1"


@pytest.fixture
def change_manifest(directory: Path) -> Callable[[Callable[[dict[str, Any]], object]], None]:
    """Changes the manifest's JSON in place."""

    def change(how: Callable[[dict[str, Any]], object]) -> None:
        path = directory / "manifest.json"
        values = json.loads(path.read_text())
        how(values)
        path.write_text(json.dumps(values))

    return change


@pytest.fixture
def replace_file(directory: Path, change_manifest: Callable[..., None]) -> Callable[[str, bytes], None]:
    """Puts another file in a file's place and its size and digest into the manifest, as a forger would."""

    def replace(name: str, contents: bytes) -> None:
        (directory / name).write_bytes(contents)
        digest = {"sha256": hashlib.sha256(contents).hexdigest(), "bytes": len(contents)}
        change_manifest(lambda values: values["files"].update({name: digest}))

    return replace
