"""`cellstream serve` in a process of its own, and what can be seen of it from outside.

Knows how to start it, where it serves, its memory, its file descriptors and its metrics. Its log goes to a
file, so that nobody has to read it while it serves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS_MAX = 60.0
"""Longer than loading two small models takes on a busy machine."""
STOP_SECONDS_MAX = 30.0
"""Longer than `drain_seconds`."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is up.

    Attributes:
        process: Its process.
        port: Where it serves gRPC, on 127.0.0.1.
        metrics_port: Where its metrics are.
        models: What it serves.
        log: The file of its log, JSON lines.
    """

    process: subprocess.Popen[bytes]
    port: int
    metrics_port: int
    models: Path
    log: Path

    @property
    def target(self) -> str:
        """What a client connects to."""
        return f"127.0.0.1:{self.port}"

    def resident_bytes(self) -> int:
        """How much memory it holds now."""
        return self._status_kilobytes("VmRSS") << 10

    def resident_bytes_peak(self) -> int:
        """The most memory that it held since it started, or since `reset_peak`."""
        return self._status_kilobytes("VmHWM") << 10

    def reset_peak(self) -> None:
        """Let `resident_bytes_peak` begin anew (proc(5), clear_refs)."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def open_files(self) -> int:
        """How many file descriptors it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu_seconds(self) -> float:
        """What all its threads have spent so far; see `bench.processes` for the clock's number."""
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def metrics(self) -> dict[str, float]:
        """Every series of /metrics, its labels summed over."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as page:
            lines = page.read().decode().splitlines()
        found: dict[str, float] = {}
        for line in lines:
            if not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                name = series.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def is_up(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    def mistakes(self) -> list[str]:
        """Lines of its log that tell of a mistake of ours, or that are no JSON (a traceback)."""
        return [line for line in self.log.read_text(errors="replace").splitlines() if _is_mistake(line)]

    def _status_kilobytes(self, name: str) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
        raise ProcessLookupError(f"process {self.process.pid} has no {name}")


def _is_mistake(line: str) -> bool:
    try:
        return json.loads(line)["level"] in ("error", "critical")
    except (ValueError, KeyError, TypeError):
        return bool(line.strip())


@contextmanager
def serving(
    models: Path,
    log: Path,
    *,
    tree: Path = ROOT,
    cores: set[int] | None = None,
    settings: Mapping[str, object] | None = None,
) -> Iterator[Server]:
    """Run a server until the block is left.

    Args:
        models: Directory of <name>/<version>/ folders; also the working directory, so that no cellstream.toml
            is read.
        log: Where its log goes.
        tree: The source tree whose server it is.
        cores: The CPU cores it may use; None: all.
        settings: Its settings, beside the defaults; None is left out.

    Raises:
        RuntimeError: It did not start; the message has its log.
    """
    given = {"models": models, "port": 0, "metrics_port": 0, "log_format": "json", **(settings or {})}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CELLSTREAM_")}
    environment["PYTHONPATH"] = str(tree / "service")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cellstream.cli", "serve", *flags],
            cwd=models,
            env=environment,
            stderr=output,
            stdout=subprocess.DEVNULL,
            preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
        )
    try:
        yield _find(process, models, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _find(process: subprocess.Popen[bytes], models: Path, log: Path) -> Server:
    """Read its log until it says where it serves."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text(errors="replace").splitlines():
            event = _event(line)
            if event.get("event") == "serving":
                port, metrics_port = (int(str(event[name])) for name in ("port", "metrics_port"))
                return Server(process, port, metrics_port, models, log)
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')}")


def _event(line: str) -> dict[str, object]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Ask again and again until `condition()` is true.

    Raises:
        AssertionError: It was not, for so long.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)
