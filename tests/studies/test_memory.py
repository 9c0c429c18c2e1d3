"""The loss curves of a reader whose memory is known."""

from __future__ import annotations

import numpy as np
import pytest
from studies.memory import CONTEXTS, context_curve, places, reset_curve
from studies.predictors import Bits, Tokens


class Forgetful:
    """Needs 20 tokens: it is surprised by 3 bits as long as it has read fewer, by 1 bit afterwards."""

    def surprises(self, tokens: Tokens) -> Bits:
        """Tell the surprises of such a reader."""
        read = np.arange(1, len(tokens))[:, None]
        return np.broadcast_to(np.where(read < 20, 3, 1), (len(tokens) - 1, tokens.shape[1])).astype(
            np.float32
        )


WORKS = [np.arange(1500), np.arange(4000)]
READER = Forgetful()
WHOLE = [READER.surprises(work[:, None])[:, 0] for work in WORKS]


def test_contexts_shorter_than_the_memory_cost_what_they_lack() -> None:
    """Two bits more with 1 to 16 tokens, none from 32 on, without spread."""
    curve = context_curve(READER, WORKS, WHOLE, places(WORKS, 50, seed=1))
    assert curve.distances == list(CONTEXTS)
    assert curve.bits == [2.0] * 5 + [0.0] * 5
    assert curve.band == [0.0] * 10


def test_a_reset_costs_until_the_memory_is_full_again() -> None:
    """All of the first 16 tokens, 3 of the next 16 (those with 17 to 19 read), none later."""
    curve = reset_curve(READER, WORKS, WHOLE, places(WORKS, 50, seed=1))
    assert curve.bits == [2.0] * 5 + [pytest.approx(2 * 3 / 16, abs=1e-4)] + [0.0] * 4


def test_places_are_different_and_have_room_on_both_sides() -> None:
    """As many as can be had are drawn, every one of them once, in either work."""
    free = (1500 - 1025) + (4000 - 1025)
    drawn = places(WORKS, free, seed=1)
    assert len(np.unique(drawn, axis=0)) == free
    for work, text in enumerate(WORKS):
        tokens = drawn[drawn[:, 0] == work, 1]
        assert (tokens.min(), tokens.max()) == (512, len(text) - 514)
