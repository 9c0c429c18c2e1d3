"""What a person reads: the machine and its versions, and the rows as a table, plain or in Markdown."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.processes import ROOT
from bench.rows import SEED, Bench

PACKAGES = ("onnxruntime", "numpy", "grpcio", "protobuf", "uvloop")

HEADINGS = (
    "row", "ratio", "min–max", "goal", "tokens/s", "floor", "CPU µs", "floor", "batch",
    "p50 ms", "p99 ms", "client CPU",
)  # fmt: skip

LEGEND = (
    "ratio: of tokens/s, the median of the pairs; CPU µs: of the process that serves, a token; batch: tokens "
    "a step; client CPU: the load client's, a process of its own, as a share of the server's"
)


def about(bench: Bench) -> dict[str, Any]:
    """When and where this runs, on what and how."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "hidden_size": bench.hidden_size,
        "idle_sessions": bench.idle_sessions,
        "seed": SEED,
        "pairs": bench.plan.pairs,
        "seconds": bench.plan.seconds,
        "warm_up_seconds": bench.plan.warm_up_seconds,
    }


METHODS = {
    "rows": "{pairs} alternating pairs of {seconds:g} s a side",
    "sweep": "{pairs} rounds of {seconds:g} s at each place",
    "fronts": "{pairs} rounds of {seconds:g} s a side",
    "profile": "One run of {pairs} × {seconds:g} s under each load",
}
"""How often and how long each kind of result was measured."""


def heading(about: Mapping[str, Any], kind: str) -> str:
    """What stands above a table; `kind`: one of `METHODS`."""
    packages = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    load = f"{about['load_average'][0]:.1f}"
    return (
        f"{about['date'].replace('T', ' ')}, commit {about['commit']}; {about['cpu']}, {about['cores']} "
        f"cores, load average {load} at the start; Python {about['python']}, {packages}. Model: LSTM 2 × "
        f"{about['hidden_size']} over 256 tokens, random weights, top-1; seed {about['seed']}. "
        f"{METHODS[kind].format_map(about)}, after a warm-up of {about['warm_up_seconds']:g} s"
        f"{'' if kind == 'profile' else '; medians'}."
    )


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows of a result, a line each."""
    lines = [HEADINGS, *(_cells(name, row) for name, row in rows.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as a table of the docs, each with what it means."""
    lines = [
        "| what | against | ratio (min–max) | goal | tokens/s | CPU µs: ours, floor | batch |",
        "|---" * 7 + "|",
    ]
    for name, row in rows.items():
        _, ratio, spread, goal, rate, _, cpu, floor_cpu, batch, *_ = _cells(name, row)
        cpus = f"{cpu}, {floor_cpu}" if cpu else ""
        cells = (row["what"], row["against"], f"**{ratio}** ({spread})", goal, rate, cpus, batch)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


SIDE_NAMES = {
    "before": "the service before",
    "native": "native",
    "grpcio": "grpcio",
    "echo": "grpc.aio echo",
    "bare": "bare ONNX Runtime",
}
"""What the sides of the fronts' rows are called."""

GOAL_FIGURES = {"cpu_microseconds": "CPU", "p50_ms": "p50"}
"""What has a goal, as a ratio to the first side; ours is `native`."""


def loads_markdown(loads: Mapping[str, Mapping[str, Any]]) -> str:
    """The loads of the fronts as a table, a line for each side."""
    lines = [
        "| load | side | CPU µs | ratio (min–max) | goal | p50 ms | ratio (min–max) | goal | p99 ms | "
        "per second | batch |",
        "|---" * 11 + "|",
    ]
    for load in loads.values():
        for place, (side, runs) in enumerate(load["sides"].items()):
            goals = load["goals"] if side == "native" else {}
            cells = [
                "" if place else load["what"],
                SIDE_NAMES[side],
                *_figure_cells(load, side, "cpu_microseconds", goals),
                *_figure_cells(load, side, "p50_ms", goals),
                _median_text(runs, "p99_ms", 2),
                f"{_median(runs, 'rate'):,.0f}",
                _median_text(runs, "mean_batch", 1),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gauges_markdown(gauges: Mapping[str, Mapping[str, Any]]) -> str:
    """The gauges of the fronts as a table, a column for each service."""
    sides = list(dict.fromkeys(side for gauge in gauges.values() for side in gauge["sides"]))
    lines = [
        "| what | " + " | ".join(SIDE_NAMES[side] for side in sides) + " | goal of native |",
        "|---" * (len(sides) + 2) + "|",
    ]
    for gauge in gauges.values():
        unit = f" {gauge['unit']}" if gauge["unit"] else ""
        cells = [
            f"**{statistics.median(values):,.0f}{unit}** ({min(values):,.0f}–{max(values):,.0f})"
            for values in gauge["sides"].values()
        ]
        goal = "" if gauge["goal"] is None else f"≤ {gauge['goal']:,}{unit}"
        lines.append("| " + " | ".join([gauge["what"], *cells, goal]) + " |")
    return "\n".join(lines)


def fronts_short(fronts: Mapping[str, Any]) -> list[str]:
    """What of the native transport falls short of its goal."""
    missed = []
    for load in fronts["loads"].values():
        for figure, goal in load["goals"].items() if "native" in load["sides"] else ():
            ratio = statistics.median(ratios(load, "native", figure))
            if ratio > goal:
                missed.append(f"{load['what']}, {GOAL_FIGURES[figure]} ({ratio:.2f} of {goal:.2f})")
    for gauge in fronts["gauges"].values():
        if gauge["goal"] is not None and "native" in gauge["sides"]:
            value = statistics.median(gauge["sides"]["native"])
            if value > gauge["goal"]:
                missed.append(f"{gauge['what']} ({value:,.0f} of {gauge['goal']:,})")
    return missed


def ratios(load: Mapping[str, Any], side: str, figure: str) -> list[float]:
    """Return a figure of a side over the first side's, round by round."""
    first = next(iter(load["sides"].values()))
    return [ours[figure] / base[figure] for ours, base in zip(load["sides"][side], first, strict=True)]


def _figure_cells(
    load: Mapping[str, Any], side: str, figure: str, goals: Mapping[str, float]
) -> tuple[str, str, str]:
    """A figure's median, its ratio to the first side with the spread, and the goal."""
    runs = load["sides"][side]
    if runs[0][figure] is None:
        return "", "", ""
    value = f"{_median(runs, figure):.1f}" if figure == "cpu_microseconds" else f"{_median(runs, figure):.3f}"
    found = ratios(load, side, figure)
    ratio = f"**{statistics.median(found):.2f}** ({min(found):.2f}–{max(found):.2f})"
    is_first = side == next(iter(load["sides"]))
    return value, "" if is_first else ratio, f"≤ {goals[figure]:.2f}" if figure in goals else ""


def _median_text(runs: Sequence[Mapping[str, Any]], key: str, digits: int) -> str:
    return "" if runs[0][key] is None else f"{_median(runs, key):.{digits}f}"


def legend(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What the rows' names stand for."""
    return "\n".join(f"{name:13} {row['what']}; against: {row['against']}" for name, row in rows.items())


def short(row: Mapping[str, Any]) -> bool:
    """Whether the row falls short of its goal."""
    goal: float | None = row["goal"]
    if goal is None:
        return False
    return bool(row["median"] > goal if "values" in row else row["median"] < goal)


def _cells(name: str, row: Mapping[str, Any]) -> Sequence[str]:
    if "values" in row:
        values, unit = row["values"], row["unit"]
        spread = f"{min(values):,.0f}–{max(values):,.0f}"
        return (name, f"{row['median']:,.0f} {unit}", spread, f"≤ {row['goal']:,.0f} {unit}", *[""] * 8)
    ours, floor, ratios = row["ours"], row["floor"], row["ratios"]
    client = [run["client_cpu_seconds"] / run["cpu_seconds"] for run in ours if run["client_cpu_seconds"]]
    return (
        name,
        f"{row['median']:.2f}",
        f"{min(ratios):.2f}–{max(ratios):.2f}",
        "" if row["goal"] is None else f"≥ {row['goal']:.2f}",
        f"{_median(ours, 'rate'):,.0f}",
        f"{_median(floor, 'rate'):,.0f}",
        f"{_median(ours, 'cpu_microseconds'):.1f}",
        f"{_median(floor, 'cpu_microseconds'):.1f}",
        *(
            "" if ours[0][key] is None else f"{_median(ours, key):.{digits}f}"
            for key, digits in (("mean_batch", 1), ("p50_ms", 2), ("p99_ms", 2))
        ),
        f"{statistics.median(client):.0%}" if client else "",
    )


def _median(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(statistics.median(run[key] for run in runs))


@cache
def _commit() -> str:
    """The tree's commit, asked for once: what is published changes the tree."""
    command = ["git", "describe", "--always", "--dirty"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def processor() -> str:
    """What the machine calls its processor."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
