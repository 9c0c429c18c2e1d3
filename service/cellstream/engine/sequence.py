"""`sequence.onnx` in the engine: many steps of few rows in one call, each row as many as it has.

It serves in `fast` numerics only. Its results differ from the step graph's in the last bits, and rounding is
not the only difference: ONNX Runtime's LSTM and GRU clamp what they compute, so that NaN goes in and finite
numbers come out. No check of the results would see that. So what can make a step overflow is kept away from
it, and goes to the step graph, which shows it: see `is_sound`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellstream.engine.batch import Feed
from cellstream.engine.graph import BoundGraph, Buffers, Memory, lay_out
from cellstream.repository.manifest import LENGTHS, Manifest

VALUE_MAX = 2.0**64
"""Frames with a larger number go to the step graph. States are bounded, by ±1 in a cell's gates; only what
is fed can overflow a sum of products, and from here on that takes weights that sum up to 10¹⁹."""


class SequenceGraph(BoundGraph):
    """The sequence graph of one model version; it shows no gates.

    Args:
        manifest: What the step graph takes and gives; the sequence graph the same, without gates.
        file: Its path.
        intra_op_threads: ONNX Runtime's threads.

    Attributes:
        unsound: For each token, whether a step on it is not finite; found at load.
    """

    def __init__(self, manifest: Manifest, file: Path, *, intra_op_threads: int = 1) -> None:
        gateless = manifest.model_copy(update={"gates": (), "gates_switch": None})
        super().__init__(gateless, file, intra_op_threads)
        self.unsound = np.zeros(manifest.input.vocabulary_size or 0, dtype=bool)

    def is_sound(self, inputs: NDArray[Any]) -> bool:
        """Whether no step on these inputs can leave the finite numbers.

        Raises:
            IndexError: A token is none of the vocabulary.
        """
        if inputs.dtype == np.int64:
            return not self.unsound[inputs].any()
        return bool(np.abs(inputs).max() <= VALUE_MAX)

    def filled(self, feeds: Sequence[Feed], steps: int) -> Buffers | None:
        """The buffers of a call, with up to `steps` tokens of each feed; the states are still to be filled.

        Returns:
            None where the graph cannot be trusted with these tokens.

        Raises:
            IndexError: A token is none of the vocabulary.
        """
        buffers = self.buffers(len(feeds), steps, gates=False)
        buffers.inputs[:] = 0  # Beyond a row's length stands a token too, one that there is.
        for row, feed in enumerate(feeds):
            following = feed.inputs[feed.applied : feed.applied + steps]
            buffers.inputs[: len(following), row] = following
            buffers.lengths[row] = len(following)
        return buffers if self.is_sound(buffers.inputs) else None

    def apart(self, buffers: Buffers) -> Iterator[tuple[list[int], Buffers]]:
        """Cuts what a call read and wrote into rectangles, without what lies beyond a row's length.

        Yields:
            Rows of one length, and what a call of so many steps of these rows alone would have left.
        """
        lengths: list[int] = buffers.lengths.tolist()
        if min(lengths) == buffers.steps:
            yield list(range(buffers.rows)), buffers
            return
        for length in sorted(set(lengths)):
            rows = [row for row, steps in enumerate(lengths) if steps == length]
            part = lay_out(self._manifest, len(rows), length, False, Memory())
            part.inputs[:] = buffers.inputs[:length, rows]
            for ours, theirs in zip(part.outputs, buffers.outputs, strict=True):
                ours[:] = theirs[:length, rows]
            for ours, theirs in zip(
                part.states + part.states_next, buffers.states + buffers.states_next, strict=True
            ):
                ours[:] = theirs[rows]
            yield rows, part

    def _inputs_beside(self, buffers: Buffers, gates: bool) -> Iterator[tuple[str, NDArray[Any]]]:
        assert not gates, "the sequence graph shows none"
        yield LENGTHS, buffers.lengths
