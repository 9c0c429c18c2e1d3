"""What a line is worth in bits, and how it looks."""

import math

import numpy as np
import pytest

from cellstream.cli.console import visible
from cellstream.cli.views import bits_by_character


def test_the_bits_of_a_character_are_those_of_its_bytes_together() -> None:
    """A model of bytes hears é as two tokens; a person reads one character."""
    bits = np.array([1, 2, 3, 4, 5, 6, 7, 8], dtype=np.float32)
    assert bits_by_character("aé€b"[:3], bits[:6]).tolist() == [1, 2 + 3, 4 + 5 + 6]
    assert bits_by_character("é🙂b", np.arange(7, dtype=np.float32)).tolist() == [1, 2 + 3 + 4 + 5, 6]


def test_a_model_of_characters_gives_each_its_own() -> None:
    """As many tokens as characters: nothing to add up."""
    assert bits_by_character("né", np.array([1, 2], dtype=np.float32)).tolist() == [1, 2]


def test_other_tokens_share_their_sum() -> None:
    """Whatever the tokeniser, the line's total is the sum of its tokens."""
    assert bits_by_character("naïve", np.array([4, 6], dtype=np.float32)).tolist() == [2] * 5


def test_a_sessions_first_character_has_no_surprise() -> None:
    """Nothing came before it, so nothing was expected: NaN, as on the wire, for all of its bytes."""
    bits = bits_by_character("éa", np.array([math.nan, 2, 3], dtype=np.float32))
    assert np.isnan(bits[0])
    assert bits[1] == 3


def test_a_first_token_of_several_characters_takes_no_other_with_it() -> None:
    """Of BPE tokens nobody knows whose characters are whose: the line keeps what its other tokens came to."""
    bits = bits_by_character("Once upon", np.array([math.nan, 6, 12], dtype=np.float32))
    assert bits.tolist() == [2] * 9
    assert np.isnan(bits_by_character("Once", np.array([math.nan], dtype=np.float32))).all()


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain ü 🙂", "plain ü 🙂"), ("a\tb", "a\tb"), ("\x1b[2J", "␛[2J"), ("\r\x07", "␍␇"), ("\u200e", "·")],
)
def test_nothing_from_the_input_steers_the_terminal(text: str, shown: str) -> None:
    """A log line may hold an escape that clears the screen, or worse."""
    assert visible(text) == shown
