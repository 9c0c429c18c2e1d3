"""Muon: momentum made orthogonal, for the matrices inside a network (Jordan et al. 2024).

https://kellerjordan.github.io/posts/muon. `torch.optim.Muon` multiplies in bfloat16, which processors
without AVX-512 only emulate: there an update of ours took eight times as long. This one keeps to
float32, and makes up for it by smaller matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
A, B, C = 3.4445, -4.7750, 2.0315
"""Of Jordan's polynomial a·s + b·s³ + c·s⁵: five times in a row, it takes singular values near 1 fastest."""

ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Steps along the nearest orthogonal matrix of the Nesterov momentum.

    A step is as long as one of AdamW usually is (Liu et al. 2025, arXiv:2502.16982), so that both can share
    a learning rate.

    Args:
        matrices: What learns; each [rows, columns].
        lr: Learning rate.
        weight_decay: Decoupled, as AdamW's.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update each matrix once from its gradient."""
        assert closure is None
        for group in self.param_groups:
            rate, decay = group["lr"], group["weight_decay"]
            for matrix in group["params"]:
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                momentum = state["momentum_buffer"]
                momentum.lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonal(matrix.grad.lerp(momentum, MOMENTUM))
                matrix.mul_(1 - rate * decay)
                matrix.add_(update, alpha=-rate * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonal(matrix: Tensor) -> Tensor:
    """Come near U·Vᵀ of a matrix U·S·Vᵀ: singular values are brought to about 0.7 to 1.2.

    Each iteration of Newton and Schulz multiplies the matrix X by P = a + b·XᵀX + c·(XᵀX)². All these are
    polynomials of the first XᵀX and commute, so the smaller square alone is iterated, and X multiplied once.

    Args:
        matrix: [rows, columns], float32.

    Returns:
        The same shape. Zeros stay zeros.
    """
    if matrix.shape[0] < matrix.shape[1]:
        return orthogonal(matrix.mT).mT
    matrix = matrix / matrix.norm().clamp(min=1e-7)  # no singular value above 1
    gram = matrix.mT @ matrix
    factor = one = torch.eye(matrix.shape[1], device=matrix.device)
    for _ in range(ITERATIONS):
        step = torch.addmm(gram, gram, gram, beta=B, alpha=C).add_(one, alpha=A)
        factor = factor @ step
        gram = step @ gram @ step
    return matrix @ factor
