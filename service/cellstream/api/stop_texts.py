"""Where generated text ends: what may be the beginning of a stop text is held back until it is known."""

from __future__ import annotations


class StopTexts:
    """Holds back text that may turn out to be the beginning of a stop text, with the tokens that made it.

    Args:
        stops: The texts; without any, nothing is held back.
    """

    def __init__(self, stops: list[str]) -> None:
        self._stops = stops
        self._text = ""
        self._ends: list[tuple[int, int]] = []  # for each held token: its id, and where its text ends
        self._unfinished: list[int] = []  # the last tokens, whose character is not whole yet
        self.stopped = False

    def push(self, token: int, text: str) -> tuple[str, list[int]]:
        """Add a token and the characters that it completed.

        Returns:
            The text and tokens that can be sent: all before a stop text, or all that cannot begin one.
        """
        if not self._stops:
            return text, [token]
        if not text:
            self._unfinished.append(token)  # a stop text may begin with the character that it begins
            return "", []
        first = len(self._text) + 1
        self._text += text
        self._ends += [(unfinished, first) for unfinished in self._unfinished]
        self._ends.append((token, len(self._text)))
        self._unfinished.clear()
        found = [place for stop in self._stops if (place := self._text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found))
        return self._release(len(self._text) - self._may_begin_one())

    def finish(self, text: str) -> tuple[str, list[int]]:
        """The end came without a stop text: all that was held back, and what is left of a character."""
        rest = self._text + text, [*(token for token, _ in self._ends), *self._unfinished]
        self._text, self._ends, self._unfinished = "", [], []
        return rest

    def _may_begin_one(self) -> int:
        """The length of the longest end of the held text that begins a stop text."""
        most = min(len(self._text), max(map(len, self._stops)) - 1)
        return next(
            (
                length
                for length in range(most, 0, -1)
                if any(stop.startswith(self._text[-length:]) for stop in self._stops)
            ),
            0,
        )

    def _release(self, length: int) -> tuple[str, list[int]]:
        text, self._text = self._text[:length], self._text[length:]
        ids = [token for token, end in self._ends if end <= length]
        self._ends = [(token, end - length) for token, end in self._ends if end > length]
        return text, ids
