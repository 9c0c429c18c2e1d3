"""Why weights in 8 bits are stored as `export/quantizing.py` stores them: `python -m bench.products`.

One product by each accuracy level and size of block that ONNX Runtime's MatMulNBits has: whether a row's bits
depend on how many rows there are, and what one row costs. Prints, in half a minute, what the table in
docs/export.md says of another machine.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bench.report import processor
from bench.rows import SEED
from cellstream.export.forms import IR_VERSION, OPSET
from cellstream.export.quantizing import CONTRIBUTED

WIDTH, COLUMNS = 768, 1536
"""Of the weight: the upper layer's of an LSTM 2 × 384."""

LEVELS = (4, 1, 0)
BLOCKS = (16, 32, 64, 128, 256)

BATCHES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 511, 512)
"""Around the sizes at which matrix kernels change their path."""

TIMED_SECONDS = 0.5


def main() -> None:
    """Measures and prints."""
    print(f"{processor()}, ONNX Runtime {ort.__version__}, one thread; {WIDTH} × {COLUMNS}\n")
    print("| accuracy level | block | batches with other bits than 512 rows | µs, 1 row |\n|---|---|---|---|")
    for level in LEVELS:
        for block in BLOCKS:
            _print_row(str(level), str(block), _in_8_bits(level, block))
    _print_row("Gemm, float32", "", _in_float32())


def _print_row(level: str, block: str, session: Any) -> None:
    x = np.random.default_rng(SEED).uniform(-1, 1, (BATCHES[-1], WIDTH)).astype(np.float32)
    whole = session.run(None, {"x": x})[0]
    others = [
        rows for rows in BATCHES if session.run(None, {"x": x[:rows]})[0].tobytes() != whole[:rows].tobytes()
    ]
    print(f"| {level} | {block} | {others or 'none'} | {_microseconds(session, x[:1]):,.0f} |", flush=True)


def _microseconds(session: Any, x: NDArray[np.float32]) -> float:
    """The median call."""
    took, began = [], time.perf_counter()
    while time.perf_counter() - began < TIMED_SECONDS:
        before = time.perf_counter()
        session.run(None, {"x": x})
        took.append(time.perf_counter() - before)
    return 1e6 * statistics.median(took)


def _in_8_bits(level: int, block: int) -> Any:
    random = np.random.default_rng(SEED)
    blocks = WIDTH // block
    return _session(
        helper.make_node(
            "MatMulNBits",
            ["x", "bytes", "scales"],
            ["y"],
            domain=CONTRIBUTED,
            K=WIDTH,
            N=COLUMNS,
            bits=8,
            block_size=block,
            accuracy_level=level,
        ),
        bytes=random.integers(0, 256, (COLUMNS, blocks, block), np.uint8),
        scales=random.uniform(0, 0.001, (COLUMNS, blocks)).astype(np.float32),
    )


def _in_float32() -> Any:
    weight = np.random.default_rng(SEED).normal(0, 0.05, (WIDTH, COLUMNS)).astype(np.float32)
    return _session(helper.make_node("Gemm", ["x", "weight"], ["y"]), weight=weight)


def _session(node: Any, **stored: NDArray[Any]) -> Any:
    graph = helper.make_graph(
        [node],
        "product",
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", COLUMNS])],
        initializer=[numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIBUTED, 1)]
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
