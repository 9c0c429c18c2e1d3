"""What libraries in C and C++ print: caught line by line at file descriptor 2, where they write it.

gRPC's core and ONNX Runtime print plain text there from threads of their own. Left alone, that text stands
between JSON lines, and waits on a reader that does not read, the thread and what it serves with it.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from typing import Literal

Level = Literal["debug", "info", "warning", "error"]

_STANDARD_ERROR = 2
_READ_BYTES = 65_536
_LINE_BYTES_MAX = 4096
"""Bytes of one line; a longer one becomes several."""

_SEVERITY = re.compile(r"([IWEF])\d{4} |\[[0-9.;: -]*\[?([VIWEF]):onnxruntime")
_LEVELS: dict[str, Level] = {"V": "debug", "I": "info", "W": "warning", "E": "error", "F": "error"}
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


class NativeOutput:
    """Gives each line that is printed on file descriptor 2 to a function, from a thread of its own.

    Args:
        take: Called with a line and its level, warning where the line does not say; must not raise or wait.
        original: What descriptor 2 becomes again at the end; None: there was none, and it becomes /dev/null.
    """

    def __init__(self, take: Callable[[str, Level], None], original: int | None) -> None:
        self._take = take
        self._original = original
        if original is None:
            _close_off()  # or the pipe's read end may become descriptor 2
        self._read_end, write_end = os.pipe()
        os.dup2(write_end, _STANDARD_ERROR)
        os.close(write_end)
        self._thread = threading.Thread(target=self._run, name="native-output", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<NativeOutput {'running' if self._thread.is_alive() else 'closed'}>"

    def close(self, seconds: float) -> None:
        """Put descriptor 2 back; give what was printed before to the function, within so many seconds."""
        if self._original is not None:
            os.dup2(self._original, _STANDARD_ERROR)
        else:
            _close_off()
        self._thread.join(seconds)  # it ends with the pipe, whose other end is closed now

    def _run(self) -> None:
        pending = b""
        while data := os.read(self._read_end, _READ_BYTES):
            *lines, pending = (pending + data).split(b"\n")
            if len(pending) > _LINE_BYTES_MAX:
                lines, pending = [*lines, pending], b""
            for line in lines:
                self._give(line)
        self._give(pending)
        os.close(self._read_end)

    def _give(self, line: bytes) -> None:
        text = _ESCAPES.sub("", line.decode("utf-8", "backslashreplace")).strip()
        if text:
            self._take(text, level_of(text))


def _close_off() -> None:
    """Have descriptor 2 lead to /dev/null."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != _STANDARD_ERROR:
        os.dup2(nowhere, _STANDARD_ERROR)
        os.close(nowhere)


def level_of(line: str) -> Level:
    """Return the level that a line of absl's (gRPC) or ONNX Runtime's log names; warning if none."""
    matched = _SEVERITY.search(line)
    return _LEVELS[matched[1] or matched[2]] if matched else "warning"
