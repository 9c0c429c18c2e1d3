"""What can be true of a place in a play: counts and facts, from the text alone.

Each holds *after* the character at the place was read. Most look back only; `left_in_line` and facts about
a whole match (a name, the first word, a question) also look ahead: what no reader knows, a good one guesses.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

NAME = re.compile(r"^[A-Z][A-Z ']+\.$", re.MULTILINE)
"""A speaker's name, on a line of its own: `ANTONY.`, `FIRST CITIZEN.`"""

DIRECTION = re.compile(r"\[[^\]]*\]")
"""A stage direction: `[Exit.]`"""

Count = NDArray[np.float32]
Truth = NDArray[np.bool_]


def since(text: str, marks: str) -> Count:
    """Characters since the last of these marks, or since the beginning; 0 at the mark itself."""
    at_mark = np.isin(list(text), list(marks))
    places = np.arange(len(text))
    last = np.maximum.accumulate(np.where(at_mark, places, -1))
    return (places - last).astype(np.float32)


def line_length(text: str) -> Count:
    """Characters in the line so far."""
    return since(text, "\n")


def left_in_line(text: str) -> Count:
    """Characters until the line ends."""
    return since(text[::-1], "\n")[::-1].copy()


def word_length(text: str) -> Count:
    """Characters in the word so far."""
    outside = "".join(sorted({character for character in text if not character.isalpha()}))
    return since(text, outside)


def sentence_length(text: str) -> Count:
    """Characters since the last full stop, question mark or exclamation mark."""
    return since(text, ".?!")


def speech_length(text: str) -> Count:
    """Characters since a speaker's name ended, up to 500: behind that, nobody counts."""
    return np.minimum(since(mark(NAME, text), "\0"), 500)


def mark(pattern: re.Pattern[str], text: str) -> str:
    """The text with a zero in place of the last character of each match."""
    return pattern.sub(lambda found: found[0][:-1] + "\0", text)


def inside(pattern: re.Pattern[str], text: str) -> Truth:
    """Whether a place lies in a match; not at its last character, which ends it."""
    found = np.zeros(len(text), bool)
    for one in pattern.finditer(text):
        found[one.start() : one.end() - 1] = True
    return found


def in_name(text: str) -> Truth:
    """Inside a speaker's name."""
    return inside(NAME, text)


def in_direction(text: str) -> Truth:
    """Inside a stage direction."""
    return inside(DIRECTION, text)


def in_word(text: str) -> Truth:
    """Inside a word, behind its first letter."""
    return word_length(text) > 1


def in_first_word(text: str) -> Truth:
    """Inside the first word of a line."""
    return inside(re.compile(r"^[A-Za-z']+[^A-Za-z'\n]", re.MULTILINE), text)


def in_question(text: str) -> Truth:
    """Inside a question that began with a word that asks: who, what, where, why, how..."""
    asks = r"\b(?:Who|What|Where|Why|How|When|Which|Is|Are|Do|Did|Will|Shall|Wherefore)\b[^.?!]*\?"
    return inside(re.compile(asks), text)


COUNTS: dict[str, Callable[[str], Count]] = {
    "characters in the line so far": line_length,
    "characters until the line ends": left_in_line,
    "characters in the word so far": word_length,
    "characters in the sentence so far": sentence_length,
    "characters in the speech so far": speech_length,
}
"""Scored by |r|."""

FACTS: dict[str, Callable[[str], Truth]] = {
    "inside a speaker's NAME": in_name,
    "inside a [stage direction]": in_direction,
    "inside a word": in_word,
    "inside the first word of a line": in_first_word,
    "inside a question": in_question,
}
"""Scored by the area under the ROC curve, or 1 minus it for a cell that goes down."""
