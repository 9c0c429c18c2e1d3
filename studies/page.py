"""Draw the pictures and write the page: `python -m studies.page`.

`page.md` is the text, with places for numbers and tables; they come from `results/`, so that none is typed by
hand.
The page in `docs/studies` is what comes of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from string import Template
from typing import Any

from studies import figures
from studies.gradients import DISTANCES
from studies.study import HERE, PAGES, in_order, read_result

PAGE = PAGES / "what-a-cell-state-buys.md"

GENERATED = "<!-- Written by `python -m studies.page` from studies/page.md and studies/results. -->\n\n"

SHORT = {"lstm": "LSTM", "gru": "GRU", "rnn-wide": "RNN, as many weights", "rnn": "RNN, same hidden size"}

CONTEXTS_SHOWN = (1, 4, 8, 16, 32, 64, 128)

STEPS_SHOWN = (1, 8, 16, 32, 64, 128)


def main() -> None:
    """Write everything in `docs/studies`."""
    figures.draw_all()
    PAGE.write_text(render(), encoding="utf-8")
    print(f"Written: {PAGE}")


def render() -> str:
    """Fill the text's places; every one must have something to fill it."""
    text = Template((HERE / "page.md").read_text(encoding="utf-8"))
    return GENERATED + text.substitute(
        networks=networks_table(),
        rates=rates_table(),
        given_up=given_up_table(),
        anchors=anchors_table(),
        context=curve_table("context"),
        reset=curve_table("reset"),
        gradients=gradients_table(),
        recall=recall_table(),
        shipped=shipped_sentence(),
        **sizes(),
    )


def sizes() -> dict[str, str]:
    """Single numbers that the text names."""
    networks, anchors = read_result("networks"), read_result("anchors")
    measured = {**read_result("memory"), "shipped": read_result("shipped")}
    given_up = read_result("given_up")
    named = {name.replace("-", "_"): values for name, values in measured.items() if values}
    return {
        **{f"{name}_bits": f"{values['bits_per_character']:.2f}" for name, values in named.items()},
        **{f"{name}_after_16": _at(values["reset"], 32) for name, values in named.items()},
        **{f"{name}_after_64": _at(values["reset"], 128) for name, values in named.items()},
        "training_characters": f"{anchors['training_characters']:,}",
        "heldout_characters": f"{anchors['heldout_characters']:,}",
        "lstm_gained": f"{given_up['lstm']['validation'][-1][1] - networks['lstm']['validation'][-1][1]:.2f}",
        "over_rnn": f"{_heldout('rnn') - _heldout('lstm'):.2f}",
        "over_rnn_wide": f"{_heldout('rnn-wide') - _heldout('lstm'):.2f}",
        "tokens": f"{networks['lstm']['tokens_seen'] / 1e6:.0f} million",
        "readings": f"{networks['lstm']['tokens_seen'] / anchors['training_characters']:.2f}",
    }


def networks_table() -> str:
    """Sizes, learning rates and bits of the four networks."""
    rows = [
        (
            SHORT[network],
            f"{measured['layers']} × {measured['hidden_size']}",
            f"{measured['weights']:,}",
            f"{measured['learning_rate']:g}",
            measured["precision"],
            f"{measured['validation_bits_per_character']:.3f}",
            f"{measured['julius_caesar_bits_per_character']:.3f}",
            f"{measured['tempest_bits_per_character']:.3f}",
            f"**{measured['heldout_bits_per_character']:.3f}**",
        )
        for network, measured in in_order(read_result("networks"))
    ]
    head = (
        "network",
        "units",
        "weights",
        "learning rate",
        "precision",
        "Twelfth Night",
        "Julius Caesar",
        "The Tempest",
        "both",
    )
    return _table(head, rows)


def rates_table() -> str:
    """Validation bits of the short runs, the best of each network in bold."""
    tried = dict(in_order(read_result("learning_rates")))
    rates = sorted({rate for bits in tried.values() for rate in bits}, key=float)
    rows = []
    for network, bits in tried.items():
        best = min(bits, key=bits.__getitem__)
        cells = (f"**{bits[rate]:.3f}**" if rate == best else _number(bits.get(rate), 3) for rate in rates)
        rows.append((SHORT[network], *cells))
    return _table(("network", *rates), rows)


def given_up_table() -> str:
    """Whole runs at other rates than the one used: what the validation play said on the way."""
    given_up = dict(in_order(read_result("given_up")))
    steps = sorted({tokens for run in given_up.values() for tokens, _ in run["validation"]})
    rows = []
    for network, run in given_up.items():
        bits = dict(run["validation"])
        name = f"{SHORT[network]}, {run['learning_rate']:g}"
        rows.append((name, *(_number(bits.get(step), 2) for step in steps)))
    return _table(("millions of characters", *(f"{step / 1e6:.1f}" for step in steps)), rows)


def anchors_table() -> str:
    """What needs no network."""
    rows = [(name, f"{bits:.3f}") for name, bits in read_result("anchors")["bits"].items()]
    return _table(("predictor", "bits per character"), rows)


def curve_table(question: str) -> str:
    """Bits more than with all of the text, with the band, of each network at some distances."""
    measured = dict(in_order(read_result("memory")))
    names = [*(SHORT[network] for network in measured)]
    if shipped := read_result("shipped"):
        measured["shipped"] = shipped
        names.append("the shipped LSTM")
    rows = []
    for name, values in zip(names, measured.values(), strict=True):
        curve = values[question]
        at = [curve["distances"].index(distance) for distance in CONTEXTS_SHOWN]
        # Adding zero makes a rounded −0.000 a plain one.
        shown = ((round(curve["bits"][one], 3) + 0.0, curve["band"][one]) for one in at)
        rows.append((name, *(f"{bits:.3f} ± {band:.3f}" for bits, band in shown)))
    return _table(("characters", *map(str, CONTEXTS_SHOWN)), rows)


def gradients_table() -> str:
    """Median gradient norms relative to one step back."""
    places = [min(range(len(DISTANCES)), key=lambda one: abs(DISTANCES[one] - step)) for step in STEPS_SHOWN]
    rows = []
    for network, measured in in_order(read_result("gradients")):
        for when, states in measured.items():
            for state, norms in states.items():
                relative = (norms["median"][place] / norms["median"][0] for place in places)
                symbol = "C" if state == "cell" else "h"
                rows.append((f"{SHORT[network]}, {symbol}, {when}", *(f"{one:.1g}" for one in relative)))
    return _table(("steps back", *(str(DISTANCES[place]) for place in places)), rows)


def recall_table() -> str:
    """Mean and range over seeds at each gap."""
    rows, gaps = [], list[str]()
    for network, measured in in_order(read_result("recall")):
        gaps = [str(gap) for gap in measured["gaps"]]
        found = zip(*measured["accuracy"], strict=True)  # the seeds of each gap
        spread = (f"{sum(one) / len(one):.2f} ({min(one):.2f}–{max(one):.2f})" for one in found)
        rows.append((f"{network.upper()}, 1 × {measured['hidden_size']}", *spread))
    return _table(("gap", *gaps), rows)


def shipped_sentence() -> str:
    """What the shipped model is, where it has been measured."""
    shipped = read_result("shipped")
    if not shipped:
        return "The shipped model has not been measured yet."
    return (
        f"`{shipped['name']}` has {shipped['weights']:,} weights, learned in two longer schedules that its "
        f"card describes, and reaches {shipped['bits_per_character']:.3f} bits per character, measured "
        "through ONNX Runtime."
    )


def _heldout(network: str) -> float:
    """Bits per character of both held-out plays."""
    return float(read_result("networks")[network]["heldout_bits_per_character"])


def _at(curve: dict[str, Any], distance: int) -> str:
    """A value of a curve, with its band."""
    place = curve["distances"].index(distance)
    return f"{round(curve['bits'][place], 3) + 0.0:.3f} ± {curve['band'][place]:.3f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
