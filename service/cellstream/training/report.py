"""What a finished run says to people: a card in Markdown and a picture of how it learned."""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from cellstream.cells.checkpoint import Checkpoint
from cellstream.training.data import Splits
from cellstream.training.pace import Pace
from cellstream.training.recipe import Recipe


@dataclass
class History:
    """How the bits per character went; each point is (tokens seen, bits per character).

    Attributes:
        training: Means over stretches of the training text, before the update.
        validation: Measurements.
    """

    training: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)


_NAMES = {"rnn": "A vanilla recurrent network", "lstm": "An LSTM", "gru": "A GRU"}


def draw_report(history: History, metrics: dict[str, float], title: str) -> bytes:
    """Draw bits per character against tokens, with the held-out text and the compressors as lines.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for label, points in (("training", history.training), ("validation", history.validation)):
        if points:
            tokens, bits = zip(*points, strict=True)
            marker = "o" if label == "validation" else ""
            axes.plot([one / 1e6 for one in tokens], bits, label=label, marker=marker, markersize=4)
    for name, style in (("heldout", "-"), ("xz", ":"), ("bzip2", "--")):
        value = metrics[f"{name}_bits_per_character"]
        axes.axhline(value, color="grey", linestyle=style, linewidth=1, label=f"{name} {value:.2f}")
    lowest = min(bits for points in (history.training, history.validation) for _, bits in points)
    axes.set_ylim(bottom=min(lowest, metrics["heldout_bits_per_character"]) - 0.1, top=4.0)
    axes.set_xlabel("tokens seen, millions")
    axes.set_ylabel("bits per character")
    axes.set_title(title)
    axes.legend(frameon=False, fontsize="small")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def write_card(recipe: Recipe, checkpoint: Checkpoint, splits: Splits, pace: Pace) -> str:
    """Write the card: what the model is, what it learned from, how well it predicts, what it is not for."""
    config, metrics, training = checkpoint.config, checkpoint.record.metrics, recipe.training
    heldout = " and ".join(piece.name for piece in splits.heldout)
    rows = "\n".join(
        f"| {piece.name} | {len(piece.text):,} | {metrics[f'{piece.name}_bits_per_character']:.3f} |"
        for piece in splits.heldout
    )
    characters = sum(len(piece.text) for piece in splits.heldout)
    unit = "byte of UTF-8" if recipe.data.tokenizer == "bytes" else "character"
    readings = metrics["tokens_seen"] / len(splits.training.ids)
    network = f"""
        {_NAMES[config.cell]} that predicts the next {unit}: {config.layers} layers of {config.hidden_size}
        units, an embedding of {config.embedding_size}, a vocabulary of {config.vocabulary_size};
        {config.parameters:,} weights in float32."""
    data = f"""
        {splits.source}; licence: {splits.licence}. Learned from {len(splits.training.text):,} characters
        (SHA-256 `{checkpoint.record.training_data_sha256}`). The best checkpoint was chosen on
        {splits.validation.name} ({len(splits.validation.text):,} characters). Held out whole: {heldout}."""
    run = f"""
        {metrics["tokens_seen"]:,.0f} tokens ({readings:.1f} readings of the text) in
        {metrics["seconds"] / 60:.1f} minutes, {pace}; the checkpoint is from token
        {metrics["tokens_at_best"]:,.0f}. Backpropagation through {training.window} steps at
        {training.batch_rows} places of the text, the states carried on; AdamW, highest learning rate
        {training.learning_rate:g}, warm-up and cosine decay; gradients clipped at
        {training.gradient_norm_max:g}; dropout {config.dropout:g}; seed {recipe.seed}."""
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


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 108, break_long_words=False, break_on_hyphens=False)
