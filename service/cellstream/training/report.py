"""What a finished run says to people: a card in Markdown and a picture of how it learned."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from cellstream.cells.checkpoint import Checkpoint
from cellstream.training.data import Splits
from cellstream.training.history import Evaluation, History, Point
from cellstream.training.pace import Pace
from cellstream.training.recipe import Recipe
from cellstream.training.start import weights_sha256

_OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon for the matrices of the recurrence, AdamW for the rest"}
_UNITS = {"bytes": "byte of UTF-8", "characters": "character", "bpe": "BPE token"}
_NAMES = {"rnn": "A vanilla recurrent network", "lstm": "An LSTM", "gru": "A GRU"}

_FONT = get_font(findfont("DejaVu Sans Mono"))  # it comes with matplotlib

SAMPLE_LINES, SAMPLE_COLUMNS = 16, 52
"""Of each sample that are shown."""

BITS_SHOWN = 1.6
"""Above the lowest: the first moments, at the 8 bits of a byte, would press all others together."""


def draw_report(history: History, metrics: dict[str, float], title: str) -> bytes:
    """Draw how a run went: bits per character against tokens and time, what drove it, what it wrote.

    Args:
        history: Of the run.
        metrics: Of its best checkpoint.
        title: The model's name.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(12, 10.5), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize="x-large")
    curves, drives, texts = figure.subfigures(3, 1, squeeze=False, height_ratios=(4, 2.6, 2.5))[:, 0]
    by_tokens, by_minutes = curves.subplots(1, 2)
    _draw_bits(by_tokens, history, metrics, _millions, "tokens seen, millions")
    _draw_bits(by_minutes, history, metrics, _minutes, "minutes")
    by_tokens.legend(frameon=False, fontsize="small")
    rate, norm = drives.subplots(1, 2)
    millions = [_millions(point) for point in history.training]
    rate.plot(millions, [point.learning_rate for point in history.training])
    rate.set_ylabel("learning rate")
    norm.plot(millions, [point.gradient_norm for point in history.training], linewidth=1)
    norm.set_ylabel("gradient norm, before clipping")
    norm.set_ylim(bottom=0)
    for axes in (rate, norm):
        axes.set_xlabel("tokens seen, millions")
        axes.grid(alpha=0.25)
    chosen = _chosen(history.validation)
    for axes, one in zip(texts.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        _draw_sample(axes, one)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _draw_bits(
    axes: Axes,
    history: History,
    metrics: dict[str, float],
    place: Callable[[Point | Evaluation], float],
    label: str,
) -> None:
    """The curves, the best checkpoint, the held-out text and the compressors; the loss on the right."""
    training, validation = history.training, history.validation
    axes.plot([place(one) for one in training], [one.bits for one in training], label="training", linewidth=1)
    axes.plot(
        [place(one) for one in validation],
        [one.bits for one in validation],
        label="validation",
        marker="o",
        markersize=4,
    )
    best = min(validation, key=lambda one: one.bits)
    axes.plot(place(best), best.bits, "*", color="black", markersize=11, label=f"kept {best.bits:.3f}")
    for name, style in (("heldout", "-"), ("xz", ":"), ("bzip2", "--")):
        value = metrics[f"{name}_bits_per_character"]
        axes.axhline(value, color="grey", linestyle=style, linewidth=1, label=f"{name} {value:.2f}")
    seen = [one.bits for one in training] + [one.bits for one in validation]
    lowest, highest = min(*seen, metrics["heldout_bits_per_character"]), max(seen)
    axes.set_ylim(lowest - 0.1, min(highest, lowest + BITS_SHOWN) + 0.1)
    axes.set_xlabel(label)
    axes.set_ylabel("bits per character")
    axes.grid(alpha=0.25)
    # The same curve in the unit that is minimised; a text has one number of tokens a character throughout.
    nats_a_bit = training[-1].loss / training[-1].bits
    loss = axes.secondary_yaxis(
        "right",
        functions=(lambda bits: np.multiply(bits, nats_a_bit), lambda nats: np.divide(nats, nats_a_bit)),
    )
    loss.set_ylabel("loss, nats a token")


def _chosen(evaluations: list[Evaluation]) -> list[Evaluation]:
    """The first, the one half way to the best, and the best; each once."""
    best = min(range(len(evaluations)), key=lambda at: evaluations[at].bits)
    return [evaluations[at] for at in sorted({0, best // 2, best})]


def _draw_sample(axes: Axes, evaluation: Evaluation) -> None:
    axes.set_axis_off()
    axes.set_title(
        f"written after {_millions(evaluation):.2f} million tokens ({evaluation.bits:.2f} bits)",
        fontsize="small",
        loc="left",
    )
    lines = [
        cut
        for line in "".join(map(_drawable, evaluation.sample)).splitlines()
        for cut in textwrap.wrap(line, SAMPLE_COLUMNS) or [""]
    ]
    axes.text(
        0,
        1,
        "\n".join(lines[:SAMPLE_LINES]),
        family="DejaVu Sans Mono",
        fontsize=8,
        va="top",
        parse_math=False,
        transform=axes.transAxes,
    )


def _drawable(character: str) -> str:
    """What the font has, else a dot; a line's end stays."""
    return character if character == "\n" or _FONT.get_char_index(ord(character)) else "·"


def _millions(one: Point | Evaluation) -> float:
    return one.tokens / 1e6


def _minutes(one: Point | Evaluation) -> float:
    return one.seconds / 60


def write_card(
    recipe: Recipe, checkpoint: Checkpoint, splits: Splits, pace: Pace, start: Checkpoint | None = None
) -> str:
    """Write the card: what the model is, what it learned from, how well it predicts, what it is not for."""
    config, metrics, training = checkpoint.config, checkpoint.record.metrics, recipe.training
    heldout = " and ".join(piece.name for piece in splits.heldout)
    rows = "\n".join(
        f"| {piece.name} | {len(piece.text):,} | {metrics[f'{piece.name}_bits_per_character']:.3f} |"
        for piece in splits.heldout
    )
    characters = sum(len(piece.text) for piece in splits.heldout)
    unit = _UNITS[recipe.data.tokenizer]
    readings = metrics["tokens_seen"] / len(splits.training.ids)
    network = f"""
        {_NAMES[config.cell]} that predicts the next {unit}: {config.layers} layers of {config.hidden_size}
        units, an embedding of {config.embedding_size}, a vocabulary of {config.vocabulary_size};
        {config.parameters:,} weights in float32."""
    data = f"""
        {splits.source}; licence: {splits.licence}. Learned from {len(splits.training.text):,} characters
        (SHA-256 `{checkpoint.record.training_data_sha256}`). The best checkpoint was chosen on
        {splits.validation.name} ({len(splits.validation.text):,} characters). Held out whole: {heldout}."""
    patience = f"; patience {training.patience} evaluations" if training.patience else ""
    run = f"""
        {_beginning(start)}{metrics["tokens_seen"]:,.0f} tokens ({readings:.1f} readings of the text) in
        {metrics["seconds"] / 60:.1f} minutes, {pace}; the checkpoint is from token
        {metrics["tokens_at_best"]:,.0f}. Backpropagation through {training.window} steps at
        {training.batch_rows} places of the text, the states carried on; {_OPTIMIZERS[training.optimizer]},
        highest learning rate {training.learning_rate:g}, warm-up and cosine decay, weight decay
        {training.weight_decay:g}; gradients clipped at {training.gradient_norm_max:g};
        {_regularisation(recipe)}{patience}; seed {recipe.seed}."""
    beside = f"""
        Beside it: {metrics["validation_bits_per_character"]:.3f} on the validation text, and
        {metrics["training_bits_per_character"]:.3f} on the training text just before the checkpoint.
        `report.png` shows how it went."""
    return f"""# {recipe.name}

{_paragraph(network)}

## Data

{_paragraph(data)}

## Training

{_paragraph(run)}

## How well it predicts

Mean surprise in bits per character, each text read once from its first character to its last, as a served
session reads it. Lower is better.

| held-out text | characters | bits per character |
|---|---|---|
{rows}
| **together** | {characters:,} | **{metrics["heldout_bits_per_character"]:.3f}** |
| the same by xz, behind the training text | | {metrics["xz_bits_per_character"]:.3f} |
| the same by bzip2, behind the training text | | {metrics["bzip2_bits_per_character"]:.3f} |

{_paragraph(beside)}

## What it is for

To show and to test a server for recurrent models: live predictions, surprise, gates, generated text.
It imitates the letters of its training text and knows nothing; what it generates is neither its authors' nor
true. Text of another kind or language surprises it throughout. Nothing was done to find or take away what may
offend in the training text.
"""


def _beginning(start: Checkpoint | None) -> str:
    """What was there before the first update, in words."""
    if start is None:
        return ""
    seen = start.record.metrics.get("tokens_seen")
    learned = f", which had learned from {seen:,.0f} tokens" if seen else ""
    return f"Begun with the weights of `{start.record.name}`{learned} (SHA-256 `{weights_sha256(start)}`). "


def _regularisation(recipe: Recipe) -> str:
    """What keeps the network from learning by heart, in words."""
    model, training = recipe.model, recipe.training
    locked = ", the same units at all steps of a window" if training.locked_dropout else ""
    shares = {
        f"dropout between the layers{locked}": model.dropout if model.layers > 1 else 0.0,
        f"dropout before the head{locked}": training.output_dropout,
        "dropout of whole rows of the embedding": training.embedding_dropout,
        "dropout of hidden-to-hidden weights": training.recurrent_dropout,
        "label smoothing": training.label_smoothing,
        "moving average of the weights, with a decay of": training.averaging,
    }
    return ", ".join(f"{name} {share:g}" for name, share in shares.items() if share) or "no dropout"


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 108, break_long_words=False, break_on_hyphens=False)
