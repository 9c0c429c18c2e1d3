"""The rule for learning rates, and the sequences of the recall task."""

from __future__ import annotations

import numpy as np
from studies.learning_rates import next_rate
from studies.recall import ASK, REMEMBERED, SYMBOLS, draw


def test_rates_are_tried_until_the_best_lies_between_worse_ones() -> None:
    """A network that likes 2/1000 most and one that likes 16/1000 most get the same care."""
    for liked, expected in ((2e-3, {1e-3, 2e-3, 4e-3, 8e-3, 16e-3}), (16e-3, {8e-3, 16e-3, 32e-3})):
        tried: dict[float, float] = {}
        while (rate := next_rate(tried)) is not None:
            tried[rate] = abs(np.log(rate / liked))
        assert set(tried) == expected


def test_answers_stand_before_a_gap_of_noise_and_are_asked_for_behind_it() -> None:
    """Nothing in the gap is an answer, and the answers are every symbol about equally often."""
    sequences = draw(np.random.default_rng(1), gap=11, rows=4000)
    first, gap, asked = np.split(sequences.inputs, [REMEMBERED, REMEMBERED + 11])
    np.testing.assert_array_equal(first, sequences.answers)
    assert (gap.min(), gap.max()) == (SYMBOLS, 2 * SYMBOLS - 1)
    assert asked.shape == sequences.answers.shape
    assert set(asked.flatten()) == {ASK}
    assert np.bincount(first.flatten(), minlength=SYMBOLS).min() > 850  # of 1,000 expected
