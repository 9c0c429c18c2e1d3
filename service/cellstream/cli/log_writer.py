"""Lines on their way to standard error: never waited for, never an error, dropped and counted instead.

Knows bytes and a file descriptor, and nothing of what a line says. A thread writes, because the other way not
to wait, O_NONBLOCK, belongs to the open file and not to us: a shell that shares it would find it set.
"""

from __future__ import annotations

import os
import queue
import select
import threading
from collections.abc import Callable

LINE_BYTES_MAX = 16_384
"""Bytes of one line, a traceback included; Docker splits longer ones itself."""

_CUT = b" (cut)\n"

_LINE_OVERHEAD_BYTES = 100
"""What a waiting line costs beside its bytes, so that the bound holds for short lines too."""


class LogWriter:
    """Writes lines in order from a thread of its own.

    Args:
        descriptor: Where to; None: nowhere, and every line counts as dropped.
        buffer_bytes_max: Bytes of lines that wait; beyond it lines are dropped until half are written.
        make_dropped_line: Makes the line that says how many were dropped; written once writing works again.
    """

    def __init__(
        self, descriptor: int | None, buffer_bytes_max: int, make_dropped_line: Callable[[int], str]
    ) -> None:
        self._descriptor = descriptor
        self._buffer_bytes_max = buffer_bytes_max
        self._make_dropped_line = make_dropped_line
        self._queue: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()
        # Re-entrant, because the garbage collector may log inside it; never held during a write.
        self._lock = threading.RLock()
        self._accepted_bytes = 0
        self._full = descriptor is None
        self._dropped = 0  # because the buffer was full
        self._dropped_before_next = 0  # of them, those that the next accepted line tells of
        self._taken_bytes = 0  # of the accepted ones; the thread alone adds to these two
        self._failed = 0
        self._inside_line = False
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        if descriptor is not None:
            self._thread.start()

    def __repr__(self) -> str:
        waiting = self._accepted_bytes - self._taken_bytes
        return f"<LogWriter {waiting} bytes waiting, {self.lines_dropped} lines dropped>"

    @property
    def lines_dropped(self) -> int:
        """How many lines were not written and will not be."""
        return self._dropped + self._failed

    def write(self, line: str) -> None:
        """Take a line without its end, cut to LINE_BYTES_MAX; return at once, whatever happens to it."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        if len(data) > LINE_BYTES_MAX:
            whole = data[: LINE_BYTES_MAX - len(_CUT)].decode("utf-8", "ignore")  # no half character
            data = whole.encode() + _CUT
        self._accept(data)

    def close(self, seconds: float) -> None:
        """Write what waits, within so many seconds; drop every line that comes later."""
        with self._lock:
            self._full = True
            self._buffer_bytes_max = 0
            self._queue.put(None)
        if self._descriptor is not None:
            self._thread.join(seconds)

    def _accept(self, data: bytes) -> None:
        size = len(data) + _LINE_OVERHEAD_BYTES
        with self._lock:
            waiting = self._accepted_bytes - self._taken_bytes
            # Half must be free again: at the bound, every second line would say that one was dropped.
            limit = self._buffer_bytes_max // 2 if self._full else self._buffer_bytes_max
            self._full = self._descriptor is None or waiting + size > limit
            if self._full:
                self._dropped += 1
                self._dropped_before_next += 1
                return
            self._accepted_bytes += size
            before, self._dropped_before_next = self._dropped_before_next, 0
            self._queue.put((before, data))

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        untold = 0
        while (item := self._queue.get()) is not None:
            before, data = item
            untold = self._tell(untold + before)
            if untold or not self._write_all(data):
                untold += 1
                self._failed += 1
            self._taken_bytes += len(data) + _LINE_OVERHEAD_BYTES
        self._tell(untold + self._dropped_before_next)

    def _tell(self, dropped: int) -> int:
        """Write how many lines were dropped; return how many are still to be told."""
        if not dropped:
            return 0
        line = self._make_dropped_line(dropped).encode("utf-8", "backslashreplace") + b"\n"
        return 0 if self._write_all(line) else dropped

    def _write_all(self, data: bytes) -> bool:
        """Write a line, however long it takes; return whether it was written whole."""
        assert self._descriptor is not None
        left = b"\n" + data if self._inside_line else data
        try:
            while left:
                left = left[self._write_some(left) :]
        except OSError:  # closed, full, or its reader is gone; the next line tries again
            self._inside_line = self._inside_line or len(left) < len(data)
            return False
        self._inside_line = False
        return True

    def _write_some(self, data: bytes) -> int:
        assert self._descriptor is not None
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # somebody else made the open file non-blocking
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            poll.poll()
            return 0
