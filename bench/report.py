"""What a person reads and what is kept: the machine, the versions, a plain table, all raw numbers."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.measure import Comparison, Run
from bench.processes import ROOT
from bench.rows import Row

PACKAGES = ("onnxruntime", "numpy", "grpcio", "protobuf", "uvloop")

HEADINGS = (
    "row", "ratio", "min-max", "goal", "tokens/s", "floor", "CPU us/token", "floor", "batch",
    "p50 ms", "p99 ms", "client CPU",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Where this runs."""
    cpus = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    return {
        "cpu": cpus[0].partition(": ")[2] if cpus else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def heading(about: dict[str, Any]) -> str:
    """What stands above the table."""
    packages = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    load = " ".join(f"{load:.2f}" for load in about["load_average"])
    return (
        f"{about['date']}  commit {about['commit']}\n"
        f"{about['cpu']}, {about['cores']} cores, load average {load} at the start, {about['system']}\n"
        f"Python {about['python']}, {packages}\n"
        f"model: LSTM {about['layers']} x {about['hidden_size']}, V = 256, random weights, top-1; seed "
        f"{about['seed']}\n"
        f"{about['pairs']} alternating pairs of {about['seconds']:g} s a side after a warm-up of "
        f"{about['warm_up_seconds']:g} s; medians; closed loop, one connection\n"
        "client CPU: the load client's, a process of its own, as a share of the server's\n"
    )


def table(rows: Iterable[tuple[Row, Comparison]]) -> str:
    """The rows, a line each, and under it what they mean."""
    lines = [HEADINGS, *(_cells(row, comparison) for row, comparison in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def legend(rows: Iterable[Row]) -> str:
    """What the rows' names stand for."""
    return "\n".join(f"{row.name:13} {row.what}; floor: {row.against}" for row in rows)


def _cells(row: Row, comparison: Comparison) -> Sequence[str]:
    ours, ratios = comparison.ours, comparison.ratios
    return (
        row.name,
        f"{statistics.median(ratios):.2f}",
        f"{min(ratios):.2f}-{max(ratios):.2f}",
        f"{row.goal:.2f}",
        f"{_median(ours, 'rate'):,.0f}",
        f"{_median(comparison.floor, 'rate'):,.0f}",
        f"{_median(ours, 'cpu_microseconds_per_token'):.2f}",
        f"{_median(comparison.floor, 'cpu_microseconds_per_token'):.2f}",
        f"{_median(ours, 'mean_batch'):.1f}",
        f"{_median(ours, 'p50_ms'):.2f}" if ours[0].p50_ms is not None else "",
        f"{_median(ours, 'p99_ms'):.2f}" if ours[0].p99_ms is not None else "",
        _client_share(ours),
    )


def _client_share(runs: Sequence[Run]) -> str:
    """The load client's processor time as a share of the server's."""
    shares = [run.client_cpu_seconds / run.cpu_seconds for run in runs if run.client_cpu_seconds is not None]
    return f"{statistics.median(shares):.0%}" if shares else ""


def _median(runs: Sequence[Run], attribute: str) -> float:
    median: float = statistics.median(getattr(run, attribute) for run in runs)
    return median


def _commit() -> str:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "unknown"


def _read(file: str) -> str:
    return Path(file).read_text(encoding="utf-8") if sys.platform == "linux" else ""
