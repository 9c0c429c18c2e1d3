"""Modified Kneser–Ney against a computation by hand."""

from __future__ import annotations

import numpy as np
import pytest
from studies.ngrams import Discounts, KneserNey, estimate_discounts


def test_a_bigram_by_hand() -> None:
    """The equations of Chen and Goodman for `aabab`, each number worked out on paper.

    Bigrams aa 1, ab 2, ba 1. Behind a: 3 counts, one single and one double. Behind b: 1 count, single.
    Different bytes stood before a (a, b): 2; before b (a): 1; together 3.
    """
    unigram, bigram = Discounts(0.5, 1.0, 1.5), Discounts(0.25, 0.5, 0.75)
    p = KneserNey(b"aabab", 2, [unigram, bigram]).probabilities(b"aaabbac", start=1)

    equal = 1 / 256
    rest = (0.5 + 1.0) / 3  # what singles leave: 1.0 of a's 2, 0.5 of b's 1
    a, b, c = (2 - 1.0) / 3 + rest * equal, (1 - 0.5) / 3 + rest * equal, rest * equal
    behind_a, behind_b = (0.25 + 0.5) / 3, 0.25 / 1
    expected = [
        (1 - 0.25) / 3 + behind_a * a,  # a behind a
        (1 - 0.25) / 3 + behind_a * a,
        (2 - 0.5) / 3 + behind_a * b,  # b behind a
        behind_b * b,  # b behind b: never counted
        (1 - 0.25) / 1 + behind_b * a,  # a behind b
        behind_a * c,  # c: never seen at all
    ]
    np.testing.assert_allclose(p, expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 3, 5, 8])
def test_what_can_follow_is_certain(order: int) -> None:
    """Behind any context, seen or not, the probabilities of all bytes come to one."""
    random = np.random.default_rng(1)
    text = random.integers(97, 103, size=3000).astype(np.uint8).tobytes()
    model = KneserNey(text, order)
    for context in (text[100:108], b"abcabcab", b"zzzzzzzz"):
        total = sum(model.probabilities(context + bytes([last]), start=8)[0] for last in range(256))
        assert total == pytest.approx(1, abs=1e-9)


def test_discounts_by_hand() -> None:
    """Ten grams counted once, four twice, two thrice, one four times: the paper's closed forms."""
    counts = np.array([1] * 10 + [2] * 4 + [3] * 2 + [4] + [9])
    y = 10 / 18
    assert estimate_discounts(counts) == pytest.approx((1 - 2 * y * 0.4, 2 - 3 * y * 0.5, 3 - 4 * y * 0.5))


def test_a_longer_memory_predicts_a_long_period() -> None:
    """A text of period 7 whose bytes repeat within it: only the longer contexts tell what follows."""
    text = b"aabaabb" * 300
    short, long = (-np.log2(KneserNey(text, order).probabilities(text, start=8)).mean() for order in (2, 6))
    assert long < 0.05 < 0.5 < short
