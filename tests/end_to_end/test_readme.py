"""What the README shows is what happens."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cellstream.api.status import CODES
from cellstream.settings import Settings
from cellstream.testing import running_server

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python_blocks() -> list[str]:
    """The README's blocks of Python, in their order."""
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def shipped() -> Path:
    """The models that we ship."""
    return ROOT / "models"


async def run(code: str, target: str) -> str:
    """Run a block as a program of its own against a server, and return what it printed."""
    program = code.replace("localhost:50051", target)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    return output.decode()


async def test_the_first_block_is_ten_lines_of_stubs_whose_second_call_goes_on(shipped: Path) -> None:
    """A newcomer sees a state that survives its stream before anything else."""
    block = python_blocks()[0]
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    async with running_server(shipped, default_model="shakespeare-lstm") as server:
        lines = (await run(block, server.target)).splitlines()
    rows = [re.fullmatch(r"(\d+) (\d+) ('.*')", line) for line in lines]
    assert all(rows), lines
    assert [int(row[1]) for row in rows if row] == [5, 13, 5, 13]
    for row in rows:
        assert row
        assert row[3] == repr(chr(int(row[2])))
    # The anonymous session and alice heard the same, so they say the same: across calls and across streams.
    assert lines[:2] == lines[2:]


async def test_every_other_block_runs_as_written(shipped: Path) -> None:
    """An example that does not run is worse than none."""
    blocks = python_blocks()[1:]
    assert blocks
    async with running_server(shipped, default_model="shakespeare-lstm") as server:
        for block in blocks:
            assert await run(block, server.target)


def test_the_error_table_names_every_reason() -> None:
    """A reason that a client can meet is one that it can look up."""
    assert set(CODES) <= set(re.findall(r"`([A-Z_]+)`", README))


def test_the_settings_table_names_every_setting_and_its_default() -> None:
    """A bound that nobody can find is a bound that nobody sets."""
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", README, flags=re.MULTILINE))
    for name, field in Settings.model_fields.items():
        assert rows.get(name, "").strip() == str(field.default), name
