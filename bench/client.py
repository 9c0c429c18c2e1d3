"""The load client, `load.c`: built where it is needed; a process that holds its streams open between runs."""

from __future__ import annotations

import json
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from bench.processes import ROOT

SOURCE = ROOT / "bench" / "load.c"
PROGRAM = ROOT / "build" / "load"


class LoadFailed(Exception):
    """The load client saw something that is no answer, or could not be built."""


@cache
def build() -> Path:
    """Compiles the client, if it is older than its source.

    Raises:
        LoadFailed: There is no C compiler, or no libnghttp2.
    """
    if not PROGRAM.exists() or PROGRAM.stat().st_mtime < SOURCE.stat().st_mtime:
        PROGRAM.parent.mkdir(exist_ok=True)
        flags = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror"]
        try:
            with tempfile.TemporaryDirectory(dir=PROGRAM.parent) as folder:
                built = Path(folder) / PROGRAM.name
                command = ["cc", *flags, "-o", str(built), str(SOURCE), "-lnghttp2"]
                subprocess.run(command, check=True, capture_output=True, text=True)
                built.replace(PROGRAM)  # whole at once: another process may be about to run it
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or error
            raise LoadFailed(f"{SOURCE.name} needs a C compiler and libnghttp2-dev:\n{said}") from error
    return PROGRAM


class LoadClient:
    """Streams to a server on this machine, opened and answered once.

    Args:
        port: Of the server.
        messages: Serialised requests: what each stream opens with, then what is sent over and over.
        streams: How many.
        connections: Over how many connections.
        window: Messages that a stream has under way; 1: ping-pong.
        feeds: How many sessions a message feeds.
        tokens: With how many tokens each.
        echo: Whether the server answers with what it is told, so that positions mean nothing.
        path: Of a unary method: each message is a call of its own, and `streams` are under way at a time.

    Raises:
        LoadFailed: A stream could not be opened, or the client could not be built.
    """

    def __init__(
        self,
        port: int,
        messages: Sequence[bytes],
        *,
        streams: int,
        connections: int = 1,
        window: int = 1,
        feeds: int,
        tokens: int,
        echo: bool = False,
        path: str = "",
    ) -> None:
        numbers = map(str, (streams, connections, window, feeds, tokens))
        with tempfile.NamedTemporaryFile(suffix=".requests") as file:
            for message in messages:
                file.write(struct.pack("<I", len(message)) + message)
            file.flush()
            self._process = subprocess.Popen(
                [build(), str(port), file.name, *numbers, *(["echo"] if echo else [path] if path else [])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            self._read()  # it has read the file by then

    def run(self, seconds: float) -> dict[str, Any]:
        """Keeps every stream busy for so long, then waits for what is under way.

        Returns:
            What `load.c` prints: `replies`, `tokens`, `seconds`, `p50_ms`, `p99_ms`, `stream_replies_min` and
            `_max`, `cpu_seconds` of its own.

        Raises:
            LoadFailed: A reply was no answer.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and `_read` says why
            self._process.stdin.write(f"{seconds}\n")
            self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the streams with the process."""
        self._process.communicate()  # closes its standard input: it has nothing more to do

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LoadFailed(self._process.communicate()[1].strip() or "the load client ended")
        told: dict[str, Any] = json.loads(line)
        return told
