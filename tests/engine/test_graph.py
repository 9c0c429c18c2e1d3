"""Running a graph on buffers that stay: every size of call, each reading what it was given."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np

from cellstream.engine import Answer, Want
from cellstream.engine.graph import BUFFERS_MAX, Graph
from cellstream.repository import ModelVersion


def _graph(version: ModelVersion) -> Graph:
    return Graph(version.manifest, version.step_graph, version.head_graph)


def test_calls_of_all_sizes_share_memory_and_not_results(make_model: Any, make_alone: Any) -> None:
    """Sizes come and go, the memory grows, old buffers are evicted: each call gives its own rows' results."""
    version = make_model().version
    graph, alone = _graph(version), make_alone(version)
    random = np.random.default_rng(0)
    for _ in range(2):
        for rows, steps in [
            (1, 1),
            (2, 3),
            (40, 2),
            (1, 1),
            (2, 3),
            (3, 60),
            *((n, 1) for n in range(1, 300)),
        ]:
            tokens = random.integers(0, 11, (steps, rows))
            buffers = graph.buffers(rows, steps, False)
            buffers.inputs[:] = tokens
            for state in buffers.states:
                state[:] = 0
            gc.collect(0)  # ONNX Runtime holds addresses only: what it reads and writes must still be there.
            graph.run(buffers)
            if rows < 4:
                for row in range(rows):
                    expected = alone.after(tuple(tokens[:, row].tolist()[:4]))
                    assert buffers.outputs[0][min(steps, 4) - 1, row].tobytes() == expected.output.tobytes()
    assert len(graph._buffers) <= BUFFERS_MAX


def test_a_call_of_the_same_size_binds_nothing_anew(make_model: Any) -> None:
    """Binding costs more than a small step."""
    graph = _graph(make_model().version)
    first = graph.buffers(3, 1, False)
    graph.buffers(4, 1, False)
    assert graph.buffers(3, 1, False) is first
    assert graph.buffers(3, 1, True) is not first


def test_a_state_may_have_its_batch_on_another_axis(
    make_graph_version: Any, make_engine: Any, feed_of: Any
) -> None:
    """silero-vad's state is [2, batch, 128]: the manifest says where the batch is, the engine goes by it."""
    engine = make_engine(make_graph_version(batch_axis=1))
    assert not engine.row_by_row
    slots = [engine.take_slot() for _ in range(3)]
    heard = []
    for slot in slots:
        feed, waiter = feed_of(
            slot, np.array([[1.0], [slot * 4.0]], np.float32), Answer(Want.LAST, 0, states=True)
        )
        engine.submit(feed)
        heard.append(waiter)
    engine.turn()
    for slot, waiter in zip(slots, heard, strict=True):
        assert waiter.only.states["last"].shape == (1, 1, 1)
        assert waiter.only.states["last"].item() == slot * 64.0


def test_the_head_reads_only_the_states_that_it_needs(make_model: Any, make_alone: Any) -> None:
    """The prediction before a feed, bit for bit what the step itself predicted."""
    version = make_model("lstm").version
    graph, alone = _graph(version), make_alone(version)
    texts = [(1, 2, 3), (4,), (5, 6)]
    steps = [alone.after(text) for text in texts]
    states = [np.stack([step.states[name] for step in steps]) for name in ("hidden", "cell")]
    assert graph.head(states).tobytes() == np.stack([step.output for step in steps]).tobytes()
