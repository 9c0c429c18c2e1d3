"""What a running server says of itself: one line for each event on standard error, console or JSON.

Events carry a session's hash, a feed's number and a reason, never a user's tokens. So tracebacks show no
local variables, which rich's and structlog's would: a feed is one.

Logging never raises and never waits, wherever standard error leads. What does not render becomes a line that
says so; lines that cannot be written are dropped and counted (`log_writer`); what C libraries print is logged
too (`native_output`).
"""

from __future__ import annotations

import atexit
import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from cellstream.cli.log_writer import LINE_BYTES_MAX, LogWriter
from cellstream.cli.native_output import Level, NativeOutput

FLUSH_SECONDS_MAX = 1.0
"""How long the program's end waits for lines to be written: a container has some seconds in all to go."""

_EVENT_CHARACTERS_MAX = 200
"""Of an event, where its line is too long or does not render."""


class Log:
    """The log of the program, once it is set up.

    Args:
        writer: Writes the lines.
        native: Takes what C libraries print.
    """

    def __init__(self, writer: LogWriter, native: NativeOutput) -> None:
        self._writer = writer
        self._native = native

    def __repr__(self) -> str:
        return f"<Log {self._writer!r}, {self._native!r}>"

    @property
    def lines_dropped(self) -> int:
        """How many lines standard error did not take."""
        return self._writer.lines_dropped

    def close(self) -> None:
        """Write what waits, within FLUSH_SECONDS_MAX; done by itself at the program's end."""
        self._native.close(FLUSH_SECONDS_MAX / 2)
        self._writer.close(FLUSH_SECONDS_MAX / 2)


def configure(level: Level, form: Literal["console", "json"], buffer_bytes_max: int) -> Log:
    """Set up structlog, and send through it what other packages log, warn of, and print on standard error.

    Called once in a program's life. At its end, lines that wait are written within FLUSH_SECONDS_MAX.

    Args:
        level: The least that is logged; of other packages, warnings at least.
        form: Lines for a person, coloured on a terminal, or one JSON object a line for a collector.
        buffer_bytes_max: Bytes of lines that wait to be written.

    """
    original = _duplicate_standard_error()
    rendering = _Rendering(form, colors=original is not None and os.isatty(original))
    writer = LogWriter(original, buffer_bytes_max, rendering.render_dropped)
    least = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[rendering],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=lambda *names: _LineLogger(writer),
        cache_logger_on_first_use=True,
    )
    _take_from_python(_Handler(rendering, writer), max(least, logging.WARNING))
    log = Log(writer, _take_from_native(original))
    atexit.register(log.close)
    return log


def _duplicate_standard_error() -> int | None:
    """Return another descriptor of what standard error leads to; None if it was closed at the start."""
    try:
        # Python's own note of it: a descriptor 2 that is open now may be a file that was opened since.
        return None if sys.stderr is None else os.dup(sys.stderr.fileno())
    except OSError:
        return None


def _take_from_python(handler: logging.Handler, least: int) -> None:
    """Log what Python's own logging, warnings and last resorts would print, and wait for."""
    logging.raiseExceptions = False
    logging.basicConfig(handlers=[handler], level=least, force=True)
    logging.captureWarnings(True)
    log = structlog.get_logger(__name__)

    def take_unraisable(unraisable: Any) -> None:
        log.error("unraisable", why=unraisable.err_msg, exc_info=_exc_info(unraisable))

    def take_thread(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_type is not SystemExit:
            name = failed.thread.name if failed.thread is not None else None
            log.error("thread_failed", thread=name, exc_info=_exc_info(failed))

    sys.unraisablehook = take_unraisable
    threading.excepthook = take_thread


def _exc_info(failed: Any) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    return failed.exc_type, failed.exc_value or failed.exc_type(), failed.exc_traceback


def _take_from_native(original: int | None) -> NativeOutput:
    """Log what C libraries print on descriptor 2, and have Python print past it."""
    log = structlog.get_logger(__name__)

    def take(line: str, level: Level) -> None:
        getattr(log, level)("native_output", text=line)

    native = NativeOutput(take, original)
    target: int | str = os.devnull if original is None else original
    # Python's own, from now on: what a command that fails says to whoever started it, and a crash's stacks.
    sys.stderr = open(target, "w", buffering=1, errors="backslashreplace", closefd=original is None)  # noqa: SIM115 - until the end
    faulthandler.enable(sys.stderr)
    return native


class _LineLogger:
    """What structlog hands a rendered line to; every level is written the same way."""

    def __init__(self, writer: LogWriter) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = writer.write


class _Handler(logging.Handler):
    """What Python's logging hands a record to."""

    def __init__(self, rendering: _Rendering, writer: LogWriter) -> None:
        super().__init__()
        self._rendering = rendering
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self._writer.write(self._rendering.render_record(record))


class _Rendering:
    """Makes lines of events: structlog's last processor, and a formatter of records. It never raises."""

    def __init__(self, form: Literal["console", "json"], *, colors: bool) -> None:
        self._is_json = form == "json"
        common: list[Processor] = [
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ]
        last = _json() if self._is_json else _console(colors)
        self._processors: Sequence[Processor] = (*common, *last)
        self._formatter = structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=common,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )

    def __call__(self, logger: WrappedLogger, method: str, event_dict: EventDict) -> str:
        """Render an event of structlog's."""
        event = event_dict.get("event")
        return self._bounded(lambda: self._render(method, event_dict), method, event)

    def render_record(self, record: logging.LogRecord) -> str:
        """Render a record of Python's logging."""
        return self._bounded(lambda: self._formatter.format(record), record.levelname.lower(), record.msg)

    def render_dropped(self, lines: int) -> str:
        """Render the line that says how many were dropped."""
        return self._render("warning", {"event": "log_lines_dropped", "lines": lines})

    def _bounded(self, render: Callable[[], str], level: str, event: object) -> str:
        said = event[:_EVENT_CHARACTERS_MAX] if isinstance(event, str) else type(event).__name__
        try:
            line = render()
        except Exception as error:  # a value whose repr raises, say; whoever logs it must go on
            return self._render(
                "error", {"event": "log_line_failed", "of": said, "error": type(error).__name__}
            )
        if len(line) < LINE_BYTES_MAX or not self._is_json:  # LogWriter cuts; half an object is no JSON
            return line
        # Quoting doubles a character of JSON at most.
        start = line[: (LINE_BYTES_MAX - 4 * _EVENT_CHARACTERS_MAX) // 2 - 100]
        return self._render(level, {"event": "log_line_cut", "of": said, "start": start})

    def _render(self, method: str, event_dict: EventDict) -> str:
        rendered: Any = event_dict
        for process in self._processors:
            rendered = process(None, method, rendered)
        return str(rendered)


def _console(colors: bool) -> list[Processor]:
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]


def _json() -> list[Processor]:
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
