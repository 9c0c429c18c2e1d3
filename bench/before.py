"""The service before our own transport: its last commit, in a worktree with an environment of its own.

What it knows: which commit that is, and how to make it run beside today's. Both lie in `build`, which git
ignores; making them needs git's history and a package index, measuring with them needs neither.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from bench.processes import ROOT

COMMIT = "e76a2c2"
"""The last commit whose streams ran in grpc.aio's coroutines, one task each."""

FOLDER = ROOT / "build" / "before"


class BeforeFailed(Exception):
    """It could not be made; the message says why."""


def python() -> Path:
    """Return the Python of its environment, which is made where it is missing.

    Raises:
        BeforeFailed: There is no such commit here, or what it needs cannot be installed.
    """
    environment = FOLDER / f"environment-{COMMIT}"
    done = environment / "installed"
    program = environment / "bin" / "python"
    if not done.exists():
        source = FOLDER / f"source-{COMMIT}"
        if not (source / "pyproject.toml").exists():
            # --force: a worktree whose folder was deleted is still on git's list.
            _command(["git", "worktree", "add", "--force", "--detach", str(source), COMMIT], ROOT)
        venv.create(environment, with_pip=True, clear=True)
        install = [str(program), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _command([*install, "--constraint", "constraints.txt", ".[serve]"], source)
        done.touch()
    return program


def _command(command: list[str], directory: Path) -> None:
    print(f"... {' '.join(command)}", file=sys.stderr, flush=True)
    ran = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise BeforeFailed(f"The service before (commit {COMMIT}) could not be made:\n{ran.stderr.strip()}")
