"""The guide's arithmetic, against calculations of another kind: loops, definitions, numbers known by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest
from docs.figures import features
from docs.figures.cells import GATES, Play, find
from docs.figures.measures import (
    areas,
    by_character,
    carried,
    correlations,
    divergence_bits,
    half_life,
    ranks,
    surprise_bits,
)


def test_surprise_is_the_bits_of_what_came() -> None:
    """Probabilities 1/2 and 1/8 are one bit and three."""
    p = np.log(np.array([[0.5, 0.5, 0.0001], [0.125, 0.5, 0.375], [1 / 3] * 3]))
    np.testing.assert_allclose(surprise_bits(p, np.array([2, 1, 0])), [1, 3])


def test_divergence_is_what_believing_the_wrong_one_costs() -> None:
    """A certain thing held for one in four costs two bits; the right belief costs none."""
    true, other = np.log([0.999999999, 1e-9]), np.log([0.25, 0.75])
    assert divergence_bits(true, other) == pytest.approx(2, abs=1e-6)
    assert divergence_bits(other, other) == 0


def test_half_life_is_where_the_product_of_forget_gates_passes_a_half() -> None:
    """Multiplied out step by step, for gates that change from step to step."""
    gates = np.tile([0.95, 0.99, 0.97], 100)
    left = np.cumprod(gates)
    passed = int((left > 0.5).sum()) + 1
    assert half_life(np.log(gates).mean()) == pytest.approx(passed, abs=1)


def test_what_is_carried_is_the_share_that_a_cell_keeps() -> None:
    """A cell that keeps 0.8 of itself at each step and is written noise holds 0.8³ of it three steps later.

    One far from zero that moves little forgets no less: where a cell stands is not what it remembers.
    """
    noise, cells = np.random.default_rng(0).normal(size=(20_000, 3)), np.zeros((20_000, 3))
    for step in range(1, len(cells)):
        cells[step] = np.array([0.8, 0.0, 0.0]) * cells[step - 1] + noise[step]
    cells[:, 1] += 100
    cells[:, 2] = 7
    np.testing.assert_allclose(carried(cells, 3), [0.8**3, 0, 0], atol=0.03)


def test_correlations_are_those_of_numpy_and_nothing_for_what_never_changes() -> None:
    """Every pair against `numpy.corrcoef`."""
    rng = np.random.default_rng(0)
    given, cells = rng.normal(size=(3, 50)), rng.normal(size=(50, 4))
    given[2] = 7
    found = correlations(given, cells)
    for feature in range(2):
        for cell in range(4):
            assert found[feature, cell] == pytest.approx(np.corrcoef(given[feature], cells[:, cell])[0, 1])
    assert not found[2].any()


def test_areas_count_pairs_and_halve_ties() -> None:
    """Against its definition, a loop over all pairs; whole numbers, so that there are many ties."""
    rng = np.random.default_rng(0)
    cells, facts = rng.integers(0, 5, size=(40, 3)).astype(np.float64), rng.random((2, 40)) < 0.3
    found = areas(facts, ranks(cells))
    for fact in range(2):
        for cell in range(3):
            values = cells[:, cell]
            pairs = [(with_it > without) + (with_it == without) / 2
                     for with_it in values[facts[fact]] for without in values[~facts[fact]]]  # fmt: skip
            assert found[fact, cell] == pytest.approx(np.mean(pairs))


def test_a_guess_by_character_is_the_mean_where_that_character_stood() -> None:
    """And the mean of all for a character that was never seen."""
    guess = by_character(np.array([1, 1, 2]), np.array([0.0, 1.0, 4.0]), np.array([2, 1, 9]))
    np.testing.assert_allclose(guess, [4, 0.5, 5 / 3])


TEXT = "BRUTUS.\nGo! [Exit.]\nWho is it?\nI am\n"


def test_counts_are_counted_from_the_marks() -> None:
    """Against loops over the text."""
    line, word, left = [], [], []
    in_line = in_word = 0
    for place, character in enumerate(TEXT):
        in_line = 0 if character == "\n" else in_line + 1
        in_word = in_word + 1 if character.isalpha() else 0
        line.append(in_line)
        word.append(in_word)
        left.append(TEXT.index("\n", place) - place)
    np.testing.assert_array_equal(features.line_length(TEXT), line)
    np.testing.assert_array_equal(features.word_length(TEXT), word)
    np.testing.assert_array_equal(features.left_in_line(TEXT), left)


@pytest.mark.parametrize(
    ("fact", "expected"),
    [
        (features.in_name, "BRUTUS"),
        (features.in_direction, "[Exit."),
        (features.in_first_word, "BRUTUSGoWhoI"),
        (features.in_question, "Who is it"),
        (features.in_word, "RUTUSoxithostm"),
    ],
)
def test_facts_hold_where_a_reader_would_say_so(fact: features.Callable, expected: str) -> None:
    """What is left of the text where the fact holds."""
    assert "".join(np.array(list(TEXT))[fact(TEXT)]) == expected


def test_a_speech_is_counted_from_the_end_of_its_name() -> None:
    """0 at the full stop behind the name."""
    counted = features.speech_length(TEXT)
    assert counted[TEXT.index(".")] == 0
    assert counted[TEXT.index("Go")] == 2


def test_the_search_finds_the_cell_that_was_planted_and_says_that_noise_is_noise() -> None:
    """One cell in noise follows a count downwards, one follows a fact; nothing follows the rest.

    The tokens tell nothing, so that the last character alone is near chance.
    """
    names = (*features.COUNTS, *features.FACTS)
    line, name = "characters in the line so far", "inside a speaker's NAME"

    def play(seed: int) -> Play:
        rng = np.random.default_rng(seed)
        time = 6000
        true = {one: (np.arange(time) % 37).astype(np.float32) for one in names}
        for one in names[5:]:
            true[one] = (rng.random(time) < 0.2).astype(np.float32)
        for one in set(names[:5]) - {line}:
            true[one] = rng.normal(size=time).astype(np.float32)
        cells = rng.normal(size=(time, 12)).astype(np.float32)
        cells[:, 4] -= true[line]
        cells[:, 9] += 5 * true[name]
        nothing = {gate: np.zeros((2, 6)) for gate in GATES}
        return Play(rng.integers(60, 70, time), cells, true, nothing, nothing, np.ones((2, 6)))

    found = {one.feature: one for one in find(play(1), play(2))}
    assert (found[line].layer, found[line].unit, found[line].sign) == (1, 4, -1)
    assert (found[name].layer, found[name].unit, found[name].sign) == (2, 3, 1)
    assert found[line].means_something
    assert found[name].means_something
    assert found[line].confirmed == pytest.approx(10.7 / np.hypot(10.7, 1), abs=0.01)  # spread of 0..36: 10.7
    others = [one for feature, one in found.items() if feature not in (line, name)]
    assert not any(one.confirmed > one.chance for one in others)


def test_names_of_the_folio_are_names() -> None:
    """Of several words, with an apostrophe; not a shout inside a line."""
    assert re.findall(features.NAME, "FIRST CITIZEN.\nO ROME.\nGo.\n") == ["FIRST CITIZEN.", "O ROME."]
