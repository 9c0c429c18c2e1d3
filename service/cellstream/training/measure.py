"""How well a model predicts, in bits per character, and what compressors make of the same text."""

from __future__ import annotations

import bz2
import lzma
import math
from collections.abc import Callable

import torch

from cellstream.cells.stack import FusedStack
from cellstream.training.data import Piece

WINDOW = 512
"""Steps of one forward run: long enough to keep PyTorch busy, short enough to keep memory small."""


def bits_per_character(model: FusedStack, piece: Piece, rows: int = 1) -> float:
    """Measure the mean surprise of a text's tokens, in bits, per character of the text.

    With one row it is the surprise that a served session has: the state is carried from the first token to
    the last. More rows are faster and a little pessimistic, because each begins with an empty state.

    Args:
        model: What predicts; back in its mode of before afterwards.
        piece: The text; its very first token is not predicted and not counted.
        rows: Equal parts of the text to read at the same time.
    """
    length = len(piece.ids) // rows
    ids = torch.from_numpy(piece.ids[: rows * length].reshape(rows, length)).T.contiguous()  # [length, rows]
    ids = ids.to(model.head.weight.device)
    training = model.training
    model.eval()
    nats, states = 0.0, None
    with torch.inference_mode():
        for at in range(0, length - 1, WINDOW):
            inputs, targets = ids[at : at + WINDOW], ids[at + 1 : at + 1 + WINDOW]
            trace = model(inputs[: len(targets)], states)
            states = trace.states
            nats -= trace.prediction.gather(-1, targets[..., None]).double().sum().item()
    model.train(training)
    return nats / math.log(2) / (rows * (length - 1)) * piece.tokens_per_character


def compressors_bits_per_character(training: str, texts: list[str]) -> dict[str, float]:
    """Measure how many bits more a compressor needs for the held-out texts behind the training text.

    They have no model of language; a network that does not beat them has learned nothing.

    Returns:
        Bits per held-out character, by the compressor's name.
    """
    before, after = training.encode(), (training + "".join(texts)).encode()
    compressors: dict[str, Callable[[bytes], bytes]] = {
        "xz": lambda content: lzma.compress(content, preset=9),
        "bzip2": lambda content: bz2.compress(content, 9),
    }
    characters = sum(map(len, texts))
    return {
        name: 8 * (len(compress(after)) - len(compress(before))) / characters
        for name, compress in compressors.items()
    }
