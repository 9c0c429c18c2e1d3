"""Where a microsecond goes: what perf sees of the serving process under load, by library.

Linux's perf samples the process's CPU time and names the library that it was in; the share of each, times
the CPU microseconds of a token, is what a token costs there.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
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
    "gRPC and uvloop": ("cygrpc", "loop.cpython"),
    "kernel": ("[kernel", "[vdso", "[guest", "[unknown"),
}
"""By the beginning or a piece of a library's name; what is none of these is `other`."""

RECORD = ("perf", "record", "--quiet", "--event", "cpu-clock", "--freq", "999")

LOADS = {
    "8 streams × 64 feeds": (8, 64),
    "1 stream × 64 feeds": (1, 64),
    "64 streams × 1 token": (64, 1),
}


NEEDED = (
    "It needs perf (Debian: linux-perf) and the right to use it (root, or kernel.perf_event_paranoid <= 1)."
)


class PerfFailed(Exception):
    """There is no perf, or it may not look."""


def check_perf() -> None:
    """Raises PerfFailed where there is no perf: asked before anything is measured."""
    if shutil.which("perf") is None:
        raise PerfFailed(f"There is no perf here. {NEEDED}")


def profile(bench: Bench, say: Any = print) -> dict[str, Any]:
    """Profiles the service under each load.

    Returns:
        For each load: `cpu_microseconds` of a token, the part of each library in `parts`, `samples`, and the
        libraries as perf names them, with their shares.

    Raises:
        PerfFailed: perf is not there, or may not look.
    """
    found = {}
    for name, (streams, feeds) in LOADS.items():
        say(f"... {name}", flush=True)
        with (
            processes.service(bench.models()) as server,
            Traffic(server, streams=streams, feeds=feeds, seed=SEED) as load,
            tempfile.NamedTemporaryFile(suffix=".perf") as file,
        ):
            load.run(bench.plan.warm_up_seconds)
            record = subprocess.Popen(
                [*RECORD, "--pid", str(server.pid), "--output", file.name],
                stderr=subprocess.PIPE,
                text=True,
            )
            run = load.run(bench.plan.seconds * bench.plan.pairs)
            record.send_signal(signal.SIGINT)
            _, said = record.communicate()
            shares, samples = read_shares(_report(file.name, said))
        found[name] = {
            "cpu_microseconds": run.cpu_microseconds,
            "samples": samples,
            "parts": {part: share * run.cpu_microseconds for part, share in by_part(shares).items()},
            "shares": shares,
        }
    return found


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


def _report(file: str, said: str) -> str:
    """What perf counted, as text; `said` is what it wrote while it recorded."""
    command = ["perf", "report", "--input", file, "--stdio", "--sort", "dso", "--show-nr-samples"]
    reported = subprocess.run(command, check=False, capture_output=True, text=True)
    if reported.returncode:
        raise PerfFailed(f"perf could not record: {said.strip() or reported.stderr.strip()}\n{NEEDED}")
    return reported.stdout
