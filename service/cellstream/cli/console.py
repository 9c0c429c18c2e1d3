"""Where commands print: answers on standard output, everything said about them on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_PIPED_WIDTH = 1000
"""Columns where nobody looks: what reads a pipe wants whole lines."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # rich calls this while it handles the error; how a command then ends, its group says


def console(*, stderr: bool = False) -> Console:
    """A console that colours for a person and writes plain whole lines into a pipe."""
    stream = sys.stderr if stderr else sys.stdout
    return _Console(
        file=stream, stderr=stderr, highlight=False, width=None if stream.isatty() else _PIPED_WIDTH
    )


def complain(message: str, reason: str = "") -> None:
    """Tell on standard error why a command failed."""
    told = f" [dim]({reason})[/dim]" if reason else ""
    console(stderr=True).print(f"[bold red]Error:[/bold red] {escape(message)}{told}", soft_wrap=True)


def note(message: str) -> None:
    """Tell something beside the answer, on standard error; `message` may have rich's markup."""
    console(stderr=True).print(message, soft_wrap=True)


def count(number: int, noun: str) -> str:
    """`1 line`, `2,000 lines`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def visible(text: str) -> str:
    """Text with a sign for what cannot be seen, or what would steer the terminal."""
    return "".join(map(_sign, text))


def _sign(character: str) -> str:
    if character.isprintable() or character == "\t":
        return character
    if character == "\n":
        return "↵"
    return chr(0x2400 + ord(character)) if character < " " else "·"


def print_json(value: Any, *, stderr: bool = False) -> None:
    """Print one value on one line, for programs, at once."""
    print(json.dumps(value, ensure_ascii=False), file=sys.stderr if stderr else sys.stdout, flush=True)


def print_table(headings: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print rows under headings, columns as wide as they must be; numbers stand to the right."""
    lines = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, heading in enumerate(headings):
        numbers = all(isinstance(line[column], int | float) for line in lines)
        table.add_column(heading, justify="right" if lines and numbers else "left", overflow="fold")
    for line in lines:
        table.add_row(*(escape(str(cell)) for cell in line))
    console().print(table)
