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


def log_of(level: str, form: str, program: str = PROGRAM) -> list[str]:
    """What a program that logs prints on standard error."""
    program = textwrap.dedent(program.format(level=level, form=form))
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout == ""
    return finished.stderr.splitlines()


SET_UP = """
    import gc, logging, os, structlog, sys, threading, warnings
    from cellstream.cli import logs
    opened = logs.configure({level!r}, {form!r}, 1 << 20)
    log = structlog.get_logger("cellstream.api")
"""


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


FAULTS = """
    class Unspeakable:
        def __repr__(self):
            raise RuntimeError("no words")
        __str__ = __repr__

    log.info("first", value=Unspeakable())
    log.info(Unspeakable())
    logging.getLogger("grpc").warning("second %s", Unspeakable())
    logging.getLogger("grpc").warning("third %d", "my secret")
    try:
        raise ValueError(Unspeakable())
    except ValueError:
        log.exception("fourth")
    log.info("last")
"""


@pytest.mark.parametrize("form", ["json", "console"])
def test_what_does_not_render_is_a_line_and_not_an_error(form: str) -> None:
    """An exception from a log line, in the sweep say, ends what it only wanted to tell of."""
    lines = log_of("info", form, SET_UP + FAULTS)
    failed = [line for line in lines if "log_line_failed" in line]
    assert failed[:4] == lines[:4]
    for told, line in zip(("first", "Unspeakable", "second %s", "third %d"), failed, strict=False):
        assert told in line
    assert "fourth" in "".join(lines[4:-1])
    assert "last" in lines[-1]
    assert "my secret" not in "".join(lines)


def test_a_long_line_of_json_is_json_still() -> None:
    """Cut anywhere, it would be an error of the collector."""
    program = """
    log.info("long", value='"' * 50_000)
    logging.getLogger("grpc").warning("x" * 50_000)
    log.info("last")
"""
    lines = log_of("info", "json", SET_UP + program)
    assert max(map(len, lines)) < 16_384
    first, second, last = map(json.loads, lines)
    assert (first["event"], first["of"], first["level"]) == ("log_line_cut", "long", "info")
    assert "long" in first["start"] or first["start"].startswith("{")
    assert len(first["start"]) > 7000
    assert (second["event"], second["of"], second["level"]) == ("log_line_cut", "x" * 200, "warning")
    assert last["event"] == "last"


def test_what_python_would_print_is_logged() -> None:
    """Printed, it waits for whoever reads standard error; and stands as plain text between lines of JSON."""
    program = """
    class Falls:
        def __del__(self):
            raise RuntimeError("in a finaliser")

    def fails():
        raise RuntimeError("in a thread")

    Falls()
    thread = threading.Thread(target=fails, name="worker")
    thread.start()
    thread.join()
    warnings.warn("a warning", stacklevel=1)
"""
    lines = [json.loads(line) for line in log_of("info", "json", SET_UP + program)]
    assert [(line["event"], line["level"]) for line in lines[:2]] == [
        ("unraisable", "error"),
        ("thread_failed", "error"),
    ]
    assert [line["exception"][0]["exc_value"] for line in lines[:2]] == ["in a finaliser", "in a thread"]
    assert lines[1]["thread"] == "worker"
    assert "a warning" in lines[2]["event"]
    assert lines[2]["level"] == "warning"


# The first is gRPC's (absl), the second ONNX Runtime's, as they were printed here.
NATIVE = r"""
    E1201 16:12:26.927973   10783 add_port.cc:83] Failed to add port to server
    \x1b[0;93m2026-12-01 16:00:00.123456 [W:onnxruntime:Default, device_discovery.cc:164 Get] no GPU\x1b[m
    I0000 00:00:1764605546.848208   10776 fork_posix.cc:71] Other threads are calling
    what a library prints \xff
"""


def test_what_c_libraries_print_is_logged_with_its_level() -> None:
    """They write to descriptor 2 past Python, from threads of their own, and would wait there."""
    printed = [line.strip() for line in NATIVE.strip().splitlines()]
    program = "".join(f"    os.write(2, b'{line}\\n')\n" for line in printed)
    lines = [json.loads(line) for line in log_of("info", "json", SET_UP + program + "    log.info('end')\n")]
    native = [line for line in lines if line["event"] == "native_output"]
    assert len(native) == len(lines) - 1
    assert [line["level"] for line in native] == ["error", "warning", "info", "warning"]
    assert native[0]["text"] == printed[0]
    assert native[1]["text"].startswith("2026-12-01 16:00:00.123456 [W:onnxruntime")
    assert native[1]["text"].endswith("no GPU")
    assert native[3]["text"] == r"what a library prints \xff"


def test_grpcs_own_lines_reach_the_log() -> None:
    """Its core's, from C++, and those of its Python, as events like any other."""
    program = """
    import grpc
    from concurrent import futures
    try:
        grpc.server(futures.ThreadPoolExecutor(1)).add_insecure_port("192.0.2.1:1")  # no machine's address
    except RuntimeError:
        pass
    logging.getLogger("grpc._cython.cygrpc").error("from %s", "Python")
"""
    lines = [json.loads(line) for line in log_of("info", "json", SET_UP + program)]
    assert {(line["event"], line["level"]) for line in lines} == {
        ("native_output", "error"),
        ("from Python", "error"),
    }
    assert "192.0.2.1" in next(line["text"] for line in lines if "text" in line)


def test_a_failing_command_still_speaks_plainly() -> None:
    """What a person is told at the end goes past the log."""
    program = """
    print("Error: no such model", file=sys.stderr)
    os.write(2, b"from a library")
"""
    lines = log_of("info", "json", SET_UP + program)
    assert lines[0] == "Error: no such model"
    assert json.loads(lines[1])["text"] == "from a library"


def test_standard_error_is_put_back_at_the_end() -> None:
    """What is printed after the log has ended, by Python's last words say, is not lost."""
    program = """
    log.info("first")
    opened.close()
    os.write(2, b"after\\n")
    log.info("not written")
    assert opened.lines_dropped == 1
"""
    lines = log_of("info", "json", SET_UP + program)
    assert json.loads(lines[0])["event"] == "first"
    assert lines[1:] == ["after"]
