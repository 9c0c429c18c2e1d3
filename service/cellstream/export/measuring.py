"""How well a version predicts as it is served: by its own step graph, through ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cellstream.cells.config import StackConfig
from cellstream.export.forms import output_name
from cellstream.export.running import Exported
from cellstream.text import Tokenizer

_STEPS = 512
"""Of one call: long enough that its cost does not count, short enough to keep memory small."""


def bits_per_character(
    config: StackConfig, directory: Path, tokenizer: Tokenizer, texts: Mapping[str, str]
) -> float:
    """Measure the mean surprise of texts, in bits per character, as training measures it.

    Each text is read once, from its first token to its last, the states carried on; its very first token is
    predicted by nobody and not counted. All are read at the same time, a row each, as sessions are.

    Args:
        config: The network's sizes.
        directory: Where its graphs are.
        tokenizer: What makes its tokens.
        texts: By name; each of two tokens or more.
    """
    exported = Exported(config, directory)
    ids = [np.array(tokenizer.encode(text), dtype=np.int64) for text in texts.values()]
    lengths = np.array([len(one) for one in ids])
    rows = np.arange(len(ids))
    padded = np.zeros((lengths.max(), len(ids)), np.int64)  # [time, batch]
    for row, one in enumerate(ids):
        padded[: len(one), row] = one
    shape = (len(ids), config.layers, config.hidden_size)
    states = {name: np.zeros(shape, np.float32) for name in config.states}
    nats = np.zeros(len(ids))
    for at in range(0, len(padded) - 1, _STEPS):
        targets = padded[at + 1 : at + 1 + _STEPS]
        trace = exported.run(padded[at : at + len(targets)], states, gates=False)
        states = trace.states
        steps = np.arange(len(targets))[:, np.newaxis]
        surprise = -trace.steps[output_name(config)][steps, rows, targets].astype(np.float64)
        nats += np.where(at + 1 + steps < lengths, surprise, 0).sum(axis=0)
    characters = np.array([len(text) for text in texts.values()])
    bits = nats / math.log(2) / (lengths - 1) * lengths  # of each whole text
    return float(bits.sum() / characters.sum())
