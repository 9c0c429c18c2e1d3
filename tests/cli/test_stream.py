"""`cellstream stream`: it prints what the model says, as it comes, and ends cleanly however it ends."""

import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Run = Callable[..., Any]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def surprise(many: Path, alone: Callable[[Path], Any]) -> Callable[[bytes], np.ndarray]:
    """The surprise in bits of each byte but the first, for the default model alone: float64 [bytes - 1]."""

    def surprise(heard: bytes) -> np.ndarray:
        steps = alone(many / "tiny" / "2").steps(list(heard))
        expected = [step.log_probabilities[came] for step, came in zip(steps[1:], heard[1:], strict=False)]
        return -np.array(expected, dtype=np.float64) / math.log(2)

    return surprise


LINES = "To be, or not to be:\nthat is the quéstion.\n\nWhether 'tis nobler"


def test_scores_are_the_models_surprise(
    run: Run, server: Any, surprise: Callable[[bytes], np.ndarray]
) -> None:
    """Totals and bits a character, line by line, are those of the plain loop over the graph."""
    scored = run("stream", "--score", "--target", server.target, given=LINES)
    assert scored.code == 0
    bits = surprise(LINES.encode())
    ends = np.cumsum([len(line.encode()) for line in LINES.splitlines(keepends=True)])
    expected = []
    for line, end in zip(LINES.splitlines(keepends=True), ends, strict=True):
        begin = max(0, end - len(line.encode()) - 1)  # the session's first byte has no surprise
        characters = len(line) - (end == ends[0])
        total = bits[begin : end - 1].sum()
        expected.append(f"{total:8.1f} {total / characters:6.2f} │ {line.rstrip()}".rstrip())
    # The end of a line is shown only where it stands out.
    shown = [line.removesuffix("↵").rstrip() for line in scored.out.splitlines()]
    assert shown == expected

    heading, counts, timing = scored.err.splitlines()
    assert heading.split() == ["bits", "/char"]
    each = bits.sum() / (len(LINES) - 1)
    assert counts == f"4 lines, {len(LINES)} characters: {bits.sum():,.1f} bits, {each:.3f} a character."
    assert re.fullmatch(
        rf"[\d.]+ s; latency p50 [\d.]+ ms, p95 [\d.]+ ms a line; the session is at position {ends[-1]}\.",
        timing,
    )


def test_scores_as_json_have_every_character(
    run: Run, server: Any, surprise: Callable[[bytes], np.ndarray]
) -> None:
    """For programs: the bits of each character, those of é being its two bytes' together."""
    scored = run("stream", "--score", "--json", "--target", server.target, given="né\n")
    (line,) = scored.json()
    first, second, third = surprise("né\n".encode())
    assert line["line"] == "né\n"
    assert line["position"] == 4
    assert line["surprise"] == [None, pytest.approx(first + second, abs=0.01), pytest.approx(third, abs=0.01)]
    assert line["bits"] == pytest.approx(first + second + third, abs=1e-3)
    summary = json.loads(scored.err)
    assert (summary["lines"], summary["characters"], summary["bad_bytes"]) == (1, 3, 0)
    assert summary["bits"] == line["bits"]
    assert 0 < summary["latency_p50_milliseconds"] <= summary["latency_p95_milliseconds"]


def test_predictions_are_what_the_model_expects_after_each_line(
    run: Run, server: Any, many: Path, alone: Callable[[Path], Any]
) -> None:
    """Before the line's end: what follows the last letter. The session still hears every line's end."""
    text = "To be\n\nor not\n"
    predicted = run("stream", "--top-k", "3", "--json", "--target", server.target, given=text)
    lines = predicted.json()
    assert [line["line"] for line in lines] == ["To be", "", "or not"]
    assert json.loads(predicted.err)["position"] == len(text)
    for line, heard in zip(lines, (b"To be", b"To be\n", b"To be\n\nor not"), strict=True):
        likely = np.exp(alone(many / "tiny" / "2").after(list(heard)).log_probabilities)
        best = np.argsort(-likely, kind="stable")[:3]
        assert [token["id"] for token in line["next"]] == best.tolist()
        assert [token["probability"] for token in line["next"]] == pytest.approx(likely[best], abs=1e-6)
        assert [token["text"] for token in line["next"]] == [chr(i) if i < 128 else None for i in best]


def test_a_named_session_goes_on(run: Run, server: Any) -> None:
    """Two runs with one name are one session: the second goes on where the first ended."""
    for position in (6, 12):
        ran = run("stream", "--session", "goes-on", "--json", "--target", server.target, given="hello\n")
        assert json.loads(ran.err)["position"] == position


def test_bytes_that_are_not_text_are_counted_at_the_end(run: Run, server: Any) -> None:
    """The line is scored with U+FFFD in their place, and the user learns how many there were."""
    ran = run("stream", "--score", "--target", server.target, given=b"ok \xff\xfe\n\xe2\x82")
    assert ran.code == 0
    assert ran.out.splitlines()[0].rstrip("↵").endswith("│ ok \ufffd\ufffd")
    assert ran.err.splitlines()[-1] == "4 bytes were not UTF-8, and were sent as \ufffd."


def test_a_line_is_answered_before_the_next_is_written(start: Start, server: Any) -> None:
    """`tail -f` may write the next line tomorrow; a buffer that waits for it would make the tool useless."""
    ran = start("stream", "--score", "--target", server.target)
    assert ran.stdin is not None
    assert ran.stdout is not None
    for line in ("one", "two"):
        ran.stdin.write(line + "\n")
        ran.stdin.flush()
        assert ran.stdout.readline().rstrip("↵\n").endswith(f"│ {line}")
    _, told = ran.communicate(timeout=30)
    assert ran.returncode == 0
    assert "2 lines, 8 characters" in told


def test_ctrl_c_ends_with_the_summary_and_130(start: Start, server: Any) -> None:
    """The usual end of `tail -f … | cellstream stream`: no traceback, nothing lost, the session let go of."""
    ran = start("stream", "--session", "ctrl-c", "--target", server.target)
    assert ran.stdin is not None
    assert ran.stdout is not None
    ran.stdin.write("hello\n")
    ran.stdin.flush()
    assert ran.stdout.readline().startswith("hello  →")
    ran.send_signal(signal.SIGINT)
    assert ran.wait(timeout=30) == 130
    assert ran.stderr is not None
    told = ran.stderr.read()
    assert told.startswith("1 line, 5 characters.\n")
    assert len(told.splitlines()) == 2


def test_a_reader_that_has_seen_enough_ends_it_quietly(server: Any, tmp_path: Path) -> None:
    """`… | cellstream stream | head -1`: no complaint about the pipe."""
    (tmp_path / "long").write_text("hello\n" * 3000)
    program = f"{sys.executable} -m cellstream.cli stream --target {server.target}"
    ran = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {program} < long | head -1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 1
    assert "Traceback" not in ran.stderr
    assert "BrokenPipe" not in ran.stderr


def test_nothing_on_standard_input_is_fine(run: Run, server: Any) -> None:
    """An empty log is not an error."""
    ran = run("stream", "--target", server.target)
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.startswith("0 lines, 0 characters.")


def test_text_that_the_model_cannot_take_fails_in_words(run: Run, server: Any) -> None:
    """The lines before it are printed, then the reason; exit code 1."""
    ran = run("stream", "--model", "letters", "--json", "--target", server.target, given="AB\nC")
    assert ran.code == 1
    assert [line["line"] for line in ran.json()] == ["AB"]  # its end comes with C, and has no sign
    assert ran.err.splitlines()[-1].endswith("(TEXT_NOT_ENCODABLE)")


def test_what_stands_out_is_coloured_on_a_terminal(start: Start, server: Any) -> None:
    """A person looks for colour; a model with random weights is surprised by everything, often by 8 bits."""
    ours, theirs = pty.openpty()
    ran = start("stream", "--score", "--target", server.target, stdout=theirs)
    os.close(theirs)
    ran.communicate("hello world, how are you\n", timeout=30)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert ran.returncode == 0
    assert "\x1b[1;31m" in shown  # bold red
    assert "\x1b[33m" in shown  # yellow
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown).strip().rstrip("↵").endswith("│ hello world, how are you")
