"""The real command line, as a program of its own, beside a real server that it started itself."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROGRAM = (sys.executable, "-m", "cellstream.cli")


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    code: int
    out: str
    err: str

    def json(self) -> list[Any]:
        """What it printed, one value a line."""
        return [json.loads(line) for line in self.out.splitlines()]


def environment(**more: str) -> dict[str, str]:
    """This environment, without settings of ours and without what steers a terminal."""
    left_out = ("CELLSTREAM_", "COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TERM")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)} | more


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Outcome]:
    """Runs the program in a folder of its own, to its end."""

    def run(*arguments: str, given: bytes | str = b"", env: dict[str, str] | None = None) -> Outcome:
        finished = subprocess.run(
            [*PROGRAM, *arguments],
            input=given.encode() if isinstance(given, str) else given,
            capture_output=True,
            cwd=tmp_path,
            env=environment(**(env or {})),
            timeout=60,
            check=False,
        )
        return Outcome(finished.returncode, finished.stdout.decode(), finished.stderr.decode())

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the program and gives its pipes; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **more: Any) -> subprocess.Popen[str]:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | more
        process = subprocess.Popen(
            [*PROGRAM, *arguments], cwd=tmp_path, env=environment(), text=True, **pipes
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@dataclass
class Served:
    """A server that runs as a program; `log` is what it said until it served."""

    process: subprocess.Popen[str]
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def target(self) -> str:
        """Where a client finds it."""
        return f"127.0.0.1:{self.log[-1]['port']}"

    @property
    def metrics_port(self) -> int:
        """Where /metrics is."""
        return int(self.log[-1]["metrics_port"])

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, list[dict[str, Any]]]:
        """Its exit code after a signal, and what it still said."""
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=30)
        return self.process.returncode, [json.loads(line) for line in rest.splitlines()]


@pytest.fixture(scope="session")
def serve(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Served]]:
    """Starts `cellstream serve` on free ports, and waits until it serves."""
    started: list[Served] = []
    ports = ("--port", "0", "--metrics-port", "0")
    nowhere = tmp_path_factory.mktemp("server")  # without a settings file
    models = ("--models", str(many), "--default-model", "tiny", "--slots-max", "64")

    def serve(*flags: str) -> Served:
        served = Served(
            subprocess.Popen(
                [*PROGRAM, "serve", *models, *ports, "--log-format", "json", *flags],
                stderr=subprocess.PIPE,
                cwd=nowhere,
                env=environment(),
                text=True,
            )
        )
        started.append(served)
        assert served.process.stderr is not None
        for line in served.process.stderr:
            served.log.append(json.loads(line))
            if served.log[-1]["event"] == "serving":
                return served
        raise AssertionError(f"the server ended with {served.process.wait()}: {served.log}")

    yield serve
    for served in started:
        served.process.kill()
        served.process.communicate()


@pytest.fixture(scope="session")
def server(serve: Callable[..., Served]) -> Served:
    """One server for all tests that only talk to it."""
    return serve()
