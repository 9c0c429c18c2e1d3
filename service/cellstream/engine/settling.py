"""From the results of a call to what each feed is told: arrays in, one `Progress` a feed out.

Vectorised over the batch, and turned into Python's numbers once a batch, because whatever runs for each row
is what a step costs beside ONNX Runtime. Reads the call's buffers, copies what it keeps, changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellstream.engine import sampling
from cellstream.engine.batch import Feed, Progress, Want
from cellstream.engine.graph import Buffers
from cellstream.repository.manifest import Manifest

# Names of the module: an enum's member costs 30 ns to look up, and these are compared for every row.
_EVERY_STEP, _LAST = Want.EVERY_STEP, Want.LAST


@dataclass(frozen=True, slots=True)
class Settled:
    """What a call did for its feeds, before anything is committed.

    Attributes:
        told: Each feed that answers, ends or made a token, with its progress; the others hear nothing.
        ended: Those of them for which it is the last.
        continued: Rows whose next call needs the prediction after this one: they go on to score or to sample.
    """

    told: list[tuple[Feed, Progress]]
    ended: list[Feed]
    continued: list[int]


def settle(
    manifest: Manifest,
    feeds: Sequence[Feed],
    results: Buffers,
    positions: Sequence[int],
    before: Mapping[int, NDArray[np.float32]],
) -> Settled:
    """Makes what each feed is told of a call whose every row is finite.

    Args:
        manifest: Names of outputs, states and gates.
        feeds: The call's rows; `applied` as before the call.
        results: What the call read and wrote.
        positions: Each session's position after the call.
        before: By slot, the log-probabilities before the call, for feeds that score.
    """
    steps = results.steps
    told: list[tuple[Feed, Progress]] = []
    # By (top_k, how many steps answer): rows, and the progress of each that waits for its most likely tokens.
    ranked: dict[tuple[int, int], tuple[list[int], list[Progress]]] = {}
    ids_later: list[int] = []
    values_later: list[float] = []
    detailed: dict[int, tuple[Feed, Progress]] = {}  # Rows with more to tell than those.
    ended: list[Feed] = []
    continued: list[int] = []
    for row, feed in enumerate(feeds):
        answer, sampled = feed.answer, feed.sampling
        want = answer.want
        ends = feed.applied + steps == len(feed.inputs)
        if sampled is not None:
            exhausted, ends = ends, ends and feed.made >= sampled.max_tokens
            if exhausted and not ends:
                continued.append(row)
        if want is _EVERY_STEP:
            count = steps
            if answer.score and not ends:
                continued.append(row)
        elif ends:
            count = 1 if want is _LAST else 0
        elif feed.made:
            count = 0
        else:
            continue
        if count and (top_k := answer.top_k):
            progress = Progress(positions[row], ends, count, ids_later, values_later)
            key = top_k, count
            if key not in ranked:
                ranked[key] = [], []
            rows, progresses = ranked[key]
            rows.append(row)
            progresses.append(progress)
        else:
            progress = Progress(positions[row], ends, count)
        if feed.made or answer.detailed:
            detailed[row] = feed, progress
        if ends:
            ended.append(feed)
        told.append((feed, progress))
    for (top_k, count), (rows, progresses) in ranked.items():
        predictions = results.outputs[0][steps - count :]
        if len(rows) < len(feeds):
            predictions = predictions[:, rows]
        # Each list belongs to one progress only.
        for progress, ids, values in zip(progresses, *_most_likely(predictions, top_k), strict=True):
            progress.top_ids, progress.top_log_probabilities = ids, values
    if detailed:
        _add_details(manifest, detailed, results, before)
    return Settled(told, ended, continued)


def _most_likely(
    log_probabilities: NDArray[np.float32], top_k: int
) -> tuple[list[list[int]], list[list[float]]]:
    """For each row of [steps, rows, vocabulary], ids and log-probabilities: steps × top_k, best first."""
    steps, rows, vocabulary = log_probabilities.shape
    ids, values = sampling.top(log_probabilities.reshape(steps * rows, vocabulary), top_k)
    if steps > 1:
        ids = ids.reshape(steps, rows, top_k).swapaxes(0, 1).reshape(rows, steps * top_k)
        values = values.reshape(steps, rows, top_k).swapaxes(0, 1).reshape(rows, steps * top_k)
    return ids.tolist(), values.tolist()


def _add_details(
    manifest: Manifest,
    told: Mapping[int, tuple[Feed, Progress]],
    results: Buffers,
    before: Mapping[int, NDArray[np.float32]],
) -> None:
    """Adds scores, whole outputs, states, gates and tokens made to the progress of those who have any.

    Args:
        manifest: Names of outputs, states and gates.
        told: By row, the feed and its progress.
        results: What the call read and wrote.
        before: By slot, the log-probabilities before the call, for feeds that score.
    """
    scoring = [row for row, (feed, progress) in told.items() if feed.answer.score and progress.steps]
    scores = _scores(told, scoring, results, before) if scoring else {}
    for row, (feed, progress) in told.items():
        answer, first = feed.answer, results.steps - progress.steps
        if feed.made:
            progress.made = list(feed.inputs[feed.applied : feed.applied + results.steps])
        if not progress.steps:
            continue
        if answer.score:
            progress.scores = scores[row][first:]
        if answer.log_probabilities:
            progress.outputs = {
                output.name: array[first:, row].copy()
                for output, array in zip(manifest.outputs, results.outputs, strict=True)
            }
        if answer.states:  # One step answers, the call's last.
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
    told: Mapping[int, tuple[Feed, Progress]],
    rows: Sequence[int],
    results: Buffers,
    before: Mapping[int, NDArray[np.float32]],
) -> dict[int, list[float]]:
    """By row, the log-probability of each token of the call, given all before it."""
    tokens = results.inputs[:, rows]  # [steps, rows]
    steps = np.arange(results.steps - 1)[:, np.newaxis]
    later = results.outputs[0][steps, rows, tokens[1:]].T.tolist()  # [rows][steps − 1]
    scores = {}
    for row, token, rest in zip(rows, tokens[0].tolist(), later, strict=True):
        feed, progress = told[row]
        # Nothing came before a session's very first token, even where it was drawn from the initial state;
        # and where only the last of several tokens is scored, nobody saw to the prediction before the first.
        known = progress.position > results.steps and feed.slot in before
        scores[row] = [before[feed.slot].item(token) if known else math.nan, *rest]
    return scores
