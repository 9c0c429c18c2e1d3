"""The recurrent cells as equations, in PyTorch, and the one configuration of a stack of them.

`config.py` knows sizes and names and needs no PyTorch: export and tests read it alone. The equations
(`rnn.py`, `lstm.py`, `gru.py`) and the network around them (`stack.py`) are imported by name where PyTorch
is wanted, so that importing this package stays cheap.
"""

from cellstream.cells.config import StackConfig

__all__ = ["StackConfig"]
