"""Weights in 8 bits: blocks of bytes and a scale for each, as ONNX Runtime's MatMulNBits takes them.

Only weights are stored so; what meets an activation stays whole: biases, and the table of the first layer.
`com.microsoft::MatMulNBits` is an operator of ONNX Runtime, not of ONNX. It reads W [K, N] as N columns of K
numbers in blocks of `BLOCK`: a byte q stands for (q − 128) × scale. The scale is the block's largest number
over 127, so that 0 stays 0 and nothing is cut off.

At accuracy level 4 the operator rounds the activations to 8 bits too, each block of each row by its own
largest number: no row sees another. That, and that a row's bits do not depend on how many rows there are, was
measured for each choice (bench/products.py; ONNX Runtime 1.32, AVX-512 with VNNI, K 768, N 1536, B 1 to 512):

    level 4, blocks of 16, 32, 64   the same bits in every batch; 1 row 33, 26, 25 µs (Gemm about 50)
    level 4, blocks of 128, 256     1 or 3 rows differ from many: sessions would depend on each other
    level 0 and 1 (float32)         1 row differs from many, and takes a hundred times as long

So level 4, and of the blocks that hold the promise the largest, which are the fastest and the smallest.
Another processor has other kernels (with AVX2 every block of level 4 holds it): the export's proof and the
server's check at load look again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK, ACCURACY_LEVEL = 64, 4
CONTRIBUTED = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

BYTES, SCALES = ".bytes", ".scales"
"""What a weight's two tensors are called, after the weight."""

_ZERO = 128
"""The byte that stands for 0 where no zero points are given."""


def quantize(tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    """Put two tensors in the place of each weight of a product, and leave the others as they are.

    Returns:
        `<weight>.bytes` uint8 [N, blocks, BLOCK] and `<weight>.scales` float32 [N, blocks] for W [K, N].
    """
    stored: dict[str, NDArray[Any]] = {}
    for name, tensor in tensors.items():
        if is_weight(name):
            stored[name + BYTES], stored[name + SCALES] = _quantize(tensor)
        else:
            stored[name] = tensor
    return stored


def is_weight(name: str) -> bool:
    """Whether a tensor of `folding.fold` is the right side of a product."""
    return name.endswith("weight")


def _quantize(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    rows, columns = weight.shape
    blocks = -(-rows // BLOCK)
    padded = np.zeros((columns, blocks * BLOCK), np.float32)
    padded[:, :rows] = weight.T
    by_block = padded.reshape(columns, blocks, BLOCK)
    scales = np.abs(by_block).max(axis=2) / np.float32(127)  # [columns, blocks]
    steps = np.rint(by_block / np.where(scales == 0, 1, scales)[:, :, np.newaxis])
    return (steps + _ZERO).astype(np.uint8), scales
