"""Where a microsecond goes: what perf and py-spy see of the serving process under load.

Linux's perf samples the process's CPU time and names the library that it was in. py-spy samples the stack of
Python's main thread and names the module of ours that was innermost, whatever library that had called. The
share of each, times the CPU microseconds of a token, is what a token costs there.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import processes
from bench.rows import SEED, Bench
from bench.traffic import Traffic

PARTS = {
    "ONNX Runtime": ("onnxruntime",),
    "copies and memory (libc)": ("libc.so", "libc-", "libstdc++", "ld-linux"),
    "Python": ("libpython", "python3", "_asyncio", "_struct", "_heapq", "_bisect", "math."),
    "numpy": ("_multiarray", "openblas"),
    "protobuf": ("_message",),
    "uvloop, grpcio": ("cygrpc", "loop.cpython"),
    "kernel": ("[kernel", "[vdso", "[guest", "[unknown"),
}
"""By the beginning or a piece of a library's name; what is none of these is `other`."""

MODULES = {
    "the engine, ONNX Runtime in it": ("cellstream/engine/", "cellstream/api/engine_loop.py"),
    "sockets: writing, turns": ("cellstream/transport/listener.py", "cellstream/transport/tls.py"),
    "HTTP/2": ("cellstream/transport/http2.py", "cellstream/transport/frames.py"),
    "gRPC": ("cellstream/transport/",),
    "the event loop: waiting, reading": ("cellstream/api/server.py",),
    "messages: parsing, checking, answering": ("cellstream/api/",),
    "sessions": ("cellstream/sessions/",),
    "metrics": ("cellstream/metrics.py",),
}
"""By the beginning of a module's path, the first that fits; what is none of these is `other`."""

SPY_HERTZ = 250
"""Samples a second; each stops the process for some tenths of a millisecond."""

RECORD = ("perf", "record", "--quiet", "--event", "cpu-clock", "--freq", "999")

LOADS = {
    "8 × 64 feeds": (8, 8, 64),
    "1 × 64 feeds": (1, 1, 64),
    "64 × 1, 8 connections": (64, 8, 1),
    "64 × 1, 64 connections": (64, 64, 1),
    "1 × 1": (1, 1, 1),
}
"""By name, streams, connections and feeds of a message; all behind the native transport."""

NEEDED = (
    "It needs perf (Debian: linux-perf) and the right to use it (root, or kernel.perf_event_paranoid <= 1), "
    "and py-spy with the right to look at another process (root, or kernel.yama.ptrace_scope = 0)."
)


class PerfFailed(Exception):
    """There is no perf or no py-spy, or it may not look."""


def check_perf() -> None:
    """Raise PerfFailed where there is no perf or no py-spy: asked before anything is measured."""
    for program in ("perf", "py-spy"):
        if _which(program) is None:
            raise PerfFailed(f"There is no {program} here. {NEEDED}")


def profile(bench: Bench, say: Any = print) -> dict[str, Any]:
    """Profile the service under each load.

    Returns:
        For each load: `cpu_microseconds` of a token, the part of each library in `parts` and of each part of
        ours in `modules`; `samples`, and the libraries as perf names them, with their shares.

    Raises:
        PerfFailed: perf or py-spy is not there, or may not look.
    """
    found = {}
    for name, (streams, connections, feeds) in LOADS.items():
        say(f"... {name}", flush=True)
        with (
            processes.service(bench.models(), transport="native") as server,
            Traffic(server, streams=streams, feeds=feeds, seed=SEED, connections=connections) as load,
        ):
            load.run(bench.plan.warm_up_seconds)
            found[name] = _profile(server.pid, load, bench.plan.seconds * bench.plan.pairs)
    return found


def _profile(pid: int, load: Traffic, seconds: float) -> dict[str, Any]:
    """Sample the process twice under load: by perf, then by py-spy, which slows what it looks at."""
    with tempfile.NamedTemporaryFile(suffix=".perf") as file:
        record = _start([*RECORD, "--pid", str(pid), "--output", file.name])
        run = load.run(seconds)
        shares, samples = read_shares(_report(file.name, _stop(record)))
    with tempfile.NamedTemporaryFile(suffix=".stacks") as file:
        command = [_which("py-spy") or "py-spy", "record", "--pid", str(pid), "--format", "raw"]
        options = ["--rate", str(SPY_HERTZ), "--duration", "unlimited", "--output", file.name]
        record = _start([*command, *options])
        load.run(seconds)
        said = _stop(record)
        modules = by_module(Path(file.name).read_text(encoding="utf-8"))
    if not modules:
        raise PerfFailed(f"py-spy saw nothing: {said.strip()}\n{NEEDED}")
    cost = run.cpu_microseconds
    return {
        "cpu_microseconds": cost,
        "samples": samples,
        "parts": {part: share * cost for part, share in by_part(shares).items()},
        "modules": {part: share * cost for part, share in modules.items()},
        "shares": shares,
    }


def by_module(stacks: str) -> dict[str, float]:
    """Return the share of each part of ours in py-spy's stacks of the main thread, of `MODULES` and `other`.

    Args:
        stacks: Lines of frames, outermost first, joined by semicolons, and how often it was seen.
    """
    counts = dict.fromkeys([*MODULES, "other"], 0)
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        if "_bootstrap" in stack:
            continue  # a thread that waits: py-spy takes some of those for busy
        ours = [frame.partition("(")[2] for frame in stack.split(";") if "(cellstream/" in frame]
        innermost = ours[-1] if ours else ""
        owners = [part for part, begins in MODULES.items() if innermost.startswith(begins)]
        counts[owners[0] if owners else "other"] += int(count)
    samples = sum(counts.values())
    return {part: count / samples for part, count in counts.items()} if samples else {}


def read_shares(report: str) -> tuple[dict[str, float], int]:
    """Of each library in a report of perf, its share of the samples; and how many samples there are."""
    counts = {name: int(count) for count, name in re.findall(r"^ +[\d.]+% +(\d+) +(\S+)", report, re.M)}
    samples = sum(counts.values())
    return {name: count / samples for name, count in counts.items()}, samples


def by_part(shares: dict[str, float]) -> dict[str, float]:
    """The shares of libraries, summed up to those of `PARTS` and `other`."""
    parts = dict.fromkeys([*PARTS, "other"], 0.0)
    for library, share in shares.items():
        owners = [part for part, pieces in PARTS.items() if any(piece in library for piece in pieces)]
        parts[owners[0] if owners else "other"] += share
    return parts


def _which(program: str) -> str | None:
    """Where a program is: beside this Python, or on the path."""
    return shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _stop(record: subprocess.Popen[str]) -> str:
    """Have it write what it has; return what it said."""
    record.send_signal(signal.SIGINT)
    return record.communicate()[1]


def _report(file: str, said: str) -> str:
    """What perf counted, as text; `said` is what it wrote while it recorded."""
    command = ["perf", "report", "--input", file, "--stdio", "--sort", "dso", "--show-nr-samples"]
    reported = subprocess.run(command, check=False, capture_output=True, text=True)
    if reported.returncode:
        raise PerfFailed(f"perf could not record: {said.strip() or reported.stderr.strip()}\n{NEEDED}")
    return reported.stdout
