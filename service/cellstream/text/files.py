"""`tokenizer.json`: which tokeniser a model was trained with."""

from __future__ import annotations

import json
from pathlib import Path

from cellstream.errors import ModelFileMissing, TokenizerInvalid
from cellstream.text.bpe_tokenizer import BpeTokenizer
from cellstream.text.byte_tokenizer import ByteTokenizer
from cellstream.text.character_tokenizer import CharacterTokenizer
from cellstream.text.tokenizer import Tokenizer


def tokenizer_from_json(text: str) -> Tokenizer:
    """Read what a tokeniser's `to_json` wrote.

    Raises:
        TokenizerInvalid: It is not JSON, or no tokeniser that this version knows.
        ExtraMissing: It is BPE, and the package `tokenizers` is not installed.
    """
    try:
        match json.loads(text):
            case {"format": 1, "kind": ByteTokenizer.kind}:
                return ByteTokenizer()
            case {"format": 1, "kind": CharacterTokenizer.kind, "characters": str(characters)}:
                return CharacterTokenizer(characters)
            case {"version": str(), "model": {"type": "BPE"}}:  # the file of `tokenizers`, not one of ours
                return BpeTokenizer(text)
            case other:
                found = f"{other!r:.100}"
    except ValueError as error:
        found = str(error)
    raise TokenizerInvalid(
        "tokenizer.json: expected format 1 of kind bytes, or of kind characters with its characters, or "
        f"byte-level BPE as Hugging Face's tokenizers writes it; found {found}."
    )


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokeniser's file.

    Raises:
        ModelFileMissing: The file is not there.
        TokenizerInvalid: It holds no tokeniser that this version knows.
        ExtraMissing: It is BPE, and the package `tokenizers` is not installed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelFileMissing(f"{path} is not there; the model's tokeniser should be in it.") from None
    except UnicodeDecodeError as error:
        raise TokenizerInvalid(f"{path}: expected UTF-8, found {error}.") from None
    return tokenizer_from_json(text)
