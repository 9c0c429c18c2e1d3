"""Models for the engine's tests, a plain loop that says what a session gets alone, and a clock that ticks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper

from cellstream.cells import StackConfig
from cellstream.engine import Answer, Engine, Feed, Progress
from cellstream.engine.costs import Costs, Telling
from cellstream.engine.sequence import SequenceGraph
from cellstream.export import write_version
from cellstream.repository import MANIFEST_FILE, Manifest, ModelVersion, digest_file, load_version
from cellstream.repository.manifest import Architecture, File, Input, Output, State

VOCABULARY = 11
POISON = 9
"""A token of the tiny models whose weights are NaN: it makes any state non-finite."""
OUTSIDE = 99
"""No token: the graph raises on it. The api refuses such; the engine must survive them all the same."""


def _weights(config: StackConfig) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        name: random.normal(0, 0.8, shape).astype(np.float32)
        for name, shape in config.weight_shapes().items()
    }


def _poison(directory: Path) -> None:
    """Makes what the first layer adds for `POISON` NaN, behind the back of the export, which refuses that."""
    graph = onnx.load(directory / "model.onnx", load_external_data=False).graph
    (table,) = (tensor for tensor in graph.initializer if tensor.dims == [VOCABULARY, 4 * 8])
    (offset,) = (int(entry.value) for entry in table.external_data if entry.key == "offset")
    weights = directory / "weights.bin"
    contents = bytearray(weights.read_bytes())
    row = np.frombuffer(contents, np.float32, 4 * 8, offset + POISON * 4 * 8 * 4)
    row[:] = np.nan
    weights.write_bytes(contents)
    manifest = json.loads((directory / MANIFEST_FILE).read_text())
    manifest["files"][weights.name]["sha256"] = digest_file(weights)
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest))


@dataclass(frozen=True)
class Model:
    """A version on disk, and what it was made of."""

    version: ModelVersion
    config: StackConfig
    weights: dict[str, np.ndarray]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """Writes a tiny model with random weights; each asked for is written once."""
    made: dict[tuple[str, str, bool], Model] = {}

    def make(cell: str = "lstm", kind: str = "tokens", poisoned: bool = False) -> Model:
        key = cell, kind, poisoned
        if key not in made:
            sizes: Any = {"vocabulary_size": VOCABULARY} if kind == "tokens" else {"features": 3}
            config = StackConfig(cell=cell, input=kind, layers=2, hidden_size=8, embedding_size=5, **sizes)
            weights = _weights(config)
            directory = write_version(tmp_path_factory.mktemp("models"), config, weights, name="tiny")
            if poisoned:
                _poison(directory)
            made[key] = Model(load_version(directory), config, weights)
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_graph_version(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelVersion]:
    """Writes a model that predicts a quarter of its last frame and keeps 16 times it; flaws to order.

    `flaw` is "batch": predictions depend on the other rows; "cuts": on how many steps a call has; None: on
    neither. `batch_axis` says where the state has its batch.
    """

    def make(flaw: str | None = None, batch_axis: int = 0) -> ModelVersion:
        shape = (1, 1) if batch_axis else (1,)
        state_shape = [*shape[:batch_axis], "batch", *shape[batch_axis:]]
        step = _graph(
            "step",
            [("values", ["time", "batch", 1]), ("last", state_shape)],
            [("prediction", ["time", "batch", 1]), ("last_next", state_shape)],
            [
                *_predict("values", "prediction", flaw),
                # The last frame, [batch, 1], in the state's shape.
                helper.make_node("Gather", ["values", "end"], ["frame"], axis=0),
                helper.make_node("Mul", ["frame", "sixteen"], ["kept"]),
                helper.make_node("Shape", ["last"], ["state_shape"]),
                helper.make_node("Reshape", ["kept", "state_shape"], ["last_next"]),
            ],
        )
        head = _graph(
            "head",
            [("last", state_shape)],
            [("prediction", ["batch", 1])],
            [
                helper.make_node("Reshape", ["last", "by_row"], ["kept"]),
                helper.make_node("Mul", ["kept", "64th"], ["prediction"]),
            ],
        )
        directory = tmp_path_factory.mktemp("quarter") / "1"
        directory.mkdir()
        for name, graph in (("model.onnx", step), ("head.onnx", head)):
            (directory / name).write_bytes(graph.SerializeToString())
        manifest = Manifest(
            name="quarter",
            version=1,
            created="2026-11-24T00:00:00Z",
            architecture=Architecture(cell="none", layers=1, hidden_size=1, parameters=1),
            input=Input(name="values", kind="values", features=1),
            outputs=(Output(name="prediction", kind="values", shape=(1,)),),
            states=(
                State(name="last", input="last", output="last_next", shape=shape, batch_axis=batch_axis),
            ),
            files={
                path.name: File(sha256=digest_file(path), bytes=path.stat().st_size)
                for path in directory.iterdir()
            },
        )
        (directory / MANIFEST_FILE).write_text(manifest.model_dump_json())
        return load_version(directory)

    return make


def _predict(values: str, prediction: str, flaw: str | None) -> list[Any]:
    """A quarter of each value: exactly, as half of it less a quarter of it, or of the batch's mean of it."""
    subtracted = [helper.make_node("Mul", [values, "quarter"], ["subtracted"])]
    if flaw == "batch":
        subtracted = [
            helper.make_node("ReduceMean", [values, "rows"], ["mean"], keepdims=1),
            helper.make_node("Mul", ["mean", "quarter"], ["subtracted"]),
        ]
    half = helper.make_node("Mul", [values, "half"], ["half_of_it"])
    if flaw != "cuts":
        return [half, *subtracted, helper.make_node("Sub", ["half_of_it", "subtracted"], [prediction])]
    return [
        half,
        *subtracted,
        helper.make_node("Sub", ["half_of_it", "subtracted"], ["right"]),
        helper.make_node("Shape", [values], ["steps"], start=0, end=1),
        helper.make_node("Cast", ["steps"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["right", "factor"], [prediction]),
    ]


def _graph(name: str, inputs: list[Any], outputs: list[Any], nodes: list[Any]) -> ModelProto:
    constants = [
        helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]),
        helper.make_tensor("quarter", TensorProto.FLOAT, [], [0.25]),
        helper.make_tensor("sixteen", TensorProto.FLOAT, [], [16.0]),
        helper.make_tensor("64th", TensorProto.FLOAT, [], [1 / 64]),
        helper.make_tensor("end", TensorProto.INT64, [], [-1]),
        helper.make_tensor("rows", TensorProto.INT64, [1], [1]),
        helper.make_tensor("by_row", TensorProto.INT64, [2], [-1, 1]),
    ]
    used = {given for node in nodes for given in node.input}
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in inputs],
        [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in outputs],
        [constant for constant in constants if constant.name in used],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])


@dataclass(frozen=True)
class Step:
    """What one session gets at one step: arrays without the axes of time and batch."""

    output: np.ndarray
    states: dict[str, np.ndarray]
    gates: dict[str, np.ndarray]


@dataclass
class Alone:
    """One session at a time, one token at a time, by plain ONNX Runtime: what everything is held against."""

    version: ModelVersion
    _steps: dict[Any, Step] = field(default_factory=dict)

    def __post_init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(self.version.step_graph, options)

    def initial(self) -> dict[str, np.ndarray]:
        """The states before the first token."""
        return {
            state.name: np.full(state.shape, state.initial, np.float32)
            for state in self.version.manifest.states
        }

    def after(self, inputs: tuple[Any, ...]) -> Step:
        """The step of the last of these inputs, after all before it; a frame is a tuple of numbers."""
        if inputs not in self._steps:
            states = self.after(inputs[:-1]).states if len(inputs) > 1 else self.initial()
            self._steps[inputs] = self.step(states, inputs[-1])
        return self._steps[inputs]

    def before_anything(self) -> np.ndarray:
        """The prediction from the initial state, without the axis of the batch."""
        head = onnxruntime.InferenceSession(self.version.head_graph)
        initial = self.initial()
        fed = {
            state.input: np.expand_dims(initial[state.name], state.batch_axis)
            for state in self.version.manifest.states
            if state.input in {given.name for given in head.get_inputs()}
        }
        return head.run(None, fed)[0][0]

    def step(self, states: dict[str, np.ndarray], given: Any) -> Step:
        """One step from these states."""
        manifest = self.version.manifest
        dtype = np.int64 if manifest.input.kind == "tokens" else np.float32
        fed = {manifest.input.name: np.array([[given]], dtype)}
        for state in manifest.states:
            fed[state.input] = np.expand_dims(states[state.name], state.batch_axis)
        if manifest.gates_switch:
            fed[manifest.gates_switch] = np.array(True)
        names = [
            *(output.name for output in manifest.outputs),
            *(state.output for state in manifest.states),
            *(gate.name for gate in manifest.gates),
        ]
        found = dict(zip(names, self._session.run(names, fed), strict=True))
        return Step(
            found[names[0]][0, 0],
            {state.name: found[state.output].squeeze(state.batch_axis) for state in manifest.states},
            {gate.name: found[gate.name][0, 0] for gate in manifest.gates},
        )


@pytest.fixture(scope="session")
def make_alone() -> Callable[[ModelVersion], Alone]:
    """Makes the oracle of a version."""
    return Alone


def _ticking() -> Callable[[], float]:
    """A clock that goes on by 0.1 ms whenever it is read: every step seems to cost that, in every batch."""
    ticks: Iterator[int] = itertools.count()
    return lambda: next(ticks) / 10_000


def _costs(graph: Any, *_: Any, **__: Any) -> Costs:
    """The step graph costs what the clock says, 0.1 ms a step; the sequence graph a tenth, but at first."""
    first, further = (0.15e-3, 0.01e-3) if isinstance(graph, SequenceGraph) else (0.1e-3, 0.1e-3)
    return Costs((1, 1000), (first, first), (further, further))


@pytest.fixture(scope="session")
def make_engine() -> Callable[..., Engine]:
    """Makes an engine that runs up to five steps a call, whatever this machine can do.

    In `fast` numerics it runs up to 41 on the sequence graph: whatever its rows. Telling costs nothing, or
    what is said.
    """

    def make(version: ModelVersion, telling: Telling | None = None, **settings: Any) -> Engine:
        given: dict[str, Any] = {
            "slots_max": 8,
            "batch_rows_max": 8,
            "step_milliseconds_max": 0.55,
            "clock": _ticking(),
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cellstream.engine.engine.measure_costs", _costs)
            patch.setattr("cellstream.engine.engine.measure_telling", lambda *_: telling or Telling())
            return Engine(version, **(given | settings))

    return make


@dataclass
class Heard:
    """A waiter: what a feed was told, in order."""

    progress: list[Progress] = field(default_factory=list)

    def __call__(self, feed: Feed, progress: Progress) -> None:
        """Keeps what it is told."""
        self.progress.append(progress)

    @property
    def only(self) -> Progress:
        """The one thing it was told."""
        (progress,) = self.progress
        return progress

    @property
    def error(self) -> type[Exception] | None:
        """How it ended."""
        assert self.progress[-1].done
        assert not any(progress.done for progress in self.progress[:-1])
        return None if self.progress[-1].error is None else type(self.progress[-1].error)


@pytest.fixture(scope="session")
def feed_of() -> Callable[..., tuple[Feed, Heard]]:
    """Makes a feed and who hears of it."""

    def make(slot: int, inputs: Any, answer: Answer | None = None, **more: Any) -> tuple[Feed, Heard]:
        heard = Heard()
        return Feed(slot, inputs, answer or Answer(), heard, 0.0, **more), heard

    return make
