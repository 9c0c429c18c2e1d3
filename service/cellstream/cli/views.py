"""The two ways in which `cellstream stream` looks at a line: what comes next, and how surprising it was."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from cellstream.cli.console import console, print_json, visible

if TYPE_CHECKING:
    from cellstream.client import AnswerOptions, Reply


@dataclass(frozen=True, slots=True)
class Sent:
    """What a session hears.

    Attributes:
        text: What is sent.
        shown: The line that is printed once the answer is there; None: nothing is.
    """

    text: str
    shown: str | None


class View(Protocol):
    """What is asked about lines, and how the answers are shown."""

    @property
    def answer(self) -> AnswerOptions:
        """What the session answers with."""

    @property
    def found(self) -> dict[str, float]:
        """What all lines together came to, by name."""

    def split(self, lines: AsyncIterator[str]) -> AsyncIterator[Sent]:
        """What is sent for these lines; the texts joined are the lines joined."""

    def show(self, line: str, reply: Reply) -> None:
        """Print a line with its answer."""


class Predictions:
    """After each line, what the model expects next.

    A line's end is sent with the line after it: what may follow a line's last letter tells more than what
    every next line may begin with.

    Args:
        top_k: How many likely tokens to print.
        bytewise: Whether tokens are bytes, so that an id says which character it is.
        as_json: Whether to print JSON.
    """

    def __init__(self, top_k: int, *, bytewise: bool, as_json: bool) -> None:
        self.answer: AnswerOptions = {"want": "last", "top_k": top_k}
        self.found: dict[str, float] = {}
        self._bytewise = bytewise
        self._as_json = as_json
        self._out = console()

    async def split(self, lines: AsyncIterator[str]) -> AsyncIterator[Sent]:
        """Each line with the line end before it."""
        end = ""
        async for line in lines:
            text = line.removesuffix("\n")
            if end + text:
                yield Sent(end + text, shown=text)
            end = line[len(text) :]
        if end:
            yield Sent(end, shown=None)

    def show(self, line: str, reply: Reply) -> None:
        """The line, then the likely tokens with their probabilities."""
        likely = zip(
            reply.top_ids[-1].tolist(), np.exp(reply.top_log_probabilities[-1]).tolist(), strict=True
        )
        if self._as_json:
            tokens = [
                {"id": token, "text": self._character(token), "probability": round(probability, 6)}
                for token, probability in likely
            ]
            print_json({"line": line, "position": reply.position, "next": tokens})
            return
        shown = Text(visible(line))
        shown.append("  →", "dim")
        for token, probability in likely:
            shown.append(f" {self._name(token)}", "bold")
            shown.append(f" {probability:.0%}", "dim")
        self._out.print(shown, soft_wrap=True)

    def _character(self, token: int) -> str | None:
        return chr(token) if self._bytewise and token < 128 else None

    def _name(self, token: int) -> str:
        character = self._character(token)
        if character is None:
            return f"\\x{token:02x}" if self._bytewise else f"#{token}"
        return {" ": "␣", "\n": "↵"}.get(character, visible(character))


class Scores:
    """How surprising each line was, and where.

    Args:
        as_json: Whether to print JSON.
    """

    HEADING = "    bits  /char"

    def __init__(self, *, as_json: bool) -> None:
        self.answer: AnswerOptions = {"want": "every_step", "top_k": 0, "score": True}
        self._as_json = as_json
        self._out = console()
        self._bits = 0.0
        self._characters = 0

    @property
    def found(self) -> dict[str, float]:
        """Bits, and bits a character; a session's very first character was expected by nobody."""
        each = self._bits / self._characters if self._characters else 0.0
        return {"bits": round(self._bits, 3), "bits_per_character": round(each, 4)}

    async def split(self, lines: AsyncIterator[str]) -> AsyncIterator[Sent]:
        """Each line as it is."""
        async for line in lines:
            yield Sent(line, shown=line)

    def show(self, line: str, reply: Reply) -> None:
        """The line's total, its bits a character, and the line with what stands out coloured."""
        surprise = bits_by_character(line, reply.surprise_bits)
        scored = surprise[~np.isnan(surprise)]
        bits, characters = float(scored.sum()), len(scored)
        each = bits / characters if characters else 0.0
        self._bits += bits
        self._characters += characters
        if self._as_json:
            print_json(
                {
                    "line": line,
                    "position": reply.position,
                    "bits": round(bits, 3),
                    "bits_per_character": round(each, 4),
                    "surprise": [None if math.isnan(bit) else round(bit, 2) for bit in surprise.tolist()],
                }
            )
            return
        shown = Text(f"{bits:8.1f} ")
        shown.append(f"{each:6.2f}", _style(each))
        shown.append(" │ ", "dim")
        for style, run in groupby(
            zip(line, map(_style, surprise.tolist()), strict=True), lambda pair: pair[1]
        ):
            text = "".join(character for character, _ in run)
            shown.append(visible(text if style else text.removesuffix("\n")), style)
        self._out.print(shown, soft_wrap=True)


def bits_by_character(text: str, bits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The surprise of each character.

    Args:
        text: What was fed.
        bits: The surprise of each token, that is, of each character or UTF-8 byte: float32 [tokens].

    Returns:
        float32 [characters]. Tokens that are neither share their sum evenly: the total stays true. A
        session's first token has no surprise and counts for none; nothing but it: NaN.
    """
    if len(bits) == len(text):
        return bits
    lengths = np.array([len(character.encode()) for character in text])
    if lengths.sum() == len(bits):
        return np.add.reduceat(bits, np.cumsum(lengths) - lengths)
    total = math.nan if np.isnan(bits).all() else float(np.nansum(bits))
    return np.full(len(text), total / len(text), dtype=np.float32)


def _style(bits: float) -> str:
    if bits >= 8:
        return "bold red"
    return "yellow" if bits >= 5 else ""
