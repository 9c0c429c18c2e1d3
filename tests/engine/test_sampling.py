"""Choosing tokens: against plain loops, exact distributions, and itself in other company."""

from __future__ import annotations

import math
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from cellstream.engine import Sampling
from cellstream.engine.sampling import draw, top, uniforms

LOGITS = st.floats(-30, 0, width=32)
ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(23)), elements=LOGITS)
# Few different values: many ties.
TIED = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.just(23)),
    elements=st.sampled_from([-0.0, 0.0, -1.0, -2.5, -30.0]),
)
SAMPLINGS = st.builds(
    Sampling,
    max_tokens=st.just(1),
    temperature=st.sampled_from([0.0, 1e-30, 0.3, 1.0, 4.0]),
    top_k=st.integers(0, 23),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1.0)),
    seed=st.integers(0, 2**64 - 1),
)


def _sampling_of(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0) -> Sampling:
    return Sampling(1, temperature, top_k, top_p, seed)


def splitmix64(seed: int, count: int) -> list[int]:
    """Vigna's splitmix64.c, line by line."""
    mask, outputs = 2**64 - 1, []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        outputs.append(z ^ (z >> 31))
    return outputs


def kept_by_loop(row: np.ndarray, sampling: Sampling) -> dict[int, float]:
    """The weights of the tokens that may be drawn, by id: the module's rule in plain Python."""
    largest = float(row.max())
    order = sorted(range(len(row)), key=lambda token: (-float(row[token]), token))
    order = order[: sampling.top_k or len(row)]
    weights = {token: math.exp((float(row[token]) - largest) / sampling.temperature) for token in order}
    total, reached, kept = sum(weights.values()), 0.0, {}
    for token in order:
        kept[token] = weights[token]
        reached += weights[token]
        if sampling.top_p < 1 and reached >= sampling.top_p * total:
            break
    return dict(sorted(kept.items()))


@pytest.mark.parametrize("rows", [ROWS, TIED], ids=["any", "tied"])
def test_top_tokens_are_those_of_a_stable_sort(rows: st.SearchStrategy[np.ndarray]) -> None:
    """Best first, and ties go to the lowest id, for few (found by argmax) and for many (found by sorting)."""

    @given(log_probabilities=rows, k=st.integers(1, 23))
    def check(log_probabilities: np.ndarray, k: int) -> None:
        ids, values = top(log_probabilities, k)
        expected = np.argsort(-log_probabilities, axis=1, kind="stable")[:, :k]
        assert ids.tolist() == expected.tolist()
        assert np.array_equal(values, np.take_along_axis(log_probabilities, expected, axis=1))

    check()


def test_random_numbers_are_those_of_splitmix64() -> None:
    """Against the reference's code, and its known outputs for 1234567: anyone can repeat a draw."""
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for seed in (0, 1, 1234567, 2**63, 2**64 - 1):
        found = uniforms(np.full(50, seed, np.uint64), np.arange(50))
        assert found.tolist() == [(output >> 11) / 2**53 for output in splitmix64(seed, 50)]


def test_temperature_0_takes_the_most_likely_whatever_the_seed() -> None:
    """Ties to the lowest id: greedy decoding has one result."""
    row = np.array([[-3.0, -1.0, -1.0, -2.0]], np.float32)
    for seed in range(20):
        assert draw(row, [_sampling_of(temperature=0, seed=seed)], np.array([seed])) == [1]


@given(log_probabilities=ROWS, data=st.data())
def test_a_draw_is_that_of_a_plain_loop(log_probabilities: np.ndarray, data: st.DataObject) -> None:
    """The vectorised draw against the rule in plain Python, for every kind of setting side by side."""
    count = len(log_probabilities)
    samplings = data.draw(st.lists(SAMPLINGS, min_size=count, max_size=count))
    positions = np.array(data.draw(st.lists(st.integers(0, 10**12), min_size=count, max_size=count)))
    tokens = draw(log_probabilities, samplings, positions)
    for row, sampling, position, token in zip(log_probabilities, samplings, positions, tokens, strict=True):
        if sampling.temperature == 0:
            assert token == int(row.argmax())
            continue
        kept = kept_by_loop(row, sampling)
        sums = np.cumsum(list(kept.values()))
        uniform = uniforms(np.array([sampling.seed], np.uint64), np.array([position]))[0]
        # Sums in another order differ in their last bits: the draw lies within the token's own interval.
        place = list(kept).index(token)
        low = 0.0 if place == 0 else sums[place - 1]
        assert low - 1e-9 <= uniform * sums[-1] <= sums[place] + 1e-9


@given(log_probabilities=ROWS, data=st.data())
def test_a_draw_does_not_depend_on_the_batch(log_probabilities: np.ndarray, data: st.DataObject) -> None:
    """Nor on a row's place in it: the same session draws the same, whoever shares its batch."""
    count = len(log_probabilities)
    samplings = data.draw(st.lists(SAMPLINGS, min_size=count, max_size=count))
    positions = np.arange(count) * 1000
    together = draw(log_probabilities, samplings, positions)
    order = data.draw(st.permutations(range(count)))
    shuffled = draw(log_probabilities[order], [samplings[row] for row in order], positions[order])
    assert [together[row] for row in order] == shuffled
    for row in range(count):
        alone = draw(log_probabilities[row : row + 1], [samplings[row]], positions[row : row + 1])
        assert alone == [together[row]]


@pytest.mark.parametrize(
    "sampling",
    [
        _sampling_of(),
        _sampling_of(temperature=0.5),
        _sampling_of(temperature=2.0, top_k=3),
        _sampling_of(top_p=0.7),
        _sampling_of(temperature=1.5, top_k=4, top_p=0.8),
    ],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_they_are_likely(sampling: Sampling) -> None:
    """20,000 draws against the exact distribution, by the chi-square test; fixed seed, fixed result."""
    probabilities = np.array([0.3, 0.02, 0.25, 0.13, 0.2, 0.1])
    count = 20_000
    row = np.log(probabilities).astype(np.float32)
    tokens = draw(np.tile(row, (count, 1)), [sampling] * count, np.arange(count))
    kept = kept_by_loop(row, sampling)
    observed = np.bincount(tokens, minlength=len(probabilities))
    assert not any(observed[token] for token in range(len(probabilities)) if token not in kept)
    expected = {token: count * weight / sum(kept.values()) for token, weight in kept.items()}
    chi_square = sum((observed[token] - mean) ** 2 / mean for token, mean in expected.items())
    assert chi_square < 20.5  # 0.1 % of draws exceed it at 5 degrees of freedom, fewer at less


def test_draws_of_neighbouring_positions_and_seeds_are_unrelated() -> None:
    """Sessions are often seeded 0, 1, 2, …, and positions always count up."""
    seeds, positions = np.meshgrid(np.arange(200, dtype=np.uint64), np.arange(200))
    numbers = uniforms(seeds.ravel(), positions.ravel()).reshape(200, 200)
    assert len(np.unique(numbers)) == numbers.size
    along = [abs(np.corrcoef(a, b)[0, 1]) for grid in (numbers, numbers.T) for a, b in pairwise(grid)]
    assert np.mean(along) < 0.08  # 0.056 is expected of 200 independent pairs
    assert abs(numbers.mean() - 0.5) < 0.005


def test_the_smallest_share_keeps_the_most_likely() -> None:
    """top_p near 0 is greedy, and never leaves nothing to draw from."""
    row = np.log(np.array([[0.2, 0.5, 0.3]], np.float32))
    assert {draw(row, [_sampling_of(top_p=1e-9, seed=seed)], np.array([0]))[0] for seed in range(50)} == {1}
