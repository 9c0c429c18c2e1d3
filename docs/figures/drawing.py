"""The pictures: SVG, the same file for the same numbers, one meaning a colour.

Backgrounds are transparent and ink is dark: the site's style sheet turns lightness round in dark mode.
Colours are Okabe and Ito's, and the diverging map runs from blue over white to orange: told apart by the
colour-blind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from docs.figures.cells import GATES, Finding, Play
from docs.figures.measures import Numbers, surprise_bits
from docs.figures.reading import GUIDE, Trace, as_tokens
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
DIVERGING = LinearSegmentedColormap.from_list("blue-orange", [BLUE, "#ffffff", ORANGE], N=17)  # small files
SYMBOLS = {"forget": "f", "input": "i", "candidate": "C̃", "output": "o"}

BITS_MIN = 1e-5
"""Below this, divergences are float32's rounding."""

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "guide",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
}


def save(figure: Figure, name: str) -> None:
    """Writes a picture where the guide's pages look for it."""
    figure.savefig(GUIDE / "figures" / f"{name}.svg", metadata={"Date": None}, transparent=True, dpi=100)


def new(width: float, height: float) -> Figure:
    """An empty picture; sizes in inches."""
    mpl.rcParams.update(STYLE)
    return Figure(figsize=(width, height), layout="constrained")


def visible(character: str) -> str:
    """A character as a picture shows it."""
    return {"\n": "↵", " ": "␣"}.get(character, character)


def name_characters(axes: Axes, text: str) -> None:
    """One tick a character, none of the ticks' lines."""
    axes.set_xticks(np.arange(len(text)), [visible(character) for character in text], fontsize=9)
    axes.tick_params(axis="x", length=0, pad=2)
    axes.set_xlim(-0.6, len(text) - 0.4)


def draw_surprise(trace: Trace) -> Figure:
    """A bar for each character: how much it surprised the model that had read all before it."""
    bits = surprise_bits(trace.log_probabilities, as_tokens(trace.text))
    figure = new(10, 2.6)
    axes = figure.subplots()
    axes.bar(np.arange(1, len(trace.text)), bits, color=np.where(bits > 5, ORANGE, BLUE), width=0.75)
    axes.set_ylabel("surprise, bits")
    name_characters(axes, trace.text)
    return figure


def draw_forgetting(curves: Mapping[str, Numbers]) -> Figure:
    """What a wrong past costs, against the characters read since."""
    figure = new(7, 3.4)
    axes = figure.subplots()
    for (name, curve), colour, style in zip(curves.items(), (ORANGE, BLUE), ("--", "-"), strict=True):
        axes.plot(np.arange(1, len(curve) + 1), curve, style, color=colour, label=name, linewidth=1.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100, 200], ["1", "2", "5", "10", "20", "50", "100", "200"])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.set_ylim(bottom=BITS_MIN)
    axes.set(xlabel="characters read since the pasts met", ylabel="bits lost a character")
    axes.legend(frameon=False)
    return figure


def draw_heat(text: str, layers: Sequence[Numbers], names: Sequence[str], order: Sequence[Numbers]) -> Figure:
    """States over time: a column a character, a row a cell.

    Args:
        text: What was read.
        layers: For each panel the values, [time, units].
        names: For each panel.
        order: For each panel the cells from the lowest row to the highest, [units].
    """
    figure = new(10, 2.6 * len(layers) + 0.3)
    panels = figure.subplots(len(layers), 1, squeeze=False)[:, 0]
    for axes, values, name, cells in zip(panels, layers, names, order, strict=True):
        limit = float(np.quantile(np.abs(np.concatenate([part.reshape(-1) for part in layers])), 0.98))
        image = axes.imshow(
            values.T[cells],
            aspect="auto",
            origin="lower",
            cmap=DIVERGING,
            vmin=-limit,
            vmax=limit,
            interpolation="none",
        )
        name_characters(axes, text)
        axes.set_yticks([])
        axes.set_ylabel(name)
        axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=list(panels), shrink=0.6, aspect=25, pad=0.01)
    return figure


def draw_gates(trace: Trace) -> Figure:
    """What the gates of each layer did at each character: means over its cells, against the usual."""
    layers = trace.gates["forget"].shape[1]
    means = np.stack([np.abs(trace.gates[gate]).mean(-1) for gate in SYMBOLS])  # [gates, time, layers]
    usual = means.mean(1, keepdims=True)
    limit = float(np.quantile(np.abs(means - usual), 0.98))
    figure = new(10, 1.45 * layers + 0.5)
    panels = figure.subplots(layers, 1, squeeze=False)[:, 0]
    for layer, axes in enumerate(panels):
        image = axes.imshow(
            (means - usual)[:, :, layer],
            aspect="auto",
            cmap=DIVERGING,
            vmin=-limit,
            vmax=limit,
            interpolation="none",
        )
        names = ("f", "i", "|C̃|", "o")
        labels = [f"{name}   {mean:.2f}" for name, mean in zip(names, usual[:, 0, layer], strict=True)]
        axes.set_yticks(np.arange(4), labels)
        axes.tick_params(axis="y", length=0)
        axes.set_ylabel(f"layer {layer + 1}")
        axes.spines[:].set_visible(False)
        name_characters(axes, trace.text)
    figure.colorbar(image, ax=list(panels), shrink=0.8, aspect=18, pad=0.01)
    return figure


def draw_one_cell(trace: Trace, layer: int, unit: int) -> Figure:
    """Everything that one cell did: its gates, what it might have written, what it held and what it showed.

    Args:
        trace: The sentence.
        layer: From 0.
        unit: From 0.
    """
    figure = new(10, 5.6)
    panels = figure.subplots(6, 1, sharex=True)
    for axes, (name, values) in zip(panels, of_cell(trace, layer, unit).items(), strict=True):
        signed = name in ("C̃", "C", "h")
        colours = np.where(values >= 0, ORANGE, BLUE) if signed else GREEN
        axes.bar(np.arange(len(values)), values, color=colours, width=0.75)
        axes.axhline(0, color="black", linewidth=0.6)
        if name != "C":  # all others are bounded by their functions, σ and tanh
            axes.set_ylim(-1.05 if signed else 0, 1.05)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=12)
        axes.spines["bottom"].set_visible(False)
        name_characters(axes, trace.text)
    return figure


def of_cell(trace: Trace, layer: int, unit: int) -> dict[str, Numbers]:
    """What one cell did, by symbol, in the order of the equations, each [time]."""
    gates = {symbol: trace.gates[gate][:, layer, unit] for gate, symbol in SYMBOLS.items()}
    states = {"C": trace.states["cell"][:, layer, unit], "h": trace.states["hidden"][:, layer, unit]}
    return {**gates, **states}


def draw_found(findings: Sequence[Finding]) -> Figure:
    """For each feature: the cell's score in the play searched and in the other, and both controls."""
    figure = new(9, 4.2)
    panels = figure.subplots(2, 1)
    for axes, measure, start in zip(panels, ("|r|", "AUC"), (0.0, 0.5), strict=True):
        rows = [finding for finding in findings if finding.measure == measure][::-1]
        places = np.arange(len(rows))
        for name, values, mark, colour in (
            ("chance", [row.chance for row in rows], "x", GREY),
            ("last character alone", [row.last_character for row in rows], "D", GREEN),
            ("found", [row.found for row in rows], "o", BLUE),
            ("confirmed", [row.confirmed for row in rows], "s", ORANGE),
        ):
            fill = colour if mark == "x" else "none"
            axes.scatter(values, places, marker=mark, label=name, s=42, linewidths=1.6, color=colour,
                         facecolors=colour if name == "confirmed" else fill)  # fmt: skip
        axes.set_yticks(places, [row.feature for row in rows])
        axes.set_xlim(start - 0.02, 1.02)
        axes.set_ylim(-0.5, len(rows) - 0.5)
        axes.grid(axis="y", alpha=0.25)
        axes.set_xlabel("correlation |r|" if measure == "|r|" else "area under the curve (AUC)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def draw_saturation(play: Play) -> Figure:
    """A dot a cell: how often its gate was nearly shut, and how often nearly open."""
    figure = new(10, 3.8)
    panels = figure.subplots(1, 3, sharey=True)
    for axes, gate in zip(panels, GATES, strict=True):
        for layer in range(play.left[gate].shape[0]):
            colour, mark = ((BLUE, "o"), (ORANGE, "^"), (GREEN, "s"), (GREY, "D"))[layer % 4]
            axes.scatter(play.left[gate][layer], play.right[gate][layer], s=14, alpha=0.55, color=colour,
                         marker=mark, linewidths=0, label=f"layer {layer + 1}", rasterized=True)  # fmt: skip
        axes.plot([0, 1], [1, 0], color=GREY, linewidth=0.8, linestyle=":")
        axes.set(title=f"{gate} gate", xlabel="share of moments below 0.1", xlim=(-0.03, 1.03))
        axes.set_ylim(-0.03, 1.03)
    panels[0].set_ylabel("share of moments above 0.9")
    panels[-1].legend(frameon=False, loc="upper right", markerscale=2)
    return figure


def draw_half_lives(play: Play) -> Figure:
    """Which share of a layer's cells remembers for at least so long."""
    figure = new(7, 3.2)
    axes = figure.subplots()
    for layer, lives in enumerate(play.half_lives):
        colour, style = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (GREY, ":"))[layer % 4]
        share = 1 - np.arange(len(lives)) / len(lives)
        axes.step(np.sort(lives), share, style, color=colour, label=f"layer {layer + 1}", linewidth=1.8)
    axes.set_xscale("log")
    axes.set_xlim(0.1, 10_000)
    axes.set_xticks([0.1, 1, 10, 100, 1000, 10_000], ["0.1", "1", "10", "100", "1,000", "10,000"])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.set(xlabel="half-life, characters", ylabel="share of cells that\nremember at least so long")
    axes.legend(frameon=False)
    return figure
