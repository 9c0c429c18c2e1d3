"""The figures of the docs, from what was measured: ratios and goals, growth, where a token's time goes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import patches, pyplot, ticker

from bench.report import SIDE_NAMES, short

MET, SHORT, PLAIN = "#2a7f62", "#c8553d", "#4f6d8f"

SIDE_COLOURS = {
    "before": "#9aa5b1", "native": "#2a7f62", "grpcio": "#4f6d8f", "echo": "#d9a441", "bare": "#d0d4d8",
}  # fmt: skip

PARTS_COLOURS = ("#2a7f62", "#8fb8a8", "#d9a441", "#e8cf8e", "#7b5ea7", "#4f6d8f", "#9aa5b1", "#d0d4d8")


def draw_rows(rows: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """A bar for each ratio, its spread, a mark at its goal; those without one have an axis of their own."""
    ratios = [row for row in rows.values() if "ratios" in row]
    groups = [[row for row in ratios if (row["goal"] is None) is free] for free in (False, True)]
    groups = [group for group in groups if group] or [[]]
    figure, grid = pyplot.subplots(
        len(groups),
        1,
        figsize=(9, 1 + 0.5 * len(ratios)),
        height_ratios=[1 + len(group) for group in groups],
        layout="constrained",
        squeeze=False,
    )
    for group, axes in zip(groups, grid.flat, strict=True):
        _draw_ratios(axes, group)
    figure.supxlabel(
        "tokens/s over the floor's; thick mark: the goal, thin line: least to most of the pairs", fontsize=9
    )
    _save(figure, file)


def _draw_ratios(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    longest = max((max(*row["ratios"], row["goal"] or 0) for row in rows), default=1)
    for place, row in enumerate(rows):
        least, most, goal = min(row["ratios"]), max(row["ratios"]), row["goal"]
        axes.barh(
            place, row["median"], height=0.6, color=PLAIN if goal is None else SHORT if short(row) else MET
        )
        axes.plot([least, most], [place, place], color="black", linewidth=1)
        if goal is not None:
            axes.plot([goal, goal], [place - 0.42, place + 0.42], color="black", linewidth=2.5)
        axes.text(1.02 * longest, place, f"{row['median']:.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [row["what"] for row in rows], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * longest)
    axes.spines[["top", "right"]].set_visible(False)


def draw_sweep(panels: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """A panel for each axis: CPU microseconds a token, median and spread of the rounds."""
    figure, grid = pyplot.subplots(2, 3, figsize=(12, 6.5), layout="constrained")
    for axes, (name, panel) in zip(grid.flat, panels.items(), strict=True):
        for (line, places), colour in zip(panel["lines"].items(), (MET, PLAIN), strict=False):
            ticks = [int(place) for place in places]
            # An idle server has no place on an axis of powers: it stands where 100 would.
            at = [tick or 100 for tick in ticks]
            costs = [[run["cpu_microseconds"] for run in runs] for runs in places.values()]
            medians = [statistics.median(each) for each in costs]
            axes.plot(at, medians, marker="o", markersize=4, color=colour, label=line)
            axes.fill_between(
                at, [min(each) for each in costs], [max(each) for each in costs], color=colour, alpha=0.2
            )
            axes.set_xscale("linear" if name == "layers" else "log")
            axes.set_xticks(at, [f"{tick:,}" for tick in ticks])
            axes.minorticks_off()
        if name in ("layers", "idle"):
            axes.set_ylim(bottom=0)
        else:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(ticker.NullLocator())
        axes.set_xlabel(panel["axis"])
        axes.set_ylabel("CPU µs a token")
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, file)


def draw_profile(loads: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """A bar for each load: what a token costs, by library."""
    figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.9 * len(loads)), layout="constrained")
    left = [0.0] * len(loads)
    names = list(next(iter(loads.values()))["parts"])
    for part, colour in zip(names, PARTS_COLOURS, strict=True):
        widths = [load["parts"][part] for load in loads.values()]
        bars = axes.barh(range(len(loads)), widths, left=left, color=colour, label=part, height=0.6)
        longest = max(load["cpu_microseconds"] for load in loads.values())
        labels = [f"{width:.1f}" if width > 0.03 * longest else "" for width in widths]
        axes.bar_label(bars, labels, label_type="center", fontsize=8)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(loads)), list(loads))
    axes.invert_yaxis()
    axes.set_xlabel("CPU µs of the serving process, a token")
    axes.legend(ncols=4, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, file)


def draw_fronts(fronts: Mapping[str, Any], file: Path) -> None:
    """A group of bars for each load: CPU microseconds a token of each side, median and spread."""
    loads = list(fronts["loads"].values())
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.8 * len(loads)), layout="constrained")
    for place, load in enumerate(loads):
        for number, side in enumerate(SIDE_NAMES):
            costs = [run["cpu_microseconds"] for run in load["sides"].get(side, ())]
            if not costs:
                continue
            at, median = place + 0.16 * (number - 2), statistics.median(costs)
            axes.barh(at, median, height=0.15, color=SIDE_COLOURS[side])
            axes.plot([min(costs), max(costs)], [at, at], color="black", linewidth=0.8)
            axes.text(1.05 * max(costs), at, f"{median:.1f}", va="center", fontsize=7)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(loads)), [load["what"] for load in loads], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("CPU µs of the serving process, a token or a call")
    colours = [patches.Patch(color=colour) for colour in SIDE_COLOURS.values()]
    axes.legend(
        colours, [SIDE_NAMES[side] for side in SIDE_COLOURS], frameon=False, fontsize=8, loc="upper center",
        ncols=len(SIDE_COLOURS), bbox_to_anchor=(0.5, -0.08),
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, file)


DRAW = {"rows": draw_rows, "fronts": draw_fronts, "sweep": draw_sweep, "profile": draw_profile}
"""By the name of a result."""


def _save(figure: Any, file: Path) -> None:
    # No date and no version in the file: the same figures give the same bytes.
    figure.savefig(file, dpi=130, metadata={"Software": None})
    pyplot.close(figure)
