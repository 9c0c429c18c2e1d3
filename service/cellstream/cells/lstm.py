r"""The long short-term memory (Hochreiter and Schmidhuber, 1997; with the forget gate of Gers, 2000).

    f = σ(W_f·[h₋₁, x] + b_f)        what is kept
    i = σ(W_i·[h₋₁, x] + b_i)        what is written
    C̃ = tanh(W_c·[h₋₁, x] + b_c)     what could be written
    C = f ⊙ C₋₁ + i ⊙ C̃
    o = σ(W_o·[h₋₁, x] + b_o)        what is shown
    h = o ⊙ tanh(C)

PyTorch splits each W into `weight_ih` and `weight_hh`, each b into `bias_ih` + `bias_hh`, writes g for C̃,
and stacks the gates as i, f, g, o.
"""

from __future__ import annotations

from torch import Tensor, sigmoid, tanh

from cellstream.cells.cell import Cell, HiddenAndCell

State = HiddenAndCell


class LSTMCell(Cell):
    """One step of the long short-term memory."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__(width, units, blocks=4)

    def initial(self, batch: int) -> State:
        """The state before the first token: zeros, 2 × [batch, units]."""
        zeros = self.weight_hh.new_zeros(batch, self.units)
        return State(h=zeros, c=zeros)

    def forward(self, x: Tensor, state: State) -> tuple[State, dict[str, Tensor]]:
        """Take one step.

        Args:
            x: [batch, width].
            state: The state before it.

        Returns:
            The state after it, and the gates by name, each [batch, units].
        """
        gates = self.from_input(x) + self.from_state(state.h)  # [batch, 4 × units]
        i, f, g, o = gates.chunk(4, dim=-1)  # PyTorch's order; 4 × [batch, units]
        i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
        c = f * state.c + i * g  # what is kept + what is written
        h = o * tanh(c)
        return State(h, c), {"forget": f, "input": i, "output": o, "candidate": g}
