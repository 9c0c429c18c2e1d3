"""Servers in processes of their own, on loopback, and what they spend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is up.

    Attributes:
        pid: Its process.
        port: Where it serves.
        metrics_port: Where its metrics are; 0 if it has none.
    """

    pid: int
    port: int
    metrics_port: int

    def cpu_seconds(self) -> float:
        """What all threads of its process have spent so far, to the nanosecond.

        The clock of another process is its number's complement, shifted, with 2 for "as scheduled"
        (MAKE_PROCESS_CPUCLOCK of Linux, which clock_getcpuclockid(3) wraps and Python does not).
        /proc/PID/stat has hundredths of a second only.
        """
        return time.clock_gettime(~self.pid << 3 | 2)

    def count(self, metric: str) -> float:
        """The sum of a counter's series, from /metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics") as page:
            lines = page.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(metric + "{"))


def service(models: Path, **settings: object) -> AbstractContextManager[Server]:
    """Run `cellstream serve` with its default settings but these; beside the models is no cellstream.toml."""
    return installed_service(Path(sys.executable), models, **settings)


@contextmanager
def installed_service(python: Path, models: Path, **settings: object) -> Iterator[Server]:
    """Run the service that is installed in this Python's environment."""
    given = {"models": models, "port": 0, "metrics_port": 0, "log_format": "json", **settings}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    with _started(["-m", "cellstream.cli", "serve", *arguments], models, python) as server:
        yield server


@contextmanager
def echo() -> Iterator[Server]:
    """The bare echo."""
    with _started(["-m", "bench.echo"], ROOT) as server:
        yield server


@contextmanager
def _started(arguments: list[str], directory: Path, python: Path = Path(sys.executable)) -> Iterator[Server]:
    """A Python process that says, as JSON on standard error, where it serves; ended on leaving."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CELLSTREAM_")}
    with subprocess.Popen(
        [str(python), *arguments], cwd=directory, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield _find(process)
        finally:
            process.terminate()


def _find(process: subprocess.Popen[str]) -> Server:
    assert process.stderr is not None, "it was asked for"
    said = []
    for line in process.stderr:
        said.append(line)
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if event["event"] == "serving":
            return Server(process.pid, event["port"], event.get("metrics_port", 0))
    raise RuntimeError("the server did not start:\n" + "".join(said))
