"""A text of one's own: what of it is read, what is held out, and what is said of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cellstream.errors import RecipeInvalid, TrainingFailed
from cellstream.text import BpeTokenizer
from cellstream.training import load_recipe, own_text
from cellstream.training.data import load_splits
from cellstream.training.defaults import model_name
from cellstream.training.own_text import read_own_text
from cellstream.training.recipe import Data

RUNS = Path("nowhere")


def write_folder(path: Path, sizes: dict[str, int]) -> dict[str, str]:
    """Files of some characters each, all different."""
    texts = {name: (f"{name} " * size)[:size] for name, size in sizes.items()}
    for name, text in texts.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return texts


def test_a_file_is_read_as_text(tmp_path: Path) -> None:
    """A byte order mark is no character of it, and a line ends the same wherever it was written."""
    path = tmp_path / "own.txt"
    path.write_bytes("\ufeffein\r\nzwei\rdrei\n".encode() * 1 + b"x" * 100)
    own = read_own_text(path, RUNS)
    assert own.training + own.validation + own.heldout == "ein\nzwei\ndrei\n" + "x" * 100
    assert (len(own.validation), len(own.heldout)) == (5, 5)
    assert own.notes == ()


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    """Every text below it, but for hidden files; what is no text is named."""
    write_folder(tmp_path, {"b.md": 500, "a/z.txt": 500, "a/y.csv": 500, ".git/config": 500, "c": 500})
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    (tmp_path / "latin1.txt").write_bytes("Ärger".encode("latin-1"))
    (tmp_path / "empty.txt").write_bytes(b"")
    own = read_own_text(tmp_path, RUNS)
    joined = own.training + own.validation + own.heldout
    assert [part[:7].strip() for part in joined.split("\n\n")] == ["a/y.csv", "a/z.txt", "b.md b.", "c c c c"]
    assert own.notes[0] == (
        "Left out, because they are no UTF-8: latin1.txt (byte 0 is 0xc4), picture.png (byte 8 is NUL: it is "
        "no text, or UTF-16). `iconv -f LATIN1 -t UTF-8 OLD > NEW` converts a text, where LATIN1 is what it "
        "is in."
    )
    assert own.notes[1].startswith("The end of the text is held out")
    assert own.source == f"The trainer's own texts, 4 files in {tmp_path.name}"


def test_what_training_writes_is_no_text_to_learn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--text .`, with `runs` in it: else the run that goes on would find another text than its own."""
    write_folder(tmp_path, {"tale.txt": 500, "notes/runs/of-a-river.txt": 500})
    monkeypatch.chdir(tmp_path)
    before = read_own_text(tmp_path, Path("runs"))
    write_folder(tmp_path, {"runs/tale/log.jsonl": 100})
    assert read_own_text(tmp_path, Path("runs")) == before
    assert "of-a-river" in before.training


def test_of_many_files_whole_ones_are_held_out(tmp_path: Path) -> None:
    """Half a story would help with the other half: each is in exactly one part, and a twentieth is there."""
    dice = random.Random(0)
    texts = write_folder(
        tmp_path, {f"story-{number:02d}.txt": dice.randrange(50, 150) for number in range(60)}
    )
    own = read_own_text(tmp_path, RUNS)
    parts = [set(part.split("\n\n")) for part in (own.training, own.validation, own.heldout)]
    assert parts[0] | parts[1] | parts[2] == set(texts.values())
    assert sum(map(len, parts)) == 60
    characters = sum(map(len, texts.values()))
    for part in parts[1:]:
        assert 0.05 <= sum(map(len, part)) / characters < 0.15
    (how,) = own.notes
    named = how.partition("Held out whole: ")[2].partition(". For validation")[0].split(", ")
    assert parts[2] == {texts[name] for name in named}
    assert read_own_text(tmp_path, RUNS) == own


def test_one_large_file_among_small_ones_is_learned_from(tmp_path: Path) -> None:
    """Held out whole it would be missed; the small ones are too little to measure on."""
    texts = write_folder(tmp_path, {"novel.txt": 100_000, **{f"note-{number}": 20 for number in range(20)}})
    own = read_own_text(tmp_path, RUNS)
    assert len(own.training) > 0.89 * sum(map(len, texts.values()))
    assert own.notes == (
        "The end of the text is held out: 21 files, of which too few have at most 10% of the text each to "
        "hold out whole ones.",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good until here \xff" * 10, r"is no UTF-8: byte 16 is 0xff\. `iconv -f LATIN1 "),
        ("no BOM, but UTF-16".encode("utf-16-le"), "byte 1 is NUL"),
        (b"", r"own\.txt is empty"),
        (b"short", "too short to hold a part of it out: 5 characters"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    """Which byte, and what to do."""
    path = tmp_path / "own.txt"
    path.write_bytes(content)
    with pytest.raises(TrainingFailed, match=message):
        read_own_text(path, RUNS)


def test_a_text_that_is_not_there_is_told(tmp_path: Path) -> None:
    """With its path, which is most often mistyped."""
    with pytest.raises(TrainingFailed, match=r"nowhere\.txt cannot be read: No such file or directory\.$"):
        read_own_text(tmp_path / "nowhere.txt", RUNS)


def test_a_folder_without_text_says_what_was_left_out(tmp_path: Path) -> None:
    """Seven pictures are no text; five names are enough to know where one is."""
    for number in range(7):
        (tmp_path / f"{number}.jpg").write_bytes(b"\xff\xd8\xff\x00")
    with pytest.raises(
        TrainingFailed, match=r"holds no text\. Left out, .*: 0\.jpg .*, 4\.jpg \(.*\) and 2 more\."
    ):
        read_own_text(tmp_path, RUNS)


def test_a_text_too_long_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count together; whoever names the wrong folder must not wait for the memory to fill."""
    monkeypatch.setattr(own_text, "TEXT_BYTES_MAX", 1000)
    write_folder(tmp_path, {"a": 600, "b": 600})
    with pytest.raises(TrainingFailed, match=r"too long: with .*b it has more than"):
        read_own_text(tmp_path, RUNS)


def test_bpe_is_learned_from_the_training_text_alone(tmp_path: Path) -> None:
    """What is held out must not leak into the vocabulary; its bits count per character all the same."""
    path = tmp_path / "own.txt"
    path.write_text("ein König " * 900 + "zzyzx " * 167, encoding="utf-8")
    splits = load_splits(Data(text=path, tokenizer="bpe", vocabulary_size=280), tmp_path)
    assert splits.tokenizer == BpeTokenizer.of(splits.training.text, 280)
    assert "zzyzx" not in splits.training.text
    (heldout,) = splits.heldout
    assert heldout.tokens_per_character > 0.8  # no merge knows it
    assert splits.training.tokens_per_character < 0.35
    decoder = splits.tokenizer.decoder()
    assert decoder.feed(heldout.ids.tolist()) + decoder.finish() == heldout.text


def test_a_text_needs_no_recipe(tmp_path: Path) -> None:
    """`cellstream train --text "My Tale (2).txt"`: the model is called after it; changes count too."""
    text = tmp_path / "My Tale (2).txt"
    recipe = load_recipe(None, {"model.layers": 1}, text=text)
    assert recipe.name == "my-tale-2"
    assert recipe.data.text == text
    assert (recipe.model.layers, recipe.model.cell) == (1, "lstm")
    assert (recipe.data.tokenizer, recipe.training.patience) == ("bytes", 6)


def test_a_text_replaces_the_data_of_a_recipe(recipe_path: Path, tmp_path: Path) -> None:
    """All but the tokeniser; the path is from where one stands, not from the recipe."""
    changed = recipe_path.read_text().replace(
        'text = "tale.txt"', 'text = "tale.txt"\ntokenizer = "characters"'
    )
    recipe_path.write_text(changed)
    other = tmp_path / "other.txt"
    recipe = load_recipe(recipe_path, text=other)
    assert (recipe.name, recipe.data.text, recipe.data.tokenizer) == ("tale", other, "characters")
    shipped = Path(__file__).parents[2] / "models" / "shakespeare-lstm" / "recipe.toml"
    assert load_recipe(shipped, text=other).data == Data(text=other)


def test_neither_recipe_nor_text_is_refused() -> None:
    """There is nothing to train on."""
    with pytest.raises(RecipeInvalid, match="found neither"):
        load_recipe(None)


@pytest.mark.parametrize(
    ("words", "name"),
    [("War and Peace", "war-and-peace"), ("__init__", "init"), ("日本", "own-text"), ("A" * 80, "a" * 64)],
)
def test_any_name_of_a_file_becomes_a_models(words: str, name: str) -> None:
    """One that a recipe may have."""
    assert model_name(words) == name
