"""Bits per character as served: by a loop of single steps, and in the card."""

from __future__ import annotations

import itertools
import math

import numpy as np

from cellstream.cells.checkpoint import Checkpoint, Record, save_checkpoint
from cellstream.export import export
from cellstream.export.building import build
from cellstream.export.card import HEADING
from cellstream.export.measuring import bits_per_character
from cellstream.export.running import Exported
from cellstream.repository import load_version
from cellstream.text import CharacterTokenizer

TEXTS = {"long": "abcgfedcba" * 70, "short": "gggabc" * 11}  # longer, and shorter, than a call's 512 steps


def test_bits_are_those_of_single_steps(lstm, random_weights, tmp_path) -> None:
    """Each text alone, token by token, from an empty state; the first token is not counted."""
    build(lstm, random_weights(lstm)).write(tmp_path)
    exported, tokenizer = Exported(lstm, tmp_path), CharacterTokenizer("abcdefg")
    expected = characters = 0.0
    for text in TEXTS.values():
        ids = tokenizer.encode(text)
        states = {name: np.zeros((1, 3, 10), np.float32) for name in lstm.states}
        bits = 0.0
        for token, after in itertools.pairwise(ids):
            trace = exported.run(np.array([[token]]), states)
            states = trace.states
            bits -= float(trace.steps["log_probabilities"][0, 0, after]) / math.log(2)
        expected += bits / (len(ids) - 1) * len(text)
        characters += len(text)
    found = bits_per_character(lstm, tmp_path, tokenizer, TEXTS)
    assert math.isclose(found, expected / characters, rel_tol=1e-9)


def test_card_says_how_well_each_form_predicts(lstm, random_weights, tmp_path) -> None:
    """Float32 beside 8 bits on the same text, by ONNX Runtime; exported again, the section is not doubled."""
    source = tmp_path / "runs" / "letters"
    record = Record(name="letters", metrics={"heldout_bits_per_character": 3.25})
    save_checkpoint(
        source,
        Checkpoint(
            config=lstm, weights=random_weights(lstm), tokenizer=CharacterTokenizer("abcdefg"), record=record
        ),
        beside={"CARD.md": b"# Letters\n"},
    )
    models = tmp_path / "models"
    first = export(source, models, heldout=lambda _: TEXTS)
    second = export(first, models, weights_dtype="int8", heldout=lambda _: TEXTS)
    proofs = [load_version(path).manifest.proof for path in (first, second)]
    whole, small = proofs[0]["served_float32_bits_per_character"], proofs[1]["served_int8_bits_per_character"]
    # A version has its biases added up and rounded once; what is made of it differs in the last bits.
    assert math.isclose(whole, proofs[1]["served_float32_bits_per_character"], rel_tol=1e-6)
    assert 0 < abs(whole - small) < 0.05
    card = load_version(second).load_card()
    assert card.startswith("# Letters\n")
    assert card.count(HEADING) == 1
    assert "| PyTorch, float32 | 3.2500 | |" in card
    assert f"| `model.onnx`, float32 | {whole:.4f} |" in card
    assert f"| `model.onnx`, int8 | {small:.4f} |" in card
    assert "`sequence.onnx`, the portable form, was within" in load_version(first).load_card()
