"""What needs no network: compressors and n-grams on the same text, in bits per held-out character.

A compressor is asked how many bytes more it needs for the held-out plays behind the training text. The
n-grams count the training text and stay as they are, as a network does. Both see what the networks learned
from: neither the validation play nor the held-out ones.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable

import numpy as np
import pyppmd

from cellstream.training.data import load_splits
from studies.ngrams import KneserNey
from studies.study import RUNS, read_recipe, write_result

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lambda content: lzma.compress(content, preset=9),
    "bzip2": lambda content: bz2.compress(content, 9),
    # Its tables must hold all that it has read: with 16 MiB, the default, it would begin anew on the way.
    "PPMd, order 8": lambda content: pyppmd.compress(content, max_order=8, mem_size=1 << 28),
}

ORDERS = (5, 6, 7)


def main() -> None:
    """Measure them all."""
    splits = load_splits(read_recipe("lstm").data, RUNS)
    before = splits.training.text.encode()
    heldout = "".join(piece.text for piece in splits.heldout).encode()
    bits = {
        name: 8 * (len(compress(before + heldout)) - len(compress(before))) / len(heldout)
        for name, compress in COMPRESSORS.items()
    }
    for order in ORDERS:
        p = KneserNey(before, order).probabilities(before + heldout, start=len(before))
        bits[f"Kneser–Ney {order}-gram"] = float(-np.log2(p).mean())
    for name, value in bits.items():
        print(f"{name}: {value:.3f} bits per character")
    write_result(
        "anchors", {"training_characters": len(before), "heldout_characters": len(heldout), "bits": bits}
    )


if __name__ == "__main__":
    main()
