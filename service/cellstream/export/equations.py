"""One step of each cell as ONNX nodes: the equations of `cells/`, line by line.

Each function adds one layer's nodes to a graph and returns the names of what it made. It does not know how
many layers there are, nor what is done with its gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx import NodeProto, helper

from cellstream.export.quantizing import ACCURACY_LEVEL, BLOCK, BYTES, CONTRIBUTED, SCALES


@dataclass(slots=True)
class Nodes:
    """A growing list of nodes and of the whole numbers that they need.

    Attributes:
        made: The nodes so far, in the order of their making, which is an order they can run in.
        constants: One-dimensional int64 tensors by name: sizes of splits, shapes.
        in_8_bits: The weights that are stored in 8 bits, by name, with their shape.
    """

    made: list[NodeProto] = field(default_factory=list)
    constants: dict[str, tuple[int, ...]] = field(default_factory=dict)
    in_8_bits: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node of one output, and return the output's name."""
        return self.add_many(operator, inputs, [output], **attributes)[0]

    def add_many(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> Sequence[str]:
        """Add a node of several outputs, and return their names."""
        self.made.append(helper.make_node(operator, inputs, outputs, name=outputs[0], **attributes))
        return outputs

    def affine(self, x: str, weight: str, bias: str, output: str) -> str:
        """x·W + b, of which W is a constant: one Gemm; in 8 bits a product of their own, and a sum."""
        if weight not in self.in_8_bits:
            return self.add("Gemm", [x, weight, bias], output)
        rows, columns = self.in_8_bits[weight]
        product = self.add(
            "MatMulNBits",
            [x, weight + BYTES, weight + SCALES],
            output + ".product",
            domain=CONTRIBUTED,
            K=rows,
            N=columns,
            bits=8,
            block_size=BLOCK,
            accuracy_level=ACCURACY_LEVEL,
        )
        return self.add("Add", [product, bias], output)

    def constant(self, name: str, *numbers: int) -> str:
        """Name a tensor of whole numbers, the same one for the same numbers."""
        name = f"{name}.{'_'.join(map(str, numbers))}"
        self.constants[name] = numbers
        return name

    def split(self, value: str, sizes: Sequence[int], outputs: Sequence[str], axis: int = 1) -> Sequence[str]:
        """Cut a value into parts of these sizes; axis 1: into columns."""
        return self.add_many("Split", [value, self.constant("split", *sizes)], outputs, axis=axis)


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer sees at one step; all by the names of graph values.

    Attributes:
        prefix: Of its tensors and values: `layers.0.`.
        units: How many it has.
        x: The step's input, [batch, width] float32, or [batch] int64 where it is a token.
        x_is_token: Whether the layer has a table, in which x is looked up.
        states: Its states before the step, [batch, units] each.
    """

    prefix: str
    units: int
    x: str
    x_is_token: bool
    states: dict[str, str]


@dataclass(frozen=True, slots=True)
class Stepped:
    """What one layer made of it.

    Attributes:
        states: Its states after the step, [batch, units] each.
        gates: Values whose columns, side by side, are the gates that it shows, in the order of `SHOWN_GATES`.
    """

    states: dict[str, str]
    gates: list[str]


def rnn(nodes: Nodes, layer: Layer) -> Stepped:
    """Vanilla RNN: h = tanh(W·[x, h₋₁] + b)."""
    of, h = layer.prefix, layer.states["hidden"]
    a = _gate_inputs(nodes, layer, h)  # [batch, units]
    return Stepped({"hidden": nodes.add("Tanh", [a], of + "hidden_next")}, [])


def lstm(nodes: Nodes, layer: Layer) -> Stepped:
    """LSTM: f, i, o = σ(W·[x, h₋₁] + b); C̃ = tanh(W_c·[x, h₋₁] + b_c); C = f⊙C₋₁ + i⊙C̃; h = o⊙tanh(C)."""
    of, units, h, c = layer.prefix, layer.units, layer.states["hidden"], layer.states["cell"]
    a = _gate_inputs(nodes, layer, h)  # [batch, 4 × units]
    through_sigmoid, through_tanh = nodes.split(a, [3 * units, units], [of + "a_fio", of + "a_candidate"])
    fio = nodes.add("Sigmoid", [through_sigmoid], of + "fio")
    f, i, o = nodes.split(fio, [units] * 3, [of + "forget", of + "input", of + "output"])
    candidate = nodes.add("Tanh", [through_tanh], of + "candidate")
    kept = nodes.add("Mul", [f, c], of + "kept")
    written = nodes.add("Mul", [i, candidate], of + "written")
    c_next = nodes.add("Add", [kept, written], of + "cell_next")
    h_next = nodes.add("Mul", [o, nodes.add("Tanh", [c_next], of + "cell_tanh")], of + "hidden_next")
    return Stepped({"hidden": h_next, "cell": c_next}, [fio, candidate])


def gru(nodes: Nodes, layer: Layer) -> Stepped:
    """GRU as PyTorch has it: r, z = σ(W·x + U·h₋₁ + b); n = tanh(W_n·x + b_n + r⊙(U_n·h₋₁ + c_n)).

    h = (1 − z)⊙n + z⊙h₋₁, written as PyTorch computes it: n + z⊙(h₋₁ − n).
    """
    of, units, h = layer.prefix, layer.units, layer.states["hidden"]
    if layer.x_is_token:
        from_x = nodes.add("Gather", [of + "table", layer.x], of + "from_x", axis=0)  # [batch, 3 × units]
    else:
        from_x = nodes.affine(layer.x, of + "input_weight", of + "input_bias", of + "from_x")
    from_h = nodes.affine(h, of + "state_weight", of + "state_bias", of + "from_h")  # [batch, 3 × units]
    rz_x, n_x = nodes.split(from_x, [2 * units, units], [of + "rz_x", of + "n_x"])
    rz_h, n_h = nodes.split(from_h, [2 * units, units], [of + "rz_h", of + "n_h"])
    rz = nodes.add("Sigmoid", [nodes.add("Add", [rz_x, rz_h], of + "a_rz")], of + "rz")
    r, z = nodes.split(rz, [units] * 2, [of + "reset", of + "update"])
    a_n = nodes.add("Add", [n_x, nodes.add("Mul", [r, n_h], of + "n_h_reset")], of + "a_n")
    n = nodes.add("Tanh", [a_n], of + "candidate")
    moved = nodes.add("Mul", [z, nodes.add("Sub", [h, n], of + "h_minus_n")], of + "moved")
    h_next = nodes.add("Add", [n, moved], of + "hidden_next")
    return Stepped({"hidden": h_next}, [rz, n])


CELLS: dict[str, Callable[[Nodes, Layer], Stepped]] = {"rnn": rnn, "lstm": lstm, "gru": gru}
"""One step of each cell, by the cell's name."""


def _gate_inputs(nodes: Nodes, layer: Layer, h: str) -> str:
    """All gates' W·[x, h₋₁] + b, [batch, gates × units]; a token's share is a row of the table."""
    of = layer.prefix
    if layer.x_is_token:
        from_x = nodes.add("Gather", [of + "table", layer.x], of + "from_x", axis=0)
        return nodes.affine(h, of + "weight", from_x, of + "a")
    both = nodes.add("Concat", [layer.x, h], of + "x_h", axis=1)  # [batch, width + units]
    return nodes.affine(both, of + "weight", of + "bias", of + "a")
