"""Puts committed results into the docs: the tables between marks, and the figures beside a page.

A mark is `<!-- bench: NAME -->`, and what follows it up to `<!-- end -->` is written here, never by hand.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import plots, report
from bench.processes import ROOT

RESULTS = ROOT / "bench" / "results"
PAGES = tuple(ROOT / file for file in ("docs/performance.md", "docs/export.md", "README.md"))
"""Where marks are."""

FIGURES = ROOT / "docs" / "performance"

_MARKED = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", re.S)


def write(results: Path = RESULTS) -> None:
    """Writes all tables, and the figures, from the results in a directory."""
    FIGURES.mkdir(exist_ok=True)
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), results), encoding="utf-8")
    for name, draw in plots.DRAW.items():
        draw(_read(results, name)[name], FIGURES / f"{name}.png")


def filled(text: str, results: Path = RESULTS) -> str:
    """A page's text with everything between marks as the results say."""

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}{BLOCKS[found[2]](results)}\n{found[3]}"

    return _MARKED.sub(block, text)


def _read(results: Path, name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
    return told


def _about(name: str) -> Callable[[Path], str]:
    return lambda results: report.heading(_read(results, name)["about"], name)


def _rows(begin: str = "") -> Callable[[Path], str]:
    """The rows whose names begin so."""

    def block(results: Path) -> str:
        rows = _read(results, "rows")["rows"]
        return report.markdown({name: row for name, row in rows.items() if name.startswith(begin)})

    return block


def _latencies(results: Path) -> str:
    """Round trips of the service rows."""
    lines = ["| what | p50 ms | p99 ms | replies a stream | load client's CPU |", "|---" * 5 + "|"]
    for row in _read(results, "rows")["rows"].values():
        runs = row.get("ours", [])
        if not runs or runs[0]["p50_ms"] is None:
            continue
        p50, p99 = (statistics.median(run[key] for run in runs) for key in ("p50_ms", "p99_ms"))
        fewest, most = (sum(run["stream_replies"][end] for run in runs) for end in (0, 1))
        client = statistics.median(run["client_cpu_seconds"] / run["cpu_seconds"] for run in runs)
        lines.append(f"| {row['what']} | {p50:.2f} | {p99:.2f} | {fewest:,}–{most:,} | {client:.0%} |")
    return "\n".join(lines)


def _short(results: Path) -> str:
    """The rows that fall short."""
    rows = _read(results, "rows")["rows"]
    missed = [f"{row['what']} ({_figure(row)})" for row in rows.values() if report.short(row)]
    return f"In this run: {'; '.join(missed)}." if missed else "In this run: none."


def _figure(row: Mapping[str, Any]) -> str:
    if "values" in row:
        return f"{row['median']:,.0f} {row['unit']} of {row['goal']:,} {row['unit']}"
    return f"{row['median']:.2f} of {row['goal']:.2f}"


def _fronts(results: Path) -> dict[str, Any]:
    fronts: dict[str, Any] = _read(results, "fronts")["fronts"]
    return fronts


def _fronts_short(results: Path) -> str:
    """What of the native transport falls short."""
    missed = report.fronts_short(_fronts(results))
    return f"In this run: {'; '.join(missed)}." if missed else "In this run: none."


def _profile(parts: str) -> Callable[[Path], str]:
    """A table of one division of a token's time: `parts`, by library, or `modules`, by part of ours."""

    def block(results: Path) -> str:
        loads: Mapping[str, Mapping[str, Any]] = _read(results, "profile")["profile"]
        lines = ["| CPU µs a token | " + " | ".join(loads) + " |", "|---" * (len(loads) + 1) + "|"]
        for part in next(iter(loads.values()))[parts]:
            costs = " | ".join(f"{load[parts][part]:.1f}" for load in loads.values())
            lines += [f"| {part} | {costs} |"]
        totals = " | ".join(f"**{load['cpu_microseconds']:.1f}**" for load in loads.values())
        return "\n".join([*lines, f"| all | {totals} |"])

    return block


BLOCKS: dict[str, Callable[[Path], str]] = {
    "about_rows": _about("rows"),
    "about_fronts": _about("fronts"),
    "about_sweep": _about("sweep"),
    "about_profile": _about("profile"),
    "rows": _rows(),
    "fronts": lambda results: report.loads_markdown(_fronts(results)["loads"]),
    "fronts_gauges": lambda results: report.gauges_markdown(_fronts(results)["gauges"]),
    "fronts_short": _fronts_short,
    "int8": _rows("int8"),
    "latencies": _latencies,
    "profile": _profile("parts"),
    "profile_modules": _profile("modules"),
    "short": _short,
}
