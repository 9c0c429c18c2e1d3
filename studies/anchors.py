"""What needs no network: compressors and n-grams on the same text, in bits per held-out character.

A compressor is asked how many bytes more it needs for the held-out plays behind the training text. The
n-grams count the training text and stay as they are, as a network does. Both see what the networks learned
from: neither the validation play nor the held-out ones.
"""

from __future__ import annotations

import numpy as np
import pyppmd

from cellstream.training.data import load_splits
from cellstream.training.measure import compressors_bits_per_character
from studies.ngrams import KneserNey
from studies.study import RUNS, read_recipe, write_result

ORDERS = (5, 6, 7)


def main() -> None:
    """Measure them all."""
    splits = load_splits(read_recipe("lstm").data, RUNS)
    training, texts = splits.training.text, [piece.text for piece in splits.heldout]
    bits = compressors_bits_per_character(training, texts)  # by xz and bzip2, as in each model's card
    before, heldout = training.encode(), "".join(texts).encode()
    bits["PPMd, order 8"] = 8 * (len(_ppmd(before + heldout)) - len(_ppmd(before))) / len(heldout)
    for order in ORDERS:
        p = KneserNey(before, order).probabilities(before + heldout, start=len(before))
        bits[f"Kneser–Ney {order}-gram"] = float(-np.log2(p).mean())
    for name, value in bits.items():
        print(f"{name}: {value:.3f} bits per character")
    write_result(
        "anchors", {"training_characters": len(before), "heldout_characters": len(heldout), "bits": bits}
    )


def _ppmd(text: bytes) -> bytes:
    # Its tables must hold all that it has read: with 16 MiB, the default, it would begin anew on the way.
    compressed: bytes = pyppmd.compress(text, max_order=8, mem_size=1 << 28)
    return compressed


if __name__ == "__main__":
    main()
