"""`make demo` works: everything that it does, but for making the environment."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.py"


def test_the_demo_shows_what_it_says() -> None:
    """It is the first thing that anybody runs."""
    done = subprocess.run([sys.executable, DEMO], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert shown.count("the same, bit for bit") == 2
    assert re.search(r"first stream ends at position 31\b", shown)
    assert re.search(r"second stream goes on to position 36\b", shown)
    assert len(re.findall(r"^\s+'.' .*bits", shown, flags=re.MULTILINE)) == len("question")
    assert re.search(r"feed_seconds +\d+ +[\d.]+ ms", shown)
    assert "Traceback" not in done.stderr
