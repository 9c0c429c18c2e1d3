"""A token is a byte of UTF-8: no text is refused, and nothing has to be learned first."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable

from cellstream.errors import TextNotEncodable
from cellstream.text.tokenizer import Decoder, character_label


class ByteTokenizer:
    """The 256 bytes as tokens. The shipped models use it."""

    kind = "bytes"

    @property
    def vocabulary_size(self) -> int:
        """256."""
        return 256

    @property
    def token_characters_max(self) -> int:
        """1: a character has one byte at least."""
        return 1

    def encode(self, text: str) -> list[int]:
        """Give the bytes of a text.

        Raises:
            TextNotEncodable: It holds half of a surrogate pair, which UTF-8 has no bytes for.
        """
        return list(utf8(text))

    def decoder(self) -> Decoder:
        """Start the decoding of one stream of bytes."""
        return ByteDecoder()

    def token_label(self, token_id: int) -> str:
        r"""Show one byte: an ASCII character as itself, any other byte as `\xNN`."""
        return character_label(chr(token_id)) if token_id < 0x80 else f"\\x{token_id:02x}"

    def to_json(self) -> str:
        """Write it as `tokenizer.json` holds it."""
        return json.dumps({"format": 1, "kind": self.kind}, indent=2) + "\n"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByteTokenizer)

    def __hash__(self) -> int:
        return hash(self.kind)

    def __repr__(self) -> str:
        return "<ByteTokenizer: 256 bytes>"


class ByteDecoder:
    """Python's incremental UTF-8 decoder: bytes that are no character come out as U+FFFD."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, ids: Iterable[int]) -> str:
        """Give the characters that these bytes complete."""
        return self._utf8.decode(bytes(ids))

    def finish(self) -> str:
        """Give what still waits, as U+FFFD, and start anew."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def utf8(text: str) -> bytes:
    """Give the bytes of a text.

    Raises:
        TextNotEncodable: It holds half of a surrogate pair, which UTF-8 has no bytes for.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        character = character_label(text[error.start])
        raise TextNotEncodable(
            f"Character {error.start} of the text, {character}, is half of a surrogate pair: no UTF-8 text "
            "holds it.",
            place=error.start,
            character=character,
        ) from None
