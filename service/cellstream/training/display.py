"""How training is seen while it runs: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LINE_SECONDS = 10.0
"""Between two plain lines: a log of five minutes has thirty of them."""


class Display:
    """Shows how far training is.

    Args:
        console: Where.
        name: The model's name.
        clock: Seconds; for the pace of plain lines.
    """

    def __init__(self, console: Console, name: str, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._line_due = clock()
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f}%  {task.fields[line]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(name, total=1.0, line="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, *, spent: float, nats: float, bits: float, tokens: int, seconds: float) -> None:
        """Show where training is.

        Args:
            spent: Share of the budget, 0 to 1.
            nats: Loss of late, a token.
            bits: The same in bits, a character.
            tokens: Learned from so far.
            seconds: Since the beginning.
        """
        line = f"loss {nats:.3f}  {bits:.3f} bits/character"
        if spent:  # before, there is no pace to go by
            line += f"  {tokens / seconds:,.0f} tokens/s  {_minutes(seconds * (1 - spent) / spent)} left"
        self._progress.update(self._task, completed=spent, line=line)
        if not self._console.is_terminal and self._clock() >= self._line_due:
            self._line_due = self._clock() + LINE_SECONDS
            self.say(f"{spent:4.0%}  {line}")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
