"""The README on TLS: its certificates are made as written, and a server and its clients take them."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cellstream.testing import running_server

ROOT = Path(__file__).resolve().parents[2]
SECTION = re.search(r"(?ms)^## TLS\n(.*?)^## ", (ROOT / "README.md").read_text(encoding="utf-8"))
PROGRAM = f"{shlex.quote(sys.executable)} -m cellstream.cli"


def commands() -> str:
    """All lines that a reader is to type, in their order."""
    assert SECTION
    return "\n".join(line.removeprefix("    ") for line in SECTION[1].splitlines() if line.startswith("    "))


def lines(pattern: str) -> list[str]:
    """The lines with this command."""
    return [line for line in commands().splitlines() if pattern in line]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the reader has made certificates."""
    assert shutil.which("openssl"), "the README names it"
    folder = tmp_path_factory.mktemp("certificates")
    made = re.search(r"(?ms)^openssl req -x509.*^done$", commands())
    assert made
    ran = subprocess.run(
        ["bash", "-eu", "-c", made[0]], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.mark.parametrize("place", [0, 1], ids=["TLS", "mutual TLS"])
async def test_server_and_client_take_them_as_written(certificates: Path, place: int) -> None:
    """The server's flags and the client's, each pair as it stands in the README."""
    words = iter(shlex.split(lines("cellstream serve")[place])[2:])
    flags = {flag.removeprefix("--").replace("-", "_"): certificates / next(words) for flag in words}
    assert set(flags) == ({"tls_cert", "tls_key"}, {"tls_cert", "tls_key", "tls_client_ca"})[place]
    stream = lines("cellstream stream")[place].replace(".venv/bin/cellstream", PROGRAM)
    async with running_server(
        ROOT / "models", default_model="shakespeare-lstm", transport="native", **flags
    ) as server:
        port = server.target.rpartition(":")[2]
        process = await asyncio.create_subprocess_exec(
            *("bash", "-eu", "-o", "pipefail", "-c", f"{stream} --target localhost:{port} --json"),
            cwd=certificates,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    assert len(output.splitlines()) == 1
