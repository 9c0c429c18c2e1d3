"""The command: chooses what to measure, prints it, and keeps every run as JSON with a plot beside it."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import before, fronts, page, plots, report
from bench.measure import Plan
from bench.processes import ROOT
from bench.profile import check_perf, profile
from bench.rows import ROWS, Bench, Unavailable
from bench.sweep import Range, sweep
from cellstream.api import calm_collector

KEPT = ROOT / "build" / "bench"
"""Where results go that are not published."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what was asked for."""
    given = _parse(arguments)
    directory = page.RESULTS if given.what == "publish" else KEPT
    if "before" in given.side and given.what in ("fronts", "publish"):
        before.python()  # made now, or missed now
    calm_collector()  # as the server's: the engine's rows run in this process
    if given.what in ("profile", "publish"):
        check_perf()
    with tempfile.TemporaryDirectory() as models:

        def bench(seconds: float, pairs: int, warm_up_seconds: float) -> Bench:
            plan = Plan(given.seconds or seconds, given.pairs or pairs, given.warm_up or warm_up_seconds)
            return Bench(Path(models), given.hidden_size, given.idle_sessions, plan)

        if given.what in ("rows", "publish"):
            _rows(bench(1.0, 7, 2.0), given.only, given.json or directory / "rows.json")
        if given.what in ("fronts", "publish"):
            _fronts(bench(0.7, 7, 1.5), given.side, given.only, given.json or directory / "fronts.json")
        if given.what in ("sweep", "publish"):
            measured = bench(0.5, 3, 0.5)
            about = report.about(measured)
            _keep(given.json or directory / "sweep.json", about, "sweep", sweep(measured, Range()))
        if given.what in ("profile", "publish"):
            measured = bench(1.0, 5, 2.0)
            about = report.about(measured)
            _keep(given.json or directory / "profile.json", about, "profile", profile(measured))
    if given.what in ("page", "publish"):
        page.write()


def _rows(bench: Bench, only: Sequence[str], file: Path) -> None:
    about = report.about(bench)
    print(report.heading(about, "rows"), "\n", report.LEGEND, "\n", flush=True)
    measured: dict[str, dict[str, Any]] = {}
    for row in ROWS:
        if only and not row.name.startswith(tuple(only)):
            continue
        print(f"... {row.what}", flush=True)
        said = {"what": row.what, "against": row.against, "goal": row.goal}
        try:
            measured[row.name] = {**said, **row.measure(bench)}
        except Unavailable as reason:
            print(f"    left out: {reason}", flush=True)
    print("\n" + report.table(measured) + "\n\n" + report.legend(measured))
    _keep(file, about, "rows", measured)


def _fronts(bench: Bench, sides: Sequence[str], only: Sequence[str], file: Path) -> None:
    about = report.about(bench)
    print(report.heading(about, "fronts"), "\n", flush=True)
    found = fronts.compare(bench, sides, only)
    print("\n" + report.loads_markdown(found["loads"]))
    if found["gauges"]:
        print("\n" + report.gauges_markdown(found["gauges"]))
    print(f"\nShort of their goals: {'; '.join(report.fronts_short(found)) or 'none'}.")
    _keep(file, about, "fronts", found)


def _keep(file: Path, about: dict[str, Any], name: str, found: dict[str, Any]) -> None:
    """Writes the results, and draws them beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"about": about, name: found}, indent=1) + "\n", encoding="utf-8")
    if file.parent != page.RESULTS:  # what is published is drawn into the docs
        plots.DRAW[name](found, file.with_suffix(".png"))
    print(f"kept in {file}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    rows = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures what serving costs.")
    parser.add_argument(
        "what", nargs="?", default="rows", choices=("rows", "fronts", "sweep", "profile", "page", "publish")
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help=f"rows whose name begins so; of {', '.join(rows)}, and of fronts {', '.join(fronts.NAMES)}",
    )
    parser.add_argument(
        "--side",
        action="append",
        choices=fronts.SIDES,
        help="of fronts; ratios are to the first one given (default: all; `before` is made in build/ first)",
    )
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument("--pairs", type=int, help="measurements of each side")
    parser.add_argument("--warm-up", type=float, help="seconds, for each side")
    parser.add_argument("--hidden-size", type=int, default=256, help="units of a layer (default: 256)")
    parser.add_argument("--idle-sessions", type=int, default=100_000, help="(default: 100,000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the runs are kept; a plot beside it")
    given = parser.parse_args(arguments)
    names = fronts.NAMES if given.what == "fronts" else rows
    if given.only and not any(name.startswith(tuple(given.only)) for name in names):
        parser.error(f"no row begins with {' or '.join(given.only)}; the rows are {', '.join(names)}")
    if given.json and given.what == "publish":
        parser.error("publish keeps its results where the docs read them")
    given.side = given.side or fronts.SIDES
    return given


if __name__ == "__main__":
    main()
