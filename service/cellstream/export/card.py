"""What an export adds to a model's card: its form, how well it predicts as it is served, how near it is."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

from cellstream.export.building import SEQUENCE_FILE, STEP_FILE
from cellstream.export.forms import WEIGHTS_FILE
from cellstream.export.quantizing import BLOCK
from cellstream.repository.manifest import WeightsDtype

HEADING = "## As served"

_FORMS = {
    "float32": "The weights are in float32, as they were learned.",
    "int8": f"""The weights of products are stored in 8 bits, a scale for every {BLOCK} of them, and what they
        meet is rounded to 8 bits too, row by row: no session sees another. Biases and the table of the first
        layer stay in float32. There is no `{SEQUENCE_FILE}` for it.""",
}


def with_section(card: str, section: str) -> str:
    """A card with this last section, in the place of the one that an export before wrote."""
    before, _, _ = card.partition(f"\n{HEADING}\n")
    return f"{before.rstrip()}\n\n{section}"


def write_section(
    weights_dtype: WeightsDtype,
    trained_bits: float | None,
    served_bits: Mapping[WeightsDtype, float],
    graph_bytes: Mapping[WeightsDtype, int],
    proof: Mapping[str, bool | int | float | str],
) -> str:
    """Write the section.

    Args:
        weights_dtype: How this version stores its weights.
        trained_bits: Bits per character of the held-out text by PyTorch; None if they were not measured.
        served_bits: The same by ONNX Runtime, by the form; empty if they were not measured.
        graph_bytes: Size of the graphs and weights, by the form.
        proof: What the proof found.
    """
    rows = [
        f"| `{STEP_FILE}`, {form} | {f'{served_bits[form]:.4f}' if form in served_bits else 'not measured'} "
        f"| {size / 1e6:.2f} MB |"
        for form, size in graph_bytes.items()
    ]
    if trained_bits is not None:
        rows.insert(0, f"| PyTorch, float32 | {trained_bits:.4f} | |")
    near = f"""
        Against PyTorch single steps differ by at most {proof["largest_difference_prediction"]:.1e} in the
        prediction and {proof["largest_difference_states"]:.1e} in the states, relative to numbers above 1,
        from random states and on random input; any cut and any batch gave the same bits."""
    if not proof["batches_bit_exact"]:
        near = near.replace("any cut and any batch gave", "any cut gave")
    if "sequence_steps" in proof:
        near += f""" `{SEQUENCE_FILE}`, the portable form, was within
        {proof["sequence_largest_difference_pytorch"]:.1e} of PyTorch and
        {proof["sequence_largest_difference_step"]:.1e} of `{STEP_FILE}` over
        {proof["sequence_steps"]:,} steps of rows of different lengths."""
    return "\n".join(
        [
            HEADING,
            "",
            _paragraph(_FORMS[weights_dtype]),
            "",
            "| form | bits per character, held-out text | graphs and weights |",
            "|---|---|---|",
            *rows,
            "",
            _paragraph(near),
            "",
        ]
    )


def graphs_bytes(directory: Path) -> int:
    """Size of the graphs of a folder and of what they read."""
    return sum(
        path.stat().st_size
        for path in directory.iterdir()
        if path.suffix == ".onnx" or path.name == WEIGHTS_FILE
    )


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 108, break_long_words=False, break_on_hyphens=False)
