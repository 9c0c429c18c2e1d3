"""What the cells have in common: four weights, and a step that shows its gates."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Cell(nn.Module):
    """The weights of a cell by PyTorch's names, gate blocks from top to bottom in PyTorch's order.

    Args:
        width: Numbers in x.
        units: Numbers in h.
        blocks: How many gates the weights hold.
    """

    def __init__(self, width: int, units: int, blocks: int) -> None:
        super().__init__()
        self.units = units
        self.weight_ih = nn.Parameter(torch.empty(blocks * units, width))
        self.weight_hh = nn.Parameter(torch.empty(blocks * units, units))
        self.bias_ih = nn.Parameter(torch.empty(blocks * units))
        self.bias_hh = nn.Parameter(torch.empty(blocks * units))
        for weight in self.parameters():
            nn.init.uniform_(weight, -1 / math.sqrt(units), 1 / math.sqrt(units))  # as torch.nn.LSTM begins

    def from_input(self, x: Tensor) -> Tensor:
        """W·x + b of all gates: [batch, width] → [batch, blocks × units]."""
        return nn.functional.linear(x, self.weight_ih, self.bias_ih)

    def from_state(self, h: Tensor) -> Tensor:
        """U·h + b of all gates: [batch, units] → [batch, blocks × units]."""
        return nn.functional.linear(h, self.weight_hh, self.bias_hh)


class Hidden(NamedTuple):
    """The state of a cell whose only memory is what it shows.

    Attributes:
        h: Hidden state, [batch, units].
    """

    h: Tensor


class HiddenAndCell(NamedTuple):
    """The state of a cell with a long-term memory behind what it shows.

    Attributes:
        h: Hidden state, [batch, units].
        c: Cell state C, [batch, units].
    """

    h: Tensor
    c: Tensor
