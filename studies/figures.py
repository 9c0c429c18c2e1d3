"""Draw the results: one colour a network in every picture, SVG into `docs/studies`.

Pictures are the same file for the same numbers: no date, no random identifiers.
"""

from __future__ import annotations

from collections.abc import Callable

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.gradients import DISTANCES
from studies.recall import GAP_MAX, GAPS, SYMBOLS
from studies.study import PAGES, in_order, read_result

LOOKS = {
    "lstm": ("LSTM", "#0072B2"),
    "gru": ("GRU", "#009E73"),
    "rnn-wide": ("vanilla RNN, as many weights", "#D55E00"),
    "rnn": ("vanilla RNN, same hidden size", "#CC79A7"),
    "shipped": ("the shipped LSTM", "#000000"),
}
"""Name and colour of each network: Okabe and Ito's colours, told apart by the colour-blind too."""

EXCESS_MIN = 0.003
"""Bits below which the curves of excess are noise."""


def draw_all() -> None:
    """Draw every picture from the committed results."""
    PAGES.mkdir(parents=True, exist_ok=True)
    mpl.rcParams.update({"svg.hashsalt": "studies", "font.size": 10, "axes.spines.top": False})
    mpl.rcParams.update({"axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25})
    pictures: dict[str, Callable[[Figure], None]] = {
        "bits": draw_bits,
        "context": draw_context,
        "reset": draw_reset,
        "gradients": draw_gradients,
        "recall": draw_recall,
    }
    for name, draw in pictures.items():
        figure = Figure(figsize=(9, 4), layout="constrained")
        draw(figure)
        figure.savefig(PAGES / f"{name}.svg", metadata={"Date": None})


def draw_bits(figure: Figure) -> None:
    """Bits per held-out character of everything, beside how the networks got there."""
    learning, overall = figure.subplots(1, 2, width_ratios=(1, 1.15))
    networks, shipped, anchors = (read_result(name) for name in ("networks", "shipped", "anchors"))
    for network, measured in in_order(networks):
        tokens, bits = zip(*measured["validation"], strict=True)
        learning.plot(np.array(tokens) / 1e6, bits, color=LOOKS[network][1], marker="o", markersize=3)
    learning.set(xlabel="tokens learned from, millions", ylabel="bits per character, validation play")
    rows = [
        (name, measured["heldout_bits_per_character"], LOOKS[name][1], LOOKS[name][0])
        for name, measured in in_order(networks)
    ]
    if shipped:
        rows.append(("shipped", shipped["bits_per_character"], LOOKS["shipped"][1], LOOKS["shipped"][0]))
    rows += [(name, bits, "#999999", name) for name, bits in anchors["bits"].items()]
    rows.sort(key=lambda row: -row[1])
    places = np.arange(len(rows))
    values = np.array([row[1] for row in rows])
    overall.scatter(values, places, color=[row[2] for row in rows], s=45, zorder=2)
    for place, value in zip(places, values, strict=True):
        overall.text(value + 0.02, place, f"{value:.2f}", va="center", fontsize=9)
    overall.set_yticks(places, [row[3] for row in rows])
    overall.set(xlabel="bits per character, held-out plays", xlim=(values.min() - 0.05, values.max() + 0.12))


def draw_context(figure: Figure) -> None:
    """Loss against the length of context kept."""
    _draw_excess(figure, "context", "characters of context kept")


def draw_reset(figure: Figure) -> None:
    """Loss against the distance from a reset."""
    _draw_excess(figure, "reset", "characters since the reset")


def _draw_excess(figure: Figure, question: str, distance: str) -> None:
    """On the left the loss itself, on the right what is lost, logarithmically, with its band."""
    loss, excess = figure.subplots(1, 2)
    measured = dict(in_order(read_result("memory")))
    if shipped := read_result("shipped"):
        measured["shipped"] = shipped
    for network, values in measured.items():
        label, colour = LOOKS[network]
        curve = values[question]
        distances, bits, band = (np.array(curve[name]) for name in ("distances", "bits", "band"))
        loss.plot(distances, values["bits_per_character"] + bits, color=colour, label=label)
        # What is not above zero has no logarithm; there the line leaves the picture.
        excess.plot(distances, np.maximum(bits, EXCESS_MIN / 100), color=colour, marker="o", markersize=3)
        low, high = np.maximum(bits - band, EXCESS_MIN), np.maximum(bits + band, EXCESS_MIN)
        excess.fill_between(distances, low, high, color=colour, alpha=0.15, linewidth=0)
    for axes in (loss, excess):
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
        axes.set_xlabel(distance)
    excess.set_yscale("log")
    excess.set_ylim(bottom=EXCESS_MIN)
    loss.set_ylabel("bits per character")
    excess.set_ylabel("bits per character more than with all")
    loss.legend(frameon=False)


def draw_gradients(figure: Figure) -> None:
    """Gradient norms against distance, before and after training, relative to one step back."""
    panels = figure.subplots(1, 2, sharey=True)
    results = read_result("gradients")
    for axes, when in zip(panels, ("untrained", "trained"), strict=True):
        for network, measured in in_order(results):
            label, colour = LOOKS[network]
            for state, norms in measured[when].items():
                name = f"{label}: {'C' if state == 'cell' else 'h'}"
                _draw_norms(axes, norms, name, colour, "-" if state == "cell" or network != "lstm" else "--")
        axes.set(title=f"{when} networks", xlabel="steps back", xlim=(0, 130), xticks=range(0, 129, 32))
        axes.set(yscale="log", ylim=(1e-8, 10))
    panels[0].set_ylabel("gradient norm, one step back = 1")
    panels[0].legend(frameon=False, fontsize=8, loc="upper right")


def _draw_norms(axes: Axes, norms: dict[str, list[float]], label: str, colour: str, style: str) -> None:
    first = norms["median"][0]
    low, median, high = (np.array(norms[name]) / first for name in ("low", "median", "high"))
    axes.plot(DISTANCES, median, style, color=colour, label=label)
    axes.fill_between(DISTANCES, low, high, color=colour, alpha=0.12, linewidth=0)


def draw_recall(figure: Figure) -> None:
    """Accuracy of the recall task against the gap: the mean over seeds, and each seed as a dot."""
    axes = figure.subplots()
    for network, measured in in_order(read_result("recall")):
        gaps, seeds = measured["gaps"], np.array(measured["accuracy"]).T  # [gaps], [gaps, seeds]
        label = f"{LOOKS[network][0].split(',')[0]}, {measured['weights']:,} weights"
        like = "rnn-wide" if network == "rnn" else network  # a vanilla network with as many weights
        colour = LOOKS[like][1]
        axes.plot(gaps, seeds.mean(1), color=colour, label=label)
        axes.plot(
            np.repeat(gaps, seeds.shape[1]), seeds.flatten(), "o", color=colour, markersize=3, alpha=0.6
        )
    axes.axvline(GAP_MAX, color="grey", linewidth=1)
    axes.text(GAP_MAX * 1.04, 0.02, "longer than any learned from", fontsize=8, color="grey")
    axes.axhline(1 / SYMBOLS, color="grey", linestyle=":", linewidth=1, label="chance")
    axes.set_xscale("log", base=2)
    axes.set_xticks(GAPS, [str(gap) for gap in GAPS])
    axes.set(xlabel="gap, steps of noise", ylabel="share of symbols recalled", ylim=(0, 1.03))
    axes.legend(frameon=False)
