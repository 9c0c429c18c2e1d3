"""Text to tokens and back, for all tokenisers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from cellstream.errors import ExtraMissing, ModelFileMissing, TextNotEncodable, TokenizerInvalid
from cellstream.text import (
    BpeTokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    Tokenizer,
    load_tokenizer,
    tokenizer_from_json,
)

ALPHABET = "aé€😀\n \u0301\x00"
TALE = "Es war einmal, vor langer Zeit: ein König 😀 und sein 👩‍👧 Kind. " * 20
BPE = BpeTokenizer.of(TALE + ALPHABET, vocabulary_size=300)
TOKENIZERS = [
    pytest.param(ByteTokenizer(), id="bytes"),
    pytest.param(CharacterTokenizer.of(ALPHABET), id="characters"),
    pytest.param(BPE, id="bpe"),
]
texts = st.text(alphabet=st.sampled_from(ALPHABET), max_size=20)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(data=st.data())
def test_any_cut_decodes_to_the_text_and_never_within_a_character(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    """A stream is cut anywhere; whoever prints the pieces must see the text and nothing else."""
    text = data.draw(texts)
    ids = tokenizer.encode(text)
    assert all(0 <= token_id < tokenizer.vocabulary_size for token_id in ids)
    decoder, printed, at = tokenizer.decoder(), "", 0
    while at < len(ids):
        step = data.draw(st.integers(1, 3))
        printed += decoder.feed(ids[at : at + step])
        at += step
        assert text.startswith(printed)
    assert printed + decoder.finish() == text
    assert len(ids) * tokenizer.token_characters_max >= len(text)


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_bytes_take_all_text(text: str) -> None:
    """The shipped models refuse no text, and their tokens are those of UTF-8."""
    assert bytes(ByteTokenizer().encode(text)) == text.encode()


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_bpe_takes_all_text_and_agrees_with_its_library(text: str) -> None:
    """Characters that its text never had are there by their bytes; the library decodes the same."""
    ids = BPE.encode(text)
    decoder = BPE.decoder()
    assert decoder.feed(ids) + decoder.finish() == text
    assert tokenizers.Tokenizer.from_str(BPE.to_json()).decode(ids) == text


def test_an_emoji_in_several_tokens_comes_out_whole() -> None:
    """Its bytes arrive one by one; a client must never see half of it."""
    ids = BPE.encode("\U0001f98a")  # a fox, which the text had not
    assert len(ids) > 1
    decoder = BPE.decoder()
    assert [decoder.feed([token_id]) for token_id in ids] == [""] * (len(ids) - 1) + ["\U0001f98a"]
    assert decoder.finish() == ""
    decoder.feed(ids[:-1])
    assert decoder.finish() == "\ufffd"


def test_merges_are_the_commonest_pairs() -> None:
    """By hand: of `abab abab abab` the pair a b is merged first, then ab ab; bytes keep their ids apart."""
    tokenizer = BpeTokenizer.of("abab abab abab", vocabulary_size=258)
    assert tokenizer.vocabulary_size == 258
    assert [tokenizer.token_label(token_id) for token_id in tokenizer.encode("ababab")] == ["abab", "ab"]


def test_a_text_without_more_pairs_makes_a_smaller_vocabulary() -> None:
    """A merge of what comes once would learn the text by heart."""
    assert BpeTokenizer.of("abcdefg", vocabulary_size=300).vocabulary_size == 256


def test_a_long_ruler_makes_no_token_of_its_own() -> None:
    """The longest token bounds how much text a server looks at before it refuses it."""
    tokenizer = BpeTokenizer.of(("-" * 1000 + "\n") * 20, vocabulary_size=300)
    assert tokenizer.token_characters_max <= 32


def test_the_same_text_makes_the_same_vocabulary() -> None:
    """A run goes on only with the tokens that it began with."""
    assert BpeTokenizer.of(TALE, 300) == BpeTokenizer.of(TALE, 300) != BpeTokenizer.of(TALE, 299)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "expected no normalizer"),
        ({"truncation": {"max_length": 9}}, "expected no truncation"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "expected byte-level BPE"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "expected byte-level BPE"),
        ({"added_tokens": [{"id": 0, "content": "<s>"}]}, "expected byte-level BPE"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "255 have none"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 7}, "merges": []}}, "without a gap"),
        ({"model": {"type": "BPE", "vocab": {"日": 0}, "merges": []}}, "byte-level BPE, found one with '日'"),
        ({"model": {"type": "BPE", "vocab": 7}}, "tokenizer.json"),
    ],
)
def test_a_bpe_that_would_not_give_text_back_is_refused(change: dict[str, object], message: str) -> None:
    """Other people's files are welcome if they lose nothing; else the server says why not."""
    with pytest.raises(TokenizerInvalid, match=message):
        tokenizer_from_json(json.dumps(json.loads(BPE.to_json()) | change))


@pytest.mark.parametrize(
    ("part", "value", "none"),
    [("dropout", 0.1, 0.0), ("end_of_word_suffix", "</w>", ""), ("continuing_subword_prefix", "##", "")],
)
def test_a_bpe_whose_tokens_are_left_to_chance_is_refused(part: str, value: object, none: object) -> None:
    """With dropout, the same text sent twice has other tokens: a session that is resumed would not agree."""
    content = json.loads(BPE.to_json())
    content["model"][part] = value
    with pytest.raises(TokenizerInvalid, match=rf"expected no model\.{part}"):
        tokenizer_from_json(json.dumps(content))
    content["model"][part] = none
    assert tokenizer_from_json(json.dumps(content)).encode(TALE) == BPE.encode(TALE)


def test_without_the_library_the_message_says_what_to_install(tmp_path: Path) -> None:
    """Bytes need it not; BPE says which pip install."""
    (tmp_path / "tokenizer.json").write_text(BPE.to_json(), encoding="utf-8")
    code = f"""
import sys
sys.modules["tokenizers"] = None  # as Python marks what is not there
from pathlib import Path
from cellstream.errors import ExtraMissing
from cellstream.text import ByteTokenizer, load_tokenizer
assert ByteTokenizer().encode("a") == [97]
try:
    load_tokenizer(Path({str(tmp_path / "tokenizer.json")!r}))
except {ExtraMissing.__name__} as error:
    print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "pip install 'cellstream[serve]' to serve" in done.stdout


@given(content=st.binary(max_size=30))
def test_bytes_that_are_no_text_come_out_as_replacement_characters(content: bytes) -> None:
    """A model may make any bytes; they neither raise nor vanish. Decoding them whole is the measure."""
    decoder = ByteTokenizer().decoder()
    pieces = "".join(decoder.feed([byte]) for byte in content)
    assert pieces + decoder.finish() == content.decode("utf-8", errors="replace")


def test_a_finished_decoder_starts_anew() -> None:
    """Half a character of one generation must not reach the next."""
    decoder = ByteTokenizer().decoder()
    assert decoder.feed([0xE2, 0x82]) == ""
    assert decoder.finish() == "\ufffd"
    assert decoder.feed([0xAC, 0x41]) == "\ufffdA"
    assert decoder.finish() == ""


def test_characters_are_numbered_in_the_order_of_unicode() -> None:
    """The same text makes the same vocabulary on every machine."""
    tokenizer = CharacterTokenizer.of("banana!")
    assert tokenizer.encode("!abn") == [0, 1, 2, 3]
    assert tokenizer.vocabulary_size == 4


def test_an_unknown_character_is_named() -> None:
    """The user must find it in a long text: which one, and where."""
    with pytest.raises(TextNotEncodable, match="Character 3 of the text, ü, is none of the 3") as caught:
        CharacterTokenizer.of("abc").encode("abcüx")
    assert caught.value.values["character"] == "ü"


def test_half_a_surrogate_pair_is_named() -> None:
    """Python strings may hold what UTF-8 cannot; its label is printable all the same."""
    with pytest.raises(TextNotEncodable, match="Character 1 ") as caught:
        ByteTokenizer().encode("a\ud800")
    assert caught.value.values["character"] == "\\ud800"
    with pytest.raises(TextNotEncodable, match="Character 1 "):
        BPE.encode("a\ud800")


@pytest.mark.parametrize("characters", ["", "abca"])
def test_an_alphabet_without_or_with_double_characters_is_refused(characters: str) -> None:
    """Two ids for one character would make encoding ambiguous."""
    with pytest.raises(ValueError, match="alphabet"):
        CharacterTokenizer(characters)


@pytest.mark.parametrize(
    ("token_id", "label"),
    [(0x41, "A"), (0x20, "␣"), (0x0A, "\\n"), (0x00, "\\x00"), (0x7F, "\\x7f"), (0xE2, "\\xe2")],
)
def test_every_byte_can_be_shown(token_id: int, label: str) -> None:
    """Predictions are printed for people: a newline must not break their table."""
    assert ByteTokenizer().token_label(token_id) == label


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_labels_are_printable_and_distinct(tokenizer: Tokenizer) -> None:
    """Whoever reads a table of predictions can tell its rows apart."""
    labels = [tokenizer.token_label(token_id) for token_id in range(tokenizer.vocabulary_size)]
    assert all(label and label.isprintable() for label in labels)
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_tokenizer_survives_its_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Serving must read text as training did."""
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    loaded = load_tokenizer(path)
    assert loaded == tokenizer
    assert hash(loaded) == hash(tokenizer)
    assert loaded.encode(ALPHABET) == tokenizer.encode(ALPHABET)
    assert repr(loaded) == repr(tokenizer)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": 2, "kind": "bytes"}',
        '{"format": 1, "kind": "words"}',
        '{"format": 1, "kind": "characters"}',
        '{"format": 1, "kind": "characters", "characters": "aa"}',
        '{"format": 1, "kind": "characters", "characters": 7}',
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(text: str) -> None:
    """A wrong tokeniser would answer with nonsense; better not to serve."""
    with pytest.raises(TokenizerInvalid, match=r"tokenizer\.json: expected format 1"):
        tokenizer_from_json(text)


def test_a_missing_or_undecodable_file_is_named(tmp_path: Path) -> None:
    """The message says which file, so that it can be put back."""
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ModelFileMissing, match=r"tokenizer\.json is not there"):
        load_tokenizer(path)
    path.write_bytes(b"\xff")
    with pytest.raises(TokenizerInvalid, match=r"tokenizer\.json: expected UTF-8"):
        load_tokenizer(path)


def test_text_needs_nothing_heavy() -> None:
    """It serves: PyTorch and the ONNX packages stay out, and `tokenizers` until a model needs it."""
    heavy = {"torch", "onnx", "onnxruntime", "tokenizers"}
    code = f"import sys, cellstream.text; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
