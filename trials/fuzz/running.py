"""Runs `guided` in a process for a time, and tells what it did."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from trials.server import ROOT

CORPUS = ROOT / ".make" / "fuzz"
CONVERSATION_BYTES_MAX = 2000


def run(minutes: float, results: Path) -> bool:
    """Fuzz for so long; print libFuzzer's lines, and write the numbers.

    Returns:
        Whether every promise was kept.
    """
    CORPUS.mkdir(parents=True, exist_ok=True)
    flags = [
        f"-max_total_time={60 * minutes:.0f}",
        f"-max_len={CONVERSATION_BYTES_MAX}",
        f"-artifact_prefix={CORPUS}/",
        "-print_final_stats=1",
    ]
    command = [sys.executable, "-m", "trials.fuzz.guided", *flags, str(CORPUS)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        last = {"cov": "?", "corp": "?", "number_of_executed_units": "?"}
        for line in process.stderr:
            print(line, end="")
            last |= dict(re.findall(r"(cov|corp|number_of_executed_units): *(\d+)", line))
    if process.returncode == 0:
        results.mkdir(exist_ok=True)
        executed = f"{int(last['number_of_executed_units']):,}"
        (results / "fuzz.md").write_text(
            f"{minutes:g} minutes: {executed} conversations, {last['cov']} branches covered, {last['corp']} "
            "conversations kept because they reached something new; none broke a promise.\n"
        )
    return process.returncode == 0
