"""What every tokeniser can do, and how one character is shown to people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Decoder(Protocol):
    """Turns a stream of tokens into text, piece by piece; one for each stream.

    The pieces joined are the text of all tokens together, however they were cut. A piece never ends within
    a character: what is not whole yet waits for the next `feed`, or for `finish`.
    """

    def feed(self, ids: Iterable[int]) -> str:
        """Give the characters that these tokens complete; may be empty.

        Args:
            ids: Token ids of the tokeniser's vocabulary, in order.
        """
        ...

    def finish(self) -> str:
        """Give what still waits, a character that will never be whole as U+FFFD, and start anew."""
        ...


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def vocabulary_size(self) -> int:
        """How many tokens there are; ids run from 0 to one below."""
        ...

    @property
    def token_characters_max(self) -> int:
        """No token stands for more characters: a longer text has more tokens than one over this."""
        ...

    def encode(self, text: str) -> list[int]:
        """Give the tokens of a text.

        Raises:
            TextNotEncodable: A character has no token; `values` holds its `place` and the `character`.
        """
        ...

    def decoder(self) -> Decoder:
        """Start the decoding of one stream of tokens."""
        ...

    def token_label(self, token_id: int) -> str:
        """Show one token to people: never empty, one line, printable."""
        ...

    def to_json(self) -> str:
        """Write it as `tokenizer.json` holds it; `tokenizer_from_json` reads it back."""
        ...


def character_label(character: str) -> str:
    r"""Show one character to people: itself where it can be seen, `␣` for a space, else an escape: `\n`."""
    if character == " ":
        return "␣"
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
