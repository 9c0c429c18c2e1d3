"""Makes every figure and number of the guide anew: `python -m docs.figures`."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from docs.figures import drawing, tables
from docs.figures.cells import WARM_UP, Finding, Play, find, read_play
from docs.figures.forgetting import divergences
from docs.figures.measures import Numbers, carried, surprise_bits
from docs.figures.reading import GUIDE, ROOT, SENTENCE, Trace, as_tokens, load_reader

from cellstream.training import fetch_corpus

SEARCHED, CONFIRMING = "tempest", "julius_caesar"

SHOWN = {
    "line": "characters in the line so far",
    "name": "inside a speaker's NAME",
    "direction": "inside a [stage direction]",
    "speech": "characters in the speech so far",
}
"""The features whose cells colour a text."""

COLOURED_FROM = "ANTONY.\nFor Brutus' sake"
"""Where in the passage the coloured text begins: with a stage direction to come."""


def main() -> None:
    """Makes everything."""
    started = time.perf_counter()
    for folder in (GUIDE / "figures", tables.GENERATED):
        folder.mkdir(exist_ok=True)
    works = fetch_corpus(ROOT / "runs" / "data").works
    lstm, rnn = load_reader("shakespeare-lstm"), load_reader("shakespeare-rnn")
    searched, confirming = read_play(lstm, works[SEARCHED]), read_play(lstm, works[CONFIRMING])
    found = find(searched, confirming)
    curves = {
        "vanilla RNN": divergences(rnn, works[CONFIRMING]),
        "LSTM": divergences(lstm, works[CONFIRMING]),
    }
    text = (GUIDE / "passage.txt").read_text(encoding="utf-8")
    passage, by_rnn = lstm.trace(text), rnn.trace(text)
    values = tables.about(lstm, rnn)
    values |= write_sentence(passage, by_rnn, found, confirming)
    values |= write_findings(found, passage)
    values |= write_memory(confirming, curves, passage, by_rnn)
    tables.write_values(values)
    print(f"Written to {GUIDE.relative_to(ROOT)} in {time.perf_counter() - started:.0f} s.")


def cut(trace: Trace, begin: int, end: int) -> Trace:
    """A part of what was read, with the states that the parts before it left."""
    return Trace(
        trace.text[begin:end],
        trace.log_probabilities[begin:end],
        {name: array[begin:end] for name, array in trace.states.items()},
        {name: array[begin:end] for name, array in trace.gates.items()},
    )


def write_sentence(passage: Trace, by_rnn: Trace, found: Sequence[Finding], play: Play) -> dict[str, str]:
    """What the models made of the sentence, at each character."""
    begin = passage.text.index(SENTENCE)
    trace, other = (cut(one, begin, begin + len(SENTENCE)) for one in (passage, by_rnn))
    line = by_feature(found, SHOWN["line"])
    layer, unit = line.layer - 1, line.unit
    bits = surprise_bits(trace.log_probabilities, as_tokens(trace.text))
    order = [lives.argsort() for lives in play.half_lives]
    names = [f"layer {layer + 1}" for layer in range(len(order))]
    top = other.states["hidden"][:, -1]

    drawing.save(drawing.draw_surprise(trace), "surprise")
    drawing.save(drawing.draw_gates(trace), "gates")
    drawing.save(drawing.draw_one_cell(trace, layer, unit), "one-cell")
    # A few cells hold hundreds, most hold less than ten: tanh(C) is what an open output gate would show.
    pictures = {"cell-state": np.tanh(trace.states["cell"]), "hidden-state": trace.states["hidden"]}
    for name, state in pictures.items():
        drawing.save(drawing.draw_heat(trace.text, list(np.moveaxis(state, 1, 0)), names, order), name)
    restless = np.abs(np.diff(top, axis=0)).mean(0).argsort()[::-1]
    drawing.save(drawing.draw_heat(trace.text, [top], ["vanilla RNN, h"], [restless]), "rnn-state")
    tables.write("predictions.md", tables.predictions(trace))
    tables.write("one-cell.md", tables.one_cell(trace, layer, unit))
    worst = int(bits.argmax())
    return {
        **tables.one_sum("letter", trace, layer, unit, SENTENCE.index("lend")),
        **tables.one_sum("line_end", trace, layer, unit, len(SENTENCE) - 1),
        "passage_before": f"{begin:,}",
        "sentence_characters": str(len(SENTENCE)),
        "sentence_bits": f"{bits.mean():.2f}",
        "most_surprising": tables.code(trace.text[worst + 1]),
        "most_surprising_behind": tables.code(trace.text[max(0, worst - 7) : worst + 1].replace("\n", "↵")),
        "most_surprising_bits": f"{bits[worst]:.1f}",
        "most_surprising_once": f"{2 ** bits[worst]:,.0f}",
    }


def write_findings(found: Sequence[Finding], passage: Trace) -> dict[str, str]:
    """The cells that follow a feature, and a text coloured by some of them."""
    drawing.save(drawing.draw_found(found), "found")
    tables.write("found.md", tables.findings(found))
    values = {
        "features": str(len(found)),
        "features_held": str(sum(one.means_something for one in found)),
    }
    shown = passage.text[(begin := passage.text.index(COLOURED_FROM)) :]
    for name, feature in SHOWN.items():
        one = by_feature(found, feature)
        cells = passage.states["cell"][begin:, one.layer - 1, one.unit]
        tables.write(f"coloured-{name}.html", tables.coloured(shown, cells))
        values[f"{name}_layer"], values[f"{name}_unit"] = str(one.layer), str(one.unit)
        values[f"{name}_goes"] = "up" if one.sign > 0 else "down"
        values[f"{name}_confirmed"] = f"{one.confirmed:.2f}"
    return values


def write_memory(play: Play, curves: dict[str, Numbers], passage: Trace, by_rnn: Trace) -> dict[str, str]:
    """How long the networks remember, and how decided the gates are."""
    top = {
        "C of the LSTM": passage.states["cell"][WARM_UP:, -1],
        "h of the LSTM": passage.states["hidden"][WARM_UP:, -1],
        "h of the vanilla RNN": by_rnn.states["hidden"][WARM_UP:, -1],
    }
    drawing.save(drawing.draw_forgetting(curves), "forgetting")
    drawing.save(drawing.draw_saturation(play), "saturation")
    drawing.save(drawing.draw_half_lives(play), "half-lives")
    tables.write("carried.md", tables.carried_on(top))
    tables.write("forgetting.md", tables.forgetting(curves))
    tables.write("saturation.md", tables.saturation(play))
    tables.write("half-lives.md", tables.half_lives(play))
    return {
        "forgetting_rnn": tables.bits(float(curves["vanilla RNN"][19])),
        "forgetting_lstm": tables.bits(float(curves["LSTM"][19])),
        "half_life_top": tables.number(float(np.median(play.half_lives[-1]))),
        "carried_rnn": f"{np.median(carried(top['h of the vanilla RNN'], 1)):.2f}",
    }


def by_feature(found: Sequence[Finding], feature: str) -> Finding:
    """The finding for a feature."""
    return next(one for one in found if one.feature == feature)


if __name__ == "__main__":
    main()
