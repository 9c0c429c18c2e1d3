"""A token is a run of bytes that one text has often: byte-level BPE, by Hugging Face's `tokenizers`.

Sennrich et al. (2016) begin with characters and merge the commonest pair, again and again; GPT-2 (Radford et
al., 2019) begins with the 256 bytes, so that no text is refused. `tokenizer.json` is the library's own file:
whatever reads such files reads it too. The library is needed to encode; it is imported when such a tokeniser
is made, so that models of bytes and characters do without. Tokens become text by their bytes alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cellstream.errors import ExtraMissing
from cellstream.text.byte_tokenizer import ByteDecoder, utf8
from cellstream.text.tokenizer import Decoder, character_label

if TYPE_CHECKING:
    import tokenizers

VOCABULARY_SIZE_MIN = 257
"""The bytes, and one merge: with fewer it is the bytes tokeniser."""

TOKEN_BYTES_MAX = 32
"""Of one token: a ruler of a thousand dashes in the text must not become one."""

_PLAIN = ("truncation", "padding", "normalizer", "post_processor")
"""Parts of the library's file that would change a text or add to it: tokens would no longer give it back."""

_MODEL_PLAIN = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
"""Parts of its model that would give the same text other tokens each time, or lose the end of a word."""


class BpeTokenizer:
    """Runs of bytes as tokens.

    Args:
        text: The library's file: byte-level BPE that holds all bytes, and nothing that changes a text or
            leaves its tokens to chance.

    Raises:
        ValueError: It is not that.
        ExtraMissing: The library is not installed.
    """

    kind = "bpe"

    def __init__(self, text: str) -> None:
        _check(json.loads(text))
        library = _library()
        try:
            self._inner: tokenizers.Tokenizer = library.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(str(error)) from None
        vocabulary = self._inner.get_vocab()
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise ValueError("expected ids from 0 without a gap")
        try:
            self._bytes = [
                bytes(_BYTES[character] for character in token)
                for token in sorted(vocabulary, key=vocabulary.__getitem__)
            ]
        except KeyError as error:
            raise ValueError(f"expected tokens of byte-level BPE, found one with {error.args[0]!r}") from None
        if missing := 256 - len({token for token in self._bytes if len(token) == 1}):
            raise ValueError(f"expected a token for each byte; {missing} have none")
        self._longest = max(map(len, self._bytes))

    @classmethod
    def of(cls, text: str, vocabulary_size: int) -> BpeTokenizer:
        """Learn the vocabulary of a text; the same text gives the same vocabulary.

        Args:
            text: What is merged.
            vocabulary_size: How many tokens, from `VOCABULARY_SIZE_MIN`; fewer if the text has no more pairs
                that occur twice.

        Raises:
            TextNotEncodable: The text holds half of a surrogate pair.
            ExtraMissing: The library is not installed.
        """
        utf8(text)
        library = _library()
        inner = library.Tokenizer(library.models.BPE())
        # No space is put before a text: a feed may end within a word, and the next go on with it.
        inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            min_frequency=2,
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=TOKEN_BYTES_MAX,
            show_progress=False,
        )
        inner.train_from_iterator([text], trainer)
        return cls(inner.to_str())

    @property
    def vocabulary_size(self) -> int:
        """How many tokens there are, the 256 bytes among them."""
        return len(self._bytes)

    @property
    def token_characters_max(self) -> int:
        """A character has one byte at least."""
        return self._longest

    def encode(self, text: str) -> list[int]:
        """Give the tokens of a text, on its own: cut elsewhere, the same text has other tokens.

        Raises:
            TextNotEncodable: It holds half of a surrogate pair, which UTF-8 has no bytes for.
        """
        utf8(text)
        return self._inner.encode(text).ids

    def decoder(self) -> Decoder:
        """Start the decoding of one stream of tokens, whose bytes may end within a character."""
        return _BpeDecoder(self._bytes)

    def token_label(self, token_id: int) -> str:
        r"""Show one token: its characters as other tokenisers show them, bytes of no character as `\xNN`."""
        return "".join(map(character_label, self._bytes[token_id].decode("utf-8", errors="backslashreplace")))

    def to_json(self) -> str:
        """Write it as `tokenizer.json` holds it: as the library writes it."""
        return self._inner.to_str() + "\n"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BpeTokenizer) and other.to_json() == self.to_json()

    def __hash__(self) -> int:
        return hash(tuple(self._bytes))

    def __repr__(self) -> str:
        return f"<BpeTokenizer: {self.vocabulary_size} runs of bytes>"


class _BpeDecoder:
    """The bytes of the tokens, as the bytes tokeniser decodes them."""

    def __init__(self, runs: list[bytes]) -> None:
        self._runs = runs
        self._bytes = ByteDecoder()

    def feed(self, ids: Iterable[int]) -> str:
        return self._bytes.feed(b"".join(self._runs[token_id] for token_id in ids))

    def finish(self) -> str:
        return self._bytes.finish()


def _check(content: Any) -> None:
    """See that encoding loses nothing, by what the library's file says of itself."""
    match content:
        case {
            "model": {"type": "BPE"} as model,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
            "added_tokens": [],
        }:
            found = [name for name in _PLAIN if content.get(name) is not None]
            found += [f"model.{name}" for name in _MODEL_PLAIN if model.get(name)]  # 0 and "" are none too
            if found:
                raise ValueError(f"expected no {', '.join(found)}")
        case _:
            raise ValueError(
                "expected byte-level BPE without a space before the text and without added tokens"
            )


def _byte_characters() -> dict[str, int]:
    """The byte behind each character of the library's tokens, as GPT-2 chose them.

    What can be seen in Latin-1 stands for itself, the other bytes in their order from U+0100 on.
    """
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_characters()


def _library() -> Any:
    """The library; it has types, but its submodules are to be had by attribute only where it is there."""
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise ExtraMissing(
            "A BPE tokeniser needs the package tokenizers, which is not installed: pip install "
            "'cellstream[serve]' to serve, or 'cellstream[train]' to train.",
            extra="serve",
        ) from None
    return tokenizers
