"""The server's log is for operators: machine-readable when asked, and never what users said."""

import json
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import logging, structlog
    from cellstream.cli import logs
    logs.configure({level!r}, {form!r}, 1 << 20)
    log = structlog.get_logger("cellstream.api")

    def fails(tokens):
        raise RuntimeError("the step failed")

    log.debug("noise")
    log.info("session_opened", session="9f2c", feed=7)
    logging.getLogger("asyncio").info("noise")
    logging.getLogger("asyncio").warning("from %s", "asyncio")
    try:
        fails(["my secret"])
    except RuntimeError:
        log.exception("feed_failed", reason="STEP_FAILED")
"""


def log_of(level: str, form: str) -> list[str]:
    """What a program that logs prints on standard error."""
    program = textwrap.dedent(PROGRAM.format(level=level, form=form))
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout == ""
    return finished.stderr.splitlines()


def test_json_is_one_object_a_line_whoever_logs() -> None:
    """A collector that meets one line of plain text, of asyncio say, drops it or stops."""
    opened, asyncio, failed = (json.loads(line) for line in log_of("info", "json"))
    assert opened.pop("timestamp").endswith("Z")
    assert opened == {"event": "session_opened", "level": "info", "session": "9f2c", "feed": 7}
    assert (asyncio["event"], asyncio["level"]) == ("from asyncio", "warning")
    assert (failed["event"], failed["reason"]) == ("feed_failed", "STEP_FAILED")
    assert failed["exception"][0]["exc_value"] == "the step failed"


@pytest.mark.parametrize("form", ["json", "console"])
def test_tracebacks_show_no_values(form: str) -> None:
    """The variables of a failing step are what a user typed."""
    text = "\n".join(log_of("info", form))
    assert "the step failed" in text
    assert "my secret" not in text


def test_the_level_is_the_least_that_is_logged() -> None:
    """At `error` a collector pays for errors only."""
    assert [json.loads(line)["event"] for line in log_of("error", "json")] == ["feed_failed"]
    assert json.loads(log_of("debug", "json")[0])["event"] == "noise"


def test_a_pipe_gets_no_colours() -> None:
    """Escape sequences in a log file are noise."""
    assert "\x1b" not in "".join(log_of("debug", "console"))
