"""What a recipe reads, as tokens: to learn from, to choose by, and held out; and the order of reading."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cellstream.errors import RecipeInvalid, TextNotEncodable, TrainingFailed
from cellstream.text import BpeTokenizer, ByteTokenizer, CharacterTokenizer, Tokenizer
from cellstream.training.corpus import Corpus, fetch_corpus
from cellstream.training.own_text import read_own_text
from cellstream.training.recipe import Data


@dataclass(frozen=True, eq=False)
class Piece:
    """Some text and its tokens.

    Attributes:
        name: A work, or what the piece is for.
        text: The text.
        ids: Its tokens, int64 [tokens].
    """

    name: str
    text: str
    ids: NDArray[np.int64]

    @property
    def tokens_per_character(self) -> float:
        """1 for characters, and for bytes of plain English."""
        return len(self.ids) / len(self.text)

    def __repr__(self) -> str:
        return f"<Piece {self.name!r}: {len(self.text):,} characters, {len(self.ids):,} tokens>"


@dataclass(frozen=True, eq=False)
class Splits:
    """All that a recipe reads.

    Attributes:
        tokenizer: What made the tokens.
        training: What is learned from.
        validation: What chooses the best checkpoint.
        heldout: What nothing sees before the last measurement.
        source: Where the text comes from, for the card.
        licence: Under which terms, for the card.
        notes: What the trainer should know of how it was read, a sentence each.
    """

    tokenizer: Tokenizer
    training: Piece
    validation: Piece
    heldout: tuple[Piece, ...]
    source: str
    licence: str
    notes: tuple[str, ...] = ()

    @property
    def training_sha256(self) -> str:
        """Digest of the UTF-8 of the training text."""
        return hashlib.sha256(self.training.text.encode()).hexdigest()


def load_splits(data: Data, runs_directory: Path, tokenizer: Tokenizer | None = None) -> Splits:
    """Read what a recipe asks for.

    Args:
        data: What it asks for.
        runs_directory: The corpus is kept in its `data` folder; no text of one's own is read there.
        tokenizer: What makes the tokens; None: one of the recipe's kind, made of the training text.

    Raises:
        RecipeInvalid: The corpus has no work of a name.
        TrainingFailed: The text cannot be read, is too short, or has held-out characters never seen in
            training.
        ExtraMissing: The recipe asks for BPE, and the package `tokenizers` is not installed.
    """
    if data.text is not None:
        own = read_own_text(data.text, runs_directory)
        parts = [("training", own.training), ("validation", own.validation), ("heldout_part", own.heldout)]
        source, licence, notes = own.source, "the trainer's own", own.notes
    else:
        corpus = fetch_corpus(runs_directory / "data")
        parts = _corpus_parts(corpus, data)
        source, licence, notes = corpus.source, corpus.licence, ()
    (_, training), *_ = parts
    tokenizer = tokenizer or _tokenizer(data, training)
    pieces = [_piece(name, text, tokenizer) for name, text in parts]
    return Splits(
        tokenizer=tokenizer,
        training=pieces[0],
        validation=pieces[1],
        heldout=tuple(pieces[2:]),
        source=source,
        licence=licence,
        notes=notes,
    )


def _tokenizer(data: Data, training: str) -> Tokenizer:
    """The tokeniser, whose vocabulary is of the training text alone: what is held out must not leak."""
    if data.tokenizer == "bytes":
        return ByteTokenizer()
    if data.tokenizer == "characters":
        return CharacterTokenizer.of(training)
    assert data.vocabulary_size is not None  # the recipe saw to it
    return BpeTokenizer.of(training, data.vocabulary_size)


def _corpus_parts(corpus: Corpus, data: Data) -> list[tuple[str, str]]:
    """Training, validation, and each held-out work, by name."""
    apart = {*data.validation, *data.heldout}
    if unknown := sorted(apart - corpus.works.keys()):
        raise RecipeInvalid(
            f"data: expected works among {', '.join(corpus.works)}; found {', '.join(unknown)}."
        )
    return [
        ("training", "\n\n".join(text for name, text in corpus.works.items() if name not in apart)),
        (" + ".join(data.validation), "\n\n".join(corpus.works[name] for name in data.validation)),
        *((name, corpus.works[name]) for name in data.heldout),
    ]


def _piece(name: str, text: str, tokenizer: Tokenizer) -> Piece:
    try:
        return Piece(name, text, np.array(tokenizer.encode(text), dtype=np.int64))
    except TextNotEncodable as error:
        raise TrainingFailed(
            f"{name} has characters that the training text has not; the bytes tokeniser has them all. {error}"
        ) from error


class Window(NamedTuple):
    """What one update learns from.

    Attributes:
        inputs: int64 [time, batch].
        targets: The token after each input, int64 [time, batch].
        fresh: Whether the states begin anew here.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    fresh: bool


def windows(ids: NDArray[np.int64], *, rows: int, window: int, seed: int) -> Iterator[Window]:
    """Read a text for ever, at `rows` places at the same time, each window going on where the last ended.

    Each reading of the whole starts somewhere else, so that no cut is always at the same place.

    Args:
        ids: Tokens of the text, int64 [tokens].
        rows: Places of the text.
        window: Tokens of each place.
        seed: Of the starts.

    Raises:
        TrainingFailed: The text is shorter than one window of all places.
    """
    length = (len(ids) - 1) // rows
    if length < window:
        raise TrainingFailed(
            f"The training text has {len(ids)} tokens; {rows} rows × a window of {window} need "
            f"{rows * window + 1}. Make batch_rows or window smaller."
        )
    random = np.random.default_rng(seed)
    while True:
        start = int(random.integers(len(ids)))
        turned = np.concatenate((ids[start:], ids[:start]))
        inputs = np.ascontiguousarray(turned[: rows * length].reshape(rows, length).T)
        targets = np.ascontiguousarray(turned[1 : rows * length + 1].reshape(rows, length).T)
        for at in range(0, length - window + 1, window):
            yield Window(inputs[at : at + window], targets[at : at + window], fresh=at == 0)
