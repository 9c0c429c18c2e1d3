r"""The vanilla recurrent network (Elman, 1990), as `torch.nn.RNN` has it.

    h = tanh(W·[h₋₁, x] + b)

PyTorch splits W into `weight_ih` and `weight_hh`, and b into `bias_ih` + `bias_hh`.
"""

from __future__ import annotations

from torch import Tensor, tanh

from cellstream.cells.cell import Cell, Hidden

State = Hidden


class RNNCell(Cell):
    """One step of the vanilla network."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__(width, units, blocks=1)

    def initial(self, batch: int) -> State:
        """The state before the first token: zeros, [batch, units]."""
        return State(self.weight_hh.new_zeros(batch, self.units))

    def forward(self, x: Tensor, state: State) -> tuple[State, dict[str, Tensor]]:
        """Take one step.

        Args:
            x: [batch, width].
            state: The state before it.

        Returns:
            The state after it, and no gates: h is all there is.
        """
        h = tanh(self.from_input(x) + self.from_state(state.h))  # [batch, units]
        return State(h), {}
