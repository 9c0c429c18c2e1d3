"""From the results of a call to what each feed is told: arrays in, one `Progress` a feed out.

Vectorised over the batch, and turned into Python's numbers once a batch, because whatever runs for each row
is what a step costs beside ONNX Runtime. Reads the call's buffers, copies what it keeps, changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cellstream.engine import sampling
from cellstream.engine.batch import Feed, Progress, Want
from cellstream.engine.graph import Buffers
from cellstream.repository.manifest import Manifest

# Names of the module: an enum's member costs 30 ns to look up, and these are compared for every row.
_EVERY_STEP, _LAST = Want.EVERY_STEP, Want.LAST


def settle(
    manifest: Manifest,
    feeds: Sequence[Feed],
    results: Buffers,
    positions: Sequence[int],
    before: Mapping[int, NDArray[np.float32]],
) -> list[Progress | None]:
    """Makes what each feed is told of a call whose every row is finite.

    Args:
        manifest: Names of outputs, states and gates.
        feeds: The call's rows; `applied` as before the call.
        results: What the call read and wrote.
        positions: Each session's position after the call.
        before: By slot, the log-probabilities before the call, for feeds that score.

    Returns:
        For each feed its progress; None where there is nothing to tell: no answer, no end, no token made.
    """
    steps = results.steps
    answering: list[int] = []  # How many steps of each row answer.
    ending: list[bool] = []
    alike: dict[tuple[int, int], list[int]] = {}  # Rows by (top_k, how many steps answer).
    special: list[int] = []  # Rows with more to tell than the most likely tokens.
    for row, feed in enumerate(feeds):
        answer, sampled = feed.answer, feed.sampling
        ends = feed.applied + steps == len(feed.inputs) and (
            sampled is None or feed.made >= sampled.max_tokens
        )
        ending.append(ends)
        count = steps if answer.want is _EVERY_STEP else 1 if ends and answer.want is _LAST else 0
        answering.append(count)
        if count:
            if answer.top_k:
                if (key := (answer.top_k, count)) in alike:
                    alike[key].append(row)
                else:
                    alike[key] = [row]
            if answer.score or answer.log_probabilities or answer.states or answer.gates:
                special.append(row)

    if len(alike) == 1 and len(next(iter(alike.values()))) == len(feeds):
        ((top_k, count),) = alike
        ids, values = _most_likely(results.outputs[0], top_k, count)
    else:
        ids = [[] for _ in feeds]
        values = [[] for _ in feeds]
        for (top_k, count), rows in alike.items():
            found = _most_likely(results.outputs[0][:, rows], top_k, count)
            for row, row_ids, row_values in zip(rows, *found, strict=True):
                ids[row], values[row] = row_ids, row_values

    told = [
        Progress(position, ends, count, row_ids, row_values, made=[]) if count or ends else None
        for position, ends, count, row_ids, row_values in zip(
            positions, ending, answering, ids, values, strict=True
        )
    ]
    if special:
        _add_details(manifest, feeds, special, results, told, before)
    for row, feed in enumerate(feeds):
        if feed.made and (made := _made(feed, steps)):
            told[row] = progress = told[row] or Progress(positions[row], False)
            progress.made = made
    return told


def _most_likely(
    log_probabilities: NDArray[np.float32], top_k: int, count: int
) -> tuple[list[list[int]], list[list[float]]]:
    """For each row, the ids and log-probabilities of its last `count` steps, count × top_k, best first."""
    steps, rows, vocabulary = log_probabilities.shape
    ids, values = sampling.top(log_probabilities[steps - count :].reshape(count * rows, vocabulary), top_k)
    if count > 1:
        ids = ids.reshape(count, rows, top_k).swapaxes(0, 1).reshape(rows, count * top_k)
        values = values.reshape(count, rows, top_k).swapaxes(0, 1).reshape(rows, count * top_k)
    return ids.tolist(), values.tolist()


def _add_details(
    manifest: Manifest,
    feeds: Sequence[Feed],
    rows: Sequence[int],
    results: Buffers,
    told: Sequence[Progress | None],
    before: Mapping[int, NDArray[np.float32]],
) -> None:
    """Adds scores, whole outputs, states and gates to the progress of those `rows` that ask for them."""
    scores = _scores(feeds, [row for row in rows if feeds[row].answer.score], results, before)
    for row in rows:
        answer, progress = feeds[row].answer, told[row]
        assert progress is not None  # It answers.
        first = results.steps - progress.steps
        if answer.score:
            progress.scores = scores[row][first:]
        if answer.log_probabilities:
            progress.outputs = {
                output.name: array[first:, row].copy()
                for output, array in zip(manifest.outputs, results.outputs, strict=True)
            }
        if answer.states:  # One step answers: the call's last.
            progress.states = {
                state.name: array[row : row + 1].copy()
                for state, array in zip(manifest.states, results.states_next, strict=True)
            }
        if answer.gates:
            progress.gates = {
                gate.name: array[first:, row].copy()
                for gate, array in zip(manifest.gates, results.gates, strict=True)
            }


def _scores(
    feeds: Sequence[Feed],
    rows: Sequence[int],
    results: Buffers,
    before: Mapping[int, NDArray[np.float32]],
) -> dict[int, list[float]]:
    """By row, the log-probability of each token of the call, given all before it."""
    if not rows:
        return {}
    tokens = results.inputs[:, rows]  # [steps, rows]
    steps = np.arange(results.steps - 1)[:, np.newaxis]
    later = results.outputs[0][steps, rows, tokens[1:]].T.tolist()  # Row after row, all steps but the first.
    scores = {}
    for row, first, rest in zip(rows, tokens[0].tolist(), later, strict=True):
        prediction = before.get(feeds[row].slot)
        scores[row] = [float("nan") if prediction is None else prediction.item(first), *rest]
    return scores


def _made(feed: Feed, steps: int) -> list[int]:
    """Those tokens of the feed that it made itself and that this call absorbed."""
    after = feed.applied + steps
    first = max(feed.applied, len(feed.inputs) - feed.made)
    return [int(token) for token in feed.inputs[first:after]]
