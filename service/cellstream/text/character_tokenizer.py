"""A token is a character of one text's alphabet; characters that the text did not have are refused."""

from __future__ import annotations

import json
from collections.abc import Iterable

from cellstream.errors import TextNotEncodable
from cellstream.text.tokenizer import Decoder, character_label


class CharacterTokenizer:
    """The characters of an alphabet as tokens.

    Args:
        characters: The alphabet, each character once; a character's place is its token id.

    Raises:
        ValueError: The alphabet is empty, or names a character twice.
    """

    kind = "characters"

    def __init__(self, characters: str) -> None:
        self._characters = characters
        self._ids = {character: token_id for token_id, character in enumerate(characters)}
        if not characters or len(self._ids) != len(characters):
            raise ValueError("an alphabet holds at least one character, and each of them once")

    @classmethod
    def of(cls, text: str) -> CharacterTokenizer:
        """Make the alphabet of a text: its distinct characters in the order of Unicode.

        Raises:
            ValueError: The text is empty.
        """
        return cls("".join(sorted(set(text))))

    @property
    def vocabulary_size(self) -> int:
        """How many characters the alphabet has."""
        return len(self._characters)

    @property
    def token_characters_max(self) -> int:
        """1."""
        return 1

    def encode(self, text: str) -> list[int]:
        """Give the ids of a text's characters.

        Raises:
            TextNotEncodable: A character is not in the alphabet.
        """
        ids = self._ids
        try:
            return [ids[character] for character in text]
        except KeyError as error:
            missing = error.args[0]
            place, label = text.index(missing), character_label(missing)
            raise TextNotEncodable(
                f"Character {place} of the text, {label}, is none of the {len(ids)} that the model knows.",
                place=place,
                character=label,
            ) from None

    def decoder(self) -> Decoder:
        """Start the decoding of one stream of characters."""
        return _CharacterDecoder(self._characters)

    def token_label(self, token_id: int) -> str:
        r"""Show one character: itself where it can be seen, `␣` for a space, else an escape like `\n`."""
        return character_label(self._characters[token_id])

    def to_json(self) -> str:
        """Write it as `tokenizer.json` holds it."""
        return json.dumps({"format": 1, "kind": self.kind, "characters": self._characters}, indent=2) + "\n"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharacterTokenizer) and other._characters == self._characters

    def __hash__(self) -> int:
        return hash(self._characters)

    def __repr__(self) -> str:
        return f"<CharacterTokenizer: {len(self._characters)} characters>"


class _CharacterDecoder:
    """Every token is a whole character, so that nothing ever waits."""

    def __init__(self, characters: str) -> None:
        self._characters = characters

    def feed(self, ids: Iterable[int]) -> str:
        return "".join(self._characters[token_id] for token_id in ids)

    def finish(self) -> str:
        return ""
