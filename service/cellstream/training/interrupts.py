"""Ctrl-C and SIGTERM as a wish that is met between two updates, never in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A signal ended training.

    Args:
        number: Which.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """Holds signals back while weights are half updated; a second one is not held back.

    Signals can only be handled in a program's main thread. In another, this does nothing.
    """

    def __init__(self) -> None:
        self._wished: int | None = None
        self._holding = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM; afterwards, who had them before has them again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # A signal that is ignored, as Ctrl-C by a shell's background job, stays ignored.
        numbers = [
            number
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) is not signal.SIG_IGN
        ]
        before = {number: signal.signal(number, self._take) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Within it the first signal only becomes a wish; one that nobody has met is met at its end.

        Raises:
            Stopped: There is such a wish.
        """
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self.wish is not None:
            raise self.wish

    @property
    def wish(self) -> Stopped | None:
        """What to raise as soon as nothing is half done; None: go on."""
        return None if self._wished is None else Stopped(self._wished)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._wished is not None or not self._holding:
            raise Stopped(number)
        self._wished = number
