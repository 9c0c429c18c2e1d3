"""The numbers: tables and coloured text for the pages to include, and single values for their sentences."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from docs.figures.cells import GATES, Finding, Play
from docs.figures.drawing import of_cell
from docs.figures.measures import Numbers, carried, surprise_bits
from docs.figures.reading import GUIDE, Reader, Trace, as_tokens

GENERATED = GUIDE / "generated"
DISTANCES = (1, 2, 5, 10, 20, 50, 100, 200)
CARRIED = (1, 5)
LIKELY = 3


def write(name: str, content: str) -> None:
    """Writes what a page includes."""
    (GENERATED / name).write_text(content.rstrip("\n") + "\n", encoding="utf-8")


def write_values(values: Mapping[str, str]) -> None:
    """Writes the single values that pages name as `{{ name }}`."""
    write("values.json", json.dumps(values, indent=1, ensure_ascii=False))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(["---", *["---:"] * (len(head) - 1)]) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def code(character: str) -> str:
    """A character as a cell of a table shows it."""
    return "`" + {"\n": "↵", " ": "␣", "|": "\\|", "`": "'"}.get(character, character) + "`"


def predictions(trace: Trace) -> str:
    """For each character: what the model expected behind it, and what came."""
    bits = surprise_bits(trace.log_probabilities, as_tokens(trace.text))
    rows = []
    for place, (read, came) in enumerate(zip(trace.text, trace.text[1:], strict=False)):
        p = np.exp(trace.log_probabilities[place])
        likely = np.argsort(-p, kind="stable")[:LIKELY]
        guesses = (f"{code(chr(token))} {p[token]:.0%}" for token in likely)
        rows.append((code(read), *guesses, code(came), f"{p[ord(came)]:.1%}", f"{bits[place]:.1f}"))
    head = ("read", "likeliest", "second", "third", "came", "its probability", "surprise, bits")
    return table(head, rows)


def one_cell(trace: Trace, layer: int, unit: int) -> str:
    """What one cell did at each character."""
    numbers = of_cell(trace, layer, unit)
    rows = [
        (code(character), *(f"{values[place]:.2f}" for values in numbers.values()))
        for place, character in enumerate(trace.text)
    ]
    return table(("read", *numbers), rows)


def one_sum(prefix: str, trace: Trace, layer: int, unit: int, place: int) -> dict[str, str]:
    """One step of one cell, written out, as values whose names begin with a prefix."""
    numbers = {name: float(values[place]) for name, values in of_cell(trace, layer, unit).items()}
    before = float(trace.states["cell"][place - 1, layer, unit])
    f, i, candidate, o, c, h = numbers.values()
    return {
        f"{prefix}_cell": f"{f:.3f} × {_signed(before)} + {i:.3f} × {_signed(candidate)} = {c:.3f}",
        f"{prefix}_hidden": f"{o:.3f} × tanh({c:.3f}) = {h:.3f}",
    }


def _signed(number: float) -> str:
    return f"({number:.3f})" if number < 0 else f"{number:.3f}"


def findings(found: Sequence[Finding]) -> str:
    """Every feature, the cell that follows it best, and the controls."""
    rows = [
        (
            one.feature.replace("[", "\\["),
            f"{one.layer}",
            f"{one.unit}",
            "up" if one.sign > 0 else "down",
            one.measure.replace("|", "\\|"),
            f"{one.found:.2f}",
            f"**{one.confirmed:.2f}**",
            f"{one.chance:.2f}",
            f"{one.last_character:.2f}",
            "yes" if one.means_something else "no",
        )
        for one in found
    ]
    return table(
        (
            "feature",
            "layer",
            "unit",
            "goes",
            "score",
            "found",
            "confirmed",
            "chance",
            "last character",
            "holds",
        ),
        rows,
    )


def saturation(play: Play) -> str:
    """Shares of a layer's moments, all cells together, and of its cells that are open nearly always."""
    rows = []
    for gate in GATES:
        for layer, (left, right) in enumerate(zip(play.left[gate], play.right[gate], strict=True), 1):
            always = (right > 0.9).mean()
            rows.append(
                (f"{gate}, layer {layer}", *(f"{share:.0%}" for share in (left.mean(), right.mean(), always)))
            )
    return table(("gate", "moments below 0.1", "moments above 0.9", "cells above 0.9 nearly always"), rows)


def half_lives(play: Play) -> str:
    """Quantiles of the half-lives of each layer's cells."""
    quantiles = (0.1, 0.25, 0.5, 0.75, 0.9)
    rows = [
        (f"layer {layer}", *(number(life) for life in np.quantile(lives, quantiles)))
        for layer, lives in enumerate(play.half_lives, 1)
    ]
    return table(("half-life, characters", *(f"{share:.0%} of cells below" for share in quantiles)), rows)


def number(value: float) -> str:
    """A positive number with two significant digits."""
    rounded = float(f"{value:.1e}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def carried_on(states: Mapping[str, Numbers]) -> str:
    """What cells still hold some characters later: the typical one, and the steadiest twentieth.

    Args:
        states: By name, [time, units].
    """
    rows = []
    for name, cells in states.items():
        found = (np.quantile(carried(cells, steps), (0.5, 0.95)) for steps in CARRIED)
        rows.append((name, *(f"{typical:.2f} ({steadiest:.2f})" for typical, steadiest in found)))
    return table(("", *(f"{steps} character{'s' * (steps > 1)} later" for steps in CARRIED)), rows)


def forgetting(curves: Mapping[str, Numbers]) -> str:
    """Bits lost to a wrong past, at some distances."""
    rows = [(name, *(bits(curve[at - 1]) for at in DISTANCES)) for name, curve in curves.items()]
    return table(("characters since", *map(str, DISTANCES)), rows)


def bits(value: float) -> str:
    """A divergence, as far as it can be told from rounding."""
    return f"{value:.2f}" if value >= 0.01 else f"{value:.4f}" if value >= 0.00005 else "0"


def coloured(text: str, cells: Numbers) -> str:
    """Text whose background shows one cell: orange where it is high, blue where it is low.

    Args:
        text: The text.
        cells: C of the cell after each character, [time].
    """
    low, high = np.quantile(cells, (0.02, 0.98))
    levels = np.rint(8 * np.clip(2 * (cells - low) / (high - low) - 1, -1, 1)).astype(int)
    pieces, begin = [], 0
    ends = [*(np.flatnonzero(np.diff(levels)) + 1), len(text)]
    for end in ends:
        level = levels[begin]
        name = f"{'u' if level > 0 else 'd'}{abs(level)}"
        # A line's end has no width: a symbol shows what the cell did there. No line may be empty, or Markdown
        # would take the block for ended.
        shown = html.escape(text[begin:end]).replace("\n", "<i>↵</i>&#10;")
        pieces.append(f'<span class="{name}">{shown}</span>' if level else shown)
        begin = end
    return '<div class="one-cell">' + "".join(pieces) + "</div>"


def about(reader: Reader, other: Reader) -> dict[str, str]:
    """Who the models are, as values; their digests tell whether the guide is of the shipped models."""
    values: dict[str, str] = {}
    for prefix, one in (("lstm", reader), ("rnn", other)):
        manifest = one.version.manifest
        values |= {
            f"{prefix}_layers": str(manifest.architecture.layers),
            f"{prefix}_units": str(manifest.architecture.hidden_size),
            f"{prefix}_weights": f"{manifest.architecture.parameters:,}",
            f"{prefix}_bits": f"{manifest.metrics['heldout_bits_per_character']:.2f}",
            f"{prefix}_name": f"{manifest.name}/{manifest.version}",
            f"{prefix}_digest": one.version.manifest_digest,
        }
    return values
