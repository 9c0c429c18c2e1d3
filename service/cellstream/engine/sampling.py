"""Choosing tokens: the most likely ones, and random draws.

Works on whole batches, and yet no row's result depends on the other rows: every operation is elementwise or
runs along one row in order. A draw depends on its distribution, its seed and its position alone.

How a token is drawn from the log-probabilities ℓ (natural logarithm, float32), in float64:

    w_i = exp((ℓ_i − max ℓ) / temperature)          temperature 0: the most likely token, no draw
    top_k > 0:   keep the top_k largest ℓ_i, ties to the lowest id
    top_p < 1:   of those, keep the fewest, largest first, whose w sum up to top_p of their total
    u = a number in [0, 1) from (seed, position)
    the token is the first kept id, in the order of ids, where the running sum of w exceeds u × its total

u is the output number `position` (from 0) of SplitMix64 started at `seed`, its upper 53 bits as a fraction.
(Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA'14; constants of Vigna's
splitmix64.c.) A counter-based generator needs no state to be kept, moved or restored with a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellstream.engine.batch import Sampling

_ROUNDS_MAX = 12
"""Up to so many most likely tokens are found by repeated argmax, more by sorting; they cost the same at
about 14 (64 rows of 256: 3.3 µs a round, 52 µs for the sort)."""


def top(log_probabilities: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Finds the k most likely tokens of each row, best first, ties to the lowest id.

    Args:
        log_probabilities: [rows, vocabulary], finite, contiguous.
        k: 1 to vocabulary.

    Returns:
        Their ids and their log-probabilities, each [rows, k].
    """
    if k == 1:
        ids = log_probabilities.argmax(1)
        places = ids + np.arange(0, log_probabilities.size, log_probabilities.shape[1])
        return ids[:, np.newaxis], log_probabilities.ravel().take(places)[:, np.newaxis]
    if k > _ROUNDS_MAX:
        ranked = _ranking(log_probabilities)[:, :k]
        return ranked, np.take_along_axis(log_probabilities, ranked, axis=1)
    rows = np.arange(len(log_probabilities))
    left = log_probabilities.copy()
    ids = np.empty((len(rows), k), np.int64)
    values = np.empty((len(rows), k), np.float32)
    for place in range(k):
        best = left.argmax(axis=1)
        ids[:, place] = best
        values[:, place] = left[rows, best]
        left[rows, best] = -np.inf
    return ids, values


def draw(
    log_probabilities: NDArray[np.float32], samplings: Sequence[Sampling], positions: NDArray[np.int64]
) -> list[int]:
    """Draws one token for each row, as the module's docstring says.

    Args:
        log_probabilities: [rows, vocabulary].
        samplings: How each row draws.
        positions: How many tokens each row's session has absorbed, int64 [rows].

    Returns:
        One token for each row.
    """
    tokens = log_probabilities.argmax(axis=1)
    rows = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if rows:
        drawing = [samplings[row] for row in rows]
        log_probabilities = log_probabilities[rows]
        weights = _weights(log_probabilities, drawing)
        filtered = [row for row, sampling in enumerate(drawing) if sampling.top_k > 0 or sampling.top_p < 1]
        if filtered:
            weights[filtered] = _truncated(
                weights[filtered], log_probabilities[filtered], [drawing[row] for row in filtered]
            )
        sums = np.cumsum(weights, axis=1)
        seeds = np.array([sampling.seed & 0xFFFF_FFFF_FFFF_FFFF for sampling in drawing], np.uint64)
        totals = sums[:, -1]
        # Rounding must not lift a threshold to the total, which no sum exceeds.
        thresholds = np.minimum(uniforms(seeds, positions[rows]) * totals, np.nextafter(totals, 0))
        tokens[rows] = (sums > thresholds[:, np.newaxis]).argmax(axis=1)
    chosen: list[int] = tokens.tolist()
    return chosen


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """For each pair, output number `position` of SplitMix64 started at `seed`, as a fraction in [0, 1)."""
    z = seeds + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    fractions: NDArray[np.float64] = (z >> np.uint64(11)) * 2.0**-53
    return fractions


def _weights(log_probabilities: NDArray[np.float32], samplings: Sequence[Sampling]) -> NDArray[np.float64]:
    """Unnormalised probabilities at each row's temperature; the largest of a row is 1."""
    temperatures = np.array([sampling.temperature for sampling in samplings])
    exponents = log_probabilities.astype(np.float64)
    exponents -= exponents.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):  # A temperature near 0 leaves the most likely alone.
        exponents /= temperatures[:, np.newaxis]
    return np.exp(exponents)


def _truncated(
    weights: NDArray[np.float64], log_probabilities: NDArray[np.float32], samplings: Sequence[Sampling]
) -> NDArray[np.float64]:
    """The weights, with 0 for all that top_k and top_p leave out."""
    vocabulary = weights.shape[1]
    ranked = _ranking(log_probabilities)
    kept = np.array([sampling.top_k or vocabulary for sampling in samplings])[:, np.newaxis]
    shares = np.array([sampling.top_p for sampling in samplings])[:, np.newaxis]
    sums = np.take_along_axis(weights, ranked, axis=1)
    sums[np.arange(vocabulary) >= kept] = 0
    np.cumsum(sums, axis=1, out=sums)
    # The fewest that reach the share: all whose predecessors did not reach it yet.
    reached = np.zeros_like(sums, dtype=bool)
    reached[:, 1:] = sums[:, :-1] >= shares * sums[:, -1:]
    reached |= np.arange(vocabulary) >= kept
    result = weights.copy()
    np.put_along_axis(
        result, ranked, np.where(reached, 0, np.take_along_axis(weights, ranked, axis=1)), axis=1
    )
    return result


def _ranking(log_probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
    """All ids of each row, the most likely first, ties to the lowest id.

    Sorts 64-bit keys of (log-probability, reversed id): no two are equal, so that numpy's vectorised sort,
    which is not stable, gives the one right order, at a ninth of the cost of a stable argsort.
    """
    vocabulary = log_probabilities.shape[1]
    bits: NDArray[Any] = (log_probabilities + np.float32(0)).view(np.int32)  # + 0: −0.0 and 0.0 are a tie
    keys: NDArray[np.int64] = bits.astype(np.int64)
    keys ^= (keys >> 63) & 0x7FFF_FFFF  # Negative floats order backwards by their bits.
    keys <<= 32
    keys |= np.arange(vocabulary - 1, -1, -1)
    keys.sort(axis=1)
    ids: NDArray[np.int64] = vocabulary - 1 - (keys[:, ::-1] & 0xFFFF_FFFF)
    return ids
