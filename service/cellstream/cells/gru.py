r"""The gated recurrent unit (Cho et al., 2014), as `torch.nn.GRU` has it (ONNX `linear_before_reset=1`).

    r = σ(W_r·x + U_r·h₋₁ + b_r)              how much of the past the candidate sees
    z = σ(W_z·x + U_z·h₋₁ + b_z)              how much of the past is kept
    n = tanh(W_n·x + b_n + r ⊙ (U_n·h₋₁ + c_n))
    h = (1 − z) ⊙ n + z ⊙ h₋₁

W is `weight_ih`, U is `weight_hh`, stacked as r, z, n; b_r and b_z are `bias_ih` + `bias_hh`, while the
candidate keeps both: b_n of `bias_ih` outside the reset, c_n of `bias_hh` inside it.
"""

from __future__ import annotations

from torch import Tensor, sigmoid, tanh

from cellstream.cells.cell import Cell, Hidden

State = Hidden


class GRUCell(Cell):
    """One step of the gated recurrent unit."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__(width, units, blocks=3)

    def initial(self, batch: int) -> State:
        """The state before the first token: zeros, [batch, units]."""
        return State(self.weight_hh.new_zeros(batch, self.units))

    def forward(self, x: Tensor, state: State) -> tuple[State, dict[str, Tensor]]:
        """Take one step.

        Args:
            x: [batch, width].
            state: The state before it.

        Returns:
            The state after it, and the gates by name, each [batch, units].
        """
        x_r, x_z, x_n = self.from_input(x).chunk(3, dim=-1)  # PyTorch's order; 3 × [batch, units]
        h_r, h_z, h_n = self.from_state(state.h).chunk(3, dim=-1)
        r = sigmoid(x_r + h_r)
        z = sigmoid(x_z + h_z)
        n = tanh(x_n + r * h_n)
        h = (1 - z) * n + z * state.h
        return State(h), {"reset": r, "update": z, "candidate": n}
