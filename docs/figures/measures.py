"""What the guide measures: plain arithmetic on arrays, without models or pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.floating]
Truths = NDArray[np.bool_]

SATURATED = 0.1
"""A gate below is left-saturated, above 1 minus this right-saturated (Karpathy, Johnson, Fei-Fei 2015)."""


def surprise_bits(log_probabilities: Numbers, tokens: NDArray[np.int64]) -> Numbers:
    """How surprising each token but the first was.

    Args:
        log_probabilities: Of the token behind each one read, natural logarithms, [time, vocabulary].
        tokens: What was read, [time].

    Returns:
        −log₂ p, [time − 1].
    """
    of_next = log_probabilities[np.arange(len(tokens) - 1), tokens[1:]]
    return np.asarray(-of_next / np.log(2))


def divergence_bits(true: Numbers, other: Numbers) -> Numbers:
    """Kullback–Leibler divergence: how many bits a reader loses who believes `other` where `true` holds.

    Args:
        true: Natural logarithms of probabilities, [..., vocabulary].
        other: The same shape.
    """
    return np.asarray((np.exp(true) * (true - other)).sum(-1) / np.log(2))


def half_life(forget_log_mean: Numbers) -> Numbers:
    """Steps after which half of what a cell held is left, if it forgets as it does on average.

    Args:
        forget_log_mean: Mean of ln f over time. A cell multiplies its content by f at every step, so ln f
            adds up, and its mean tells what becomes of the content.
    """
    return np.asarray(np.log(0.5) / np.minimum(forget_log_mean, -1e-9))


def carried(states: Numbers, steps: int) -> Numbers:
    """How much of what a cell holds is still there some steps later: Pearson's r of the cell with itself.

    Args:
        states: [time, units].
        steps: How many.

    Returns:
        [units]; 0 for one that never changes.
    """
    now, later = (part - part.mean(0) for part in (states[:-steps], states[steps:]))
    products, scale = (now * later).mean(0), now.std(0) * later.std(0)
    return np.asarray(np.divide(products, scale, out=np.zeros_like(products), where=scale > 0))


def correlations(features: Numbers, cells: Numbers) -> Numbers:
    """Pearson's r of every feature with every cell.

    Args:
        features: [features, time].
        cells: [time, cells].

    Returns:
        [features, cells]; 0 where one of both never changes.
    """
    spread_features, spread_cells = features.std(1), cells.std(0)
    centred = features - features.mean(1, keepdims=True)
    products = centred @ cells / cells.shape[0]
    scale = np.outer(spread_features, spread_cells)
    return np.asarray(np.divide(products, scale, out=np.zeros_like(products), where=scale > 0))


def ranks(cells: Numbers) -> Numbers:
    """The rank of each moment among all moments of its cell, from 0; equal values share their mean rank.

    Args:
        cells: [time, cells].
    """
    found = np.empty(cells.shape, np.float32)
    for cell, values in enumerate(cells.T):
        order = values.argsort()
        ordered = values[order]
        begins = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        ends = np.append(begins[1:], len(values))
        found[order, cell] = np.repeat((begins + ends - 1) / 2, ends - begins)
    return found


def areas(features: Truths, cell_ranks: Numbers) -> Numbers:
    """Area under the ROC curve: how often a cell is higher at a moment with the feature than at one without.

    Mann and Whitney's statistic, from ranks.

    Args:
        features: [features, time].
        cell_ranks: As `ranks` makes them, [time, cells].

    Returns:
        [features, cells], 0 to 1; 0.5 is chance, or a feature that is always or never there.
    """
    count = features.sum(1, keepdims=True).astype(np.float64)
    others = features.shape[1] - count
    above = features.astype(np.float32) @ cell_ranks - count * (count - 1) / 2
    pairs = count * others
    return np.asarray(np.divide(above, pairs, out=np.full(above.shape, 0.5), where=pairs > 0))


def by_character(tokens: NDArray[np.int64], feature: Numbers, others: NDArray[np.int64]) -> Numbers:
    """The best guess of a feature from the last character alone: its mean over moments with that character.

    Args:
        tokens: Where the means are taken, [time].
        feature: The feature there, [time].
        others: Where the guess is made, [any time].
    """
    count = np.bincount(tokens, minlength=256)
    total = np.bincount(tokens, weights=feature, minlength=256)
    means = np.divide(total, count, out=np.full(256, feature.mean()), where=count > 0)
    return np.asarray(means[others])
