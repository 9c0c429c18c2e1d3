"""A text of one's own: a UTF-8 file, or all of them below a folder, and what of it is held out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cellstream.errors import TrainingFailed

HELD_OUT_RATIO = 0.05
"""Share of the text that is for validation, and again as much held out."""

FILE_RATIO_MAX = 2 * HELD_OUT_RATIO
"""A file with a larger share of all is learned from: held out whole it would be missed."""

TEXT_BYTES_MAX = 256_000_000
"""Read in all. A text is in memory whole, and its tokens take some 16 bytes each while they are made."""

CONVERTING = "`iconv -f LATIN1 -t UTF-8 OLD > NEW` converts a text, where LATIN1 is what it is in."

NAMED_MAX = 5
"""Files that a message names."""


@dataclass(frozen=True)
class OwnText:
    """A text and what is held out of it.

    Attributes:
        training: What is learned from.
        validation: What chooses the best checkpoint.
        heldout: What nothing sees before the last measurement.
        source: What it is, for the card.
        notes: What the trainer should know of how it was read, a sentence each.
    """

    training: str
    validation: str
    heldout: str
    source: str
    notes: tuple[str, ...] = ()


class _NotText(Exception):
    """Bytes that are no text; the message says why."""


def read_own_text(path: Path, runs_directory: Path) -> OwnText:
    """Read a text and divide it.

    Of a file the last twentieth is held out, and the twentieth before it is for validation. Of a folder all
    files below it are read, in the order of their paths, but for hidden ones and those that are no text;
    where there are enough of them, whole files are held out, else the end of all, as of a file.

    Args:
        path: The file or folder.
        runs_directory: A folder that is not read though it may lie below: what training writes there would
            change the text that a run goes on with.

    Raises:
        TrainingFailed: It cannot be read, is not UTF-8, or is too short or too long.
    """
    try:
        return _of_folder(path, runs_directory) if path.is_dir() else _of_file(path)
    except OSError as error:
        raise TrainingFailed(
            f"The text {error.filename or path} cannot be read: {error.strerror}."
        ) from error


def _of_file(path: Path) -> OwnText:
    try:
        text = _decode(_read(path, TEXT_BYTES_MAX))
    except _NotText as error:
        raise TrainingFailed(f"The text {path} is no UTF-8: {error}. {CONVERTING}") from None
    if not text.strip():
        raise TrainingFailed(f"The text {path} is empty.")
    return _tail_held_out(path, text, f"The trainer's own text, {path.name}")


def _of_folder(path: Path, runs_directory: Path) -> OwnText:
    texts: dict[str, str] = {}
    skipped: list[str] = []
    left = TEXT_BYTES_MAX
    for file in _files(path, runs_directory.resolve()):
        content = _read(file, left)
        left -= len(content)
        name = file.relative_to(path).as_posix()
        try:
            text = _decode(content)
        except _NotText as error:
            skipped.append(f"{name} ({error})")
            continue
        if text.strip():
            texts[name] = text
    notes = () if not skipped else (f"Left out, because they are no UTF-8: {_named(skipped)}. {CONVERTING}",)
    if not texts:
        raise TrainingFailed(f"The folder {path} holds no text. {' '.join(notes)}".rstrip())
    source = f"The trainer's own texts, {len(texts):,} files in {path.resolve().name}"
    apart = _whole_files(texts)
    if apart is None:
        parts = _tail_held_out(path, _join(texts.values()), source)
        how = (
            f"The end of the text is held out: {len(texts):,} files, of which too few have at most "
            f"{FILE_RATIO_MAX:.0%} of the text each to hold out whole ones."
        )
        return OwnText(parts.training, parts.validation, parts.heldout, source, (*notes, how))
    validation, heldout = apart
    how = (
        f"{len(texts):,} files are read. Held out whole: {_named(heldout)}. For validation: "
        f"{_named(validation)}."
    )
    return OwnText(
        training=_join(text for name, text in texts.items() if name not in {*validation, *heldout}),
        validation=_join(texts[name] for name in validation),
        heldout=_join(texts[name] for name in heldout),
        source=source,
        notes=(*notes, how),
    )


def _files(path: Path, left_out: Path) -> list[Path]:
    """All files below a folder but one, in the order of their paths; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise error

    found: list[Path] = []
    for folder, folders, names in os.walk(path, onerror=refuse):
        folders[:] = [
            name for name in folders if not name.startswith(".") and Path(folder, name).resolve() != left_out
        ]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.is_file())


def _read(path: Path, bytes_max: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise TrainingFailed(
            f"The text is too long: with {path} it has more than {TEXT_BYTES_MAX / 1e6:,.0f} MB, which are "
            "read into memory whole."
        )
    return content


def _decode(content: bytes) -> str:
    """UTF-8, without a byte order mark, each line's end as one newline.

    Raises:
        _NotText: It is not UTF-8, or has a NUL byte, which no text has and most other files have.
    """
    if (place := content.find(0)) >= 0:
        raise _NotText(f"byte {place:,} is NUL: it is no text, or UTF-16")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _NotText(f"byte {error.start:,} is 0x{content[error.start]:02x}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _tail_held_out(path: Path, text: str, source: str) -> OwnText:
    apart = int(len(text) * HELD_OUT_RATIO)
    if apart < 2:  # to measure takes a token that is read, and one that is predicted
        raise TrainingFailed(
            f"The text {path} is too short to hold a part of it out: {len(text)} characters."
        )
    first, second = len(text) - 2 * apart, len(text) - apart
    return OwnText(text[:first], text[first:second], text[second:], source)


def _whole_files(texts: dict[str, str]) -> tuple[list[str], list[str]] | None:
    """Which files are for validation, and which are held out; None: there are not enough.

    The digest of its name decides how soon a file is taken, so that neither the alphabet nor the years in
    the names do, and a file that comes later moves few others.
    """
    characters = sum(map(len, texts.values()))
    small = [name for name, text in texts.items() if len(text) <= FILE_RATIO_MAX * characters]
    waiting = iter(sorted(small, key=lambda name: hashlib.sha256(name.encode()).digest()))
    parts: list[list[str]] = []
    for _ in ("held out", "validation"):
        part: list[str] = []
        while sum(len(texts[name]) for name in part) < HELD_OUT_RATIO * characters:
            name = next(waiting, None)
            if name is None:
                return None
            part.append(name)
        parts.append(sorted(part))
    heldout, validation = parts
    return validation, heldout


def _join(texts: Iterable[str]) -> str:
    return "\n\n".join(texts)


def _named(names: list[str]) -> str:
    """The first of them, and how many more."""
    more = f" and {len(names) - NAMED_MAX:,} more" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more
