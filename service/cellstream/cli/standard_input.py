"""Standard input as lines of text, as they come, never half a character."""

from __future__ import annotations

import asyncio
import codecs
import os
import re
import threading
from collections.abc import AsyncIterator

_READ_BYTES = 1 << 16
_READS_AHEAD = 4

LINE_CHARACTERS_MAX = 4096
"""A longer line is cut here. No character has more than 4 bytes, so a piece is within the 16,384 tokens that
a server takes in one feed by default."""

_BAD_BYTES = re.compile("[\udc80-\udcff]")  # where `surrogateescape` puts them, one each


class StandardInput:
    """Reads what is piped or typed, without making anything else wait.

    On a thread of its own: a file cannot be waited for, a terminal made non-blocking would make our own
    output to it fail, and a thread pool would be waited for at the end, when nothing may ever come again.

    Args:
        descriptor: What to read; 0 is standard input.

    Attributes:
        bad_bytes: How many bytes were not UTF-8; each was read as U+FFFD.
    """

    def __init__(self, descriptor: int = 0) -> None:
        self.bad_bytes = 0
        self._descriptor = descriptor
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")

    async def lines(self) -> AsyncIterator[str]:
        """Whole lines with their end; at the end of the input what is left, and long lines in pieces.

        Raises:
            OSError: It cannot be read.
        """
        rest = ""
        async for chunk in self._chunks():
            *whole, rest = (rest + self._decode(chunk)).split("\n")
            for line in whole:
                for piece in _cut(line + "\n"):
                    yield piece
            while len(rest) > LINE_CHARACTERS_MAX:
                yield rest[:LINE_CHARACTERS_MAX]
                rest = rest[LINE_CHARACTERS_MAX:]
        if rest:
            yield rest

    def _decode(self, chunk: bytes) -> str:
        text, bad = _BAD_BYTES.subn("\ufffd", self._decoder.decode(chunk, final=not chunk))
        self.bad_bytes += bad
        return text

    async def _chunks(self) -> AsyncIterator[bytes]:
        """What comes, as it comes; the last one is empty."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[bytes | OSError] = asyncio.Queue()
        room = threading.Semaphore(_READS_AHEAD)

        def read() -> None:
            chunk: bytes | OSError = b"begin"
            while chunk and not isinstance(chunk, OSError):
                room.acquire()
                try:
                    chunk = os.read(self._descriptor, _READ_BYTES)
                except OSError as error:
                    chunk = error
                try:
                    loop.call_soon_threadsafe(arrived.put_nowait, chunk)
                except RuntimeError:
                    return  # the loop is closed: nobody wants it any more

        threading.Thread(target=read, name="standard input", daemon=True).start()
        while True:
            chunk = await arrived.get()
            room.release()
            if isinstance(chunk, OSError):
                raise chunk
            yield chunk
            if not chunk:
                return


def _cut(line: str) -> list[str]:
    return [line[start : start + LINE_CHARACTERS_MAX] for start in range(0, len(line), LINE_CHARACTERS_MAX)]
