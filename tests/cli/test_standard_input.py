"""Input comes in pieces of any size; lines and characters stay whole, and what is not text is counted."""

import asyncio
import os
from collections.abc import Iterable

import pytest

from cellstream.cli.standard_input import LINE_CHARACTERS_MAX, StandardInput


async def read(pieces: Iterable[bytes]) -> tuple[list[str], int]:
    """The lines, and the bad bytes, of an input that comes in these pieces."""
    ours, theirs = os.pipe()
    source = StandardInput(ours)

    async def write() -> None:
        for piece in pieces:
            os.write(theirs, piece)
            await asyncio.sleep(0)
        os.close(theirs)

    writing = asyncio.create_task(write())
    lines = [line async for line in source.lines()]
    await writing
    os.close(ours)
    return lines, source.bad_bytes


TEXT = "naïve 🙂 café\nλόγος\r\n\n\tend ¬"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_lines_and_characters_are_whole_however_the_bytes_come(size: int) -> None:
    """A pipe cuts where it likes, in the middle of a character too."""
    data = TEXT.encode()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert await read(pieces) == (["naïve 🙂 café\n", "λόγος\r\n", "\n", "\tend ¬"], 0)


@pytest.mark.parametrize("size", [1, 2, 5])
async def test_each_byte_that_is_not_utf8_is_counted(size: int) -> None:
    """The user has to learn that the model heard something else; one byte is one sign, one count."""
    data = b"a\xff\xfeb\n\xe2\x82c\n\xe2\x82\xac \xf0\x9f"
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    lines, bad = await read(pieces)
    assert lines == ["a\ufffd\ufffdb\n", "\ufffd\ufffdc\n", "€ \ufffd\ufffd"]
    assert bad == 6


async def test_a_line_is_there_before_the_next_one_is_written() -> None:
    """`tail -f` may write the next line tomorrow."""
    ours, theirs = os.pipe()
    lines = StandardInput(ours).lines()
    for line in ("one\n", "two\n"):
        os.write(theirs, line.encode())
        assert await asyncio.wait_for(anext(lines), 10) == line
    os.close(theirs)
    with pytest.raises(StopAsyncIteration):
        await anext(lines)
    os.close(ours)


async def test_long_lines_come_in_pieces_that_a_server_takes() -> None:
    """A minified file of one line is longer than any feed may be; nothing of it is lost."""
    text = "é" * (2 * LINE_CHARACTERS_MAX + 10) + "\nshort\n"
    lines, _ = await read([text.encode()])
    assert "".join(lines) == text
    assert [len(line) for line in lines] == [LINE_CHARACTERS_MAX, LINE_CHARACTERS_MAX, 11, 6]
    assert max(len(line.encode()) for line in lines) <= 16_384


async def test_nothing_gives_nothing() -> None:
    """An empty file is no error."""
    assert await read([]) == ([], 0)


async def test_what_cannot_be_read_says_why(tmp_path: os.PathLike[str]) -> None:
    """`cellstream stream < folder` is a slip that deserves an answer."""
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        await anext(StandardInput(folder).lines())
    os.close(folder)
