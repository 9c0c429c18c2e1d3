"""Whether a graph's real inputs and outputs are those that the manifest names.

The real ones are what ONNX Runtime says of the loaded graph, whoever wrote the file, and with what. Names,
types, the number of axes and every fixed size are compared. An axis that has to be free (time, batch) must be
free: an exporter that baked one in is caught here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from cellstream.errors import RepositoryError, SignatureMismatch
from cellstream.repository.manifest import LENGTHS, Manifest, State

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
"""ONNX Runtime's names of types by numpy's."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A graph's input or output.

    Attributes:
        dtype: As numpy writes it; as ONNX Runtime does, where numpy has no such type.
        shape: Its sizes; None where an axis is free.
    """

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join('any' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Signature:
    """A graph's inputs and outputs by name."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def step_signature(manifest: Manifest) -> Signature:
    """The signature that the manifest's step graph has to have."""
    tokens = manifest.input.kind == "tokens"
    taken = (
        Tensor("int64", (None, None)) if tokens else Tensor("float32", (None, None, manifest.input.features))
    )
    inputs = {manifest.input.name: taken} | {state.input: _state_tensor(state) for state in manifest.states}
    if manifest.gates_switch:
        inputs[manifest.gates_switch] = Tensor("bool", ())
    outputs = {output.name: Tensor("float32", (None, None, *output.shape)) for output in manifest.outputs}
    outputs |= {state.output: _state_tensor(state) for state in manifest.states}
    outputs |= {gate.name: Tensor("float32", (None, None, *gate.shape)) for gate in manifest.gates}
    return Signature(inputs, outputs)


def head_signature(manifest: Manifest) -> Signature:
    """The signature that the manifest's head graph has to have; it may leave out states it does not need."""
    return Signature(
        inputs={state.input: _state_tensor(state) for state in manifest.states},
        outputs={output.name: Tensor("float32", (None, *output.shape)) for output in manifest.outputs},
    )


def sequence_signature(manifest: Manifest) -> Signature:
    """The signature that the manifest's sequence graph has to have."""
    step = step_signature(manifest)
    gates = {gate.name for gate in manifest.gates}
    return Signature(
        inputs={name: tensor for name, tensor in step.inputs.items() if name != manifest.gates_switch}
        | {LENGTHS: Tensor("int32", (None,))},
        outputs={name: tensor for name, tensor in step.outputs.items() if name not in gates},
    )


def check_signatures(manifest: Manifest, directory: Path) -> None:
    """Compare the graphs of a version with its manifest.

    Raises:
        SignatureMismatch: A graph takes or gives something else; the message has every difference.
        RepositoryError: ONNX Runtime cannot read a graph.
    """
    step, head = directory / manifest.step_graph, directory / manifest.head_graph
    _check(step, step_signature(manifest), inputs_optional=False)
    _check(head, head_signature(manifest), inputs_optional=True)
    if manifest.sequence_graph is not None:
        _check(directory / manifest.sequence_graph, sequence_signature(manifest), inputs_optional=False)


def _check(path: Path, expected: Signature, *, inputs_optional: bool) -> None:
    found = _read(path)
    differences = [
        *_differences("input", expected.inputs, found.inputs, optional=inputs_optional),
        *_differences("output", expected.outputs, found.outputs, optional=False),
    ]
    if not found.inputs:
        differences.append("inputs: expected at least one, found none")
    if differences:
        raise SignatureMismatch(f"{path} is not what its manifest says: {'; '.join(differences)}.", file=path)


def _differences(
    kind: str, expected: dict[str, Tensor], found: dict[str, Tensor], *, optional: bool
) -> Iterable[str]:
    for name in found if optional else expected | found:
        wanted, got = expected.get(name, "none"), found.get(name, "none")
        if wanted != got:
            yield f"{kind} {name}: expected {wanted}, found {got}"


def _read(path: Path) -> Signature:
    """Load a graph as cheaply as ONNX Runtime can, only to see its inputs and outputs."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what is wrong is told by the exception
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a dozen classes, with no base of their own
        raise RepositoryError(
            f"{path}: expected a graph that ONNX Runtime reads, found: {error}", file=path
        ) from error
    return Signature(_tensors(session.get_inputs()), _tensors(session.get_outputs()))


def _tensors(arguments: Sequence[Any]) -> dict[str, Tensor]:
    return {
        argument.name: Tensor(
            _DTYPES.get(argument.type, argument.type),
            tuple(size if isinstance(size, int) else None for size in argument.shape),
        )
        for argument in arguments
    }


def _state_tensor(state: State) -> Tensor:
    shape: list[int | None] = list(state.shape)
    shape.insert(state.batch_axis, None)
    return Tensor(state.dtype, tuple(shape))
