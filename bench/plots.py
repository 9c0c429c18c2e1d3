"""The figures of the docs, from what was measured: ratios and goals, growth, where a token's time goes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from bench.report import short

MET, SHORT, PLAIN = "#2a7f62", "#c8553d", "#4f6d8f"

PARTS_COLOURS = ("#2a7f62", "#8fb8a8", "#d9a441", "#e8cf8e", "#7b5ea7", "#4f6d8f", "#9aa5b1", "#d0d4d8")


def draw_rows(rows: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """A bar for each ratio, with its spread, and a mark at its goal."""
    ratios = {name: row for name, row in rows.items() if "ratios" in row}
    figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.42 * len(ratios)), layout="constrained")
    for place, row in enumerate(ratios.values()):
        least, most, median = min(row["ratios"]), max(row["ratios"]), row["median"]
        colour = PLAIN if row["goal"] is None else SHORT if short(row) else MET
        axes.barh(place, median, height=0.6, color=colour)
        axes.plot([least, most], [place, place], color="black", linewidth=1)
        axes.text(max(most, row["goal"] or 0) + 0.03, place, f"{median:.2f}", va="center", fontsize=9)
        if row["goal"] is not None:
            axes.plot([row["goal"]] * 2, [place - 0.42, place + 0.42], color="black", linewidth=2)
    axes.set_yticks(range(len(ratios)), [row["what"] for row in ratios.values()], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 0.25 + max(max(row["ratios"]) for row in ratios.values()))
    axes.set_xlabel("tokens/s over the floor's; thick mark: goal, thin line: least to most of the pairs")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, file)


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
        axes.set_ylim(bottom=0)
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


def _save(figure: Any, file: Path) -> None:
    # No date and no version in the file: the same figures give the same bytes.
    figure.savefig(file, dpi=130, metadata={"Software": None})
    pyplot.close(figure)
