"""What a killed run goes on from, on disk: written whole or not at all, and never believed unseen.

    <directory>/
        000000001234.save     the run as it stood after 1,234 updates
        000000001180.save     and the one before, in case that one is damaged
        000000001300.partial  what a kill interrupted; the next save takes it away

A file is one line (what it is, the SHA-256 and the length of the rest) and then the rest. It gets its name
only when all its bytes are on the disk, so a kill leaves it there whole or not there. What a disk may do to
it afterwards the digest shows, and the save before it is used.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from cellstream.cells.checkpoint import sync
from cellstream.errors import TrainingFailed

KEPT = 2
"""Saves that stay: the newest, and one for the day that it is damaged."""

_HEADER = re.compile(rb"cellstream training save 1, sha256 ([0-9a-f]{64}), (\d+) bytes\n")


class Saves:
    """The saves of one run.

    Args:
        directory: Where they are; it is made with the first one.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __repr__(self) -> str:
        return f"<Saves in {str(self.directory)!r}: {', '.join(path.stem for path in self._paths())}>"

    def __bool__(self) -> bool:
        """Whether there is any, whole or not."""
        return bool(self._paths())

    def write(self, updates: int, content: dict[str, Any]) -> None:
        """Keep how a run stands.

        Args:
            updates: After how many updates.
            content: Tensors, numbers, texts, and lists and dicts of them.

        Raises:
            OSError: The disk is full, or not ours; the saves before are whole.
        """
        buffer = io.BytesIO()
        torch.save(content, buffer)
        payload = buffer.getbuffer()
        digest = hashlib.sha256(payload).hexdigest()
        header = f"cellstream training save 1, sha256 {digest}, {len(payload)} bytes\n"
        self.directory.mkdir(parents=True, exist_ok=True)
        for leftover in self.directory.glob("*.partial"):
            leftover.unlink()
        partial = self.directory / f"{updates:012d}.partial"
        try:
            with partial.open("wb") as file:
                file.write(header.encode())
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(partial.with_suffix(".save"))
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync(self.directory)
        # Where there are later ones they were damaged, or the run would not stand here.
        paths = self._paths()
        later = [path for path in paths if path.stem > partial.stem]
        for path in (*later, *paths[len(later) + KEPT :]):
            path.unlink()

    def read(self) -> tuple[dict[str, Any], list[str]]:
        """Give the newest save that is whole.

        Returns:
            What was kept, and for each newer one that is damaged what is wrong with it.

        Raises:
            TrainingFailed: None is whole, or one cannot be read: it may be whole, and newer than the next.
        """
        damages: list[str] = []
        for path in self._paths():
            try:
                return _read(path), damages
            except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                damages.append(f"{path} is damaged: {error}.")
        raise TrainingFailed(" ".join(damages) or f"{self.directory} holds no save of a run.")

    def clear(self) -> None:
        """Take all of them away."""
        for path in (*self._paths(), *self.directory.glob("*.partial")):
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self.directory.glob("*.save"), reverse=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            header, payload = file.readline(200), file.read()
    except OSError as error:
        raise TrainingFailed(
            f"{path} cannot be read: {error.strerror}. It may be whole: mend that, or take it away to "
            "go on from the save before."
        ) from error
    found = _HEADER.fullmatch(header)
    if found is None:
        raise ValueError("its first line is not that of a save which this version reads")
    digest, length = found[1].decode(), int(found[2])
    if len(payload) != length:
        raise ValueError(f"expected {length:,} bytes, found {len(payload):,}")
    if hashlib.sha256(payload).hexdigest() != digest:
        raise ValueError(f"its bytes do not have the SHA-256 {digest}")
    # Tensors and plain values only: a save from a stranger must not run code.
    content: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return content
