"""`make fuzz` in short: random conversations, without coverage and without atheris."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trials.fuzz.conversation import World, converse

CONVERSATIONS = 400


@pytest.mark.parametrize("seed", range(4))
def test_random_conversations_break_no_promise(seed: int) -> None:
    """Long programs of random operations; `converse` checks after each."""
    source = random.Random(seed)
    for _ in range(CONVERSATIONS // 4):
        converse(source.randbytes(source.randint(1, 2000)))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300))
def test_small_conversations_break_no_promise(data: bytes) -> None:
    """What Hypothesis finds it makes small, so that a failure can be read."""
    converse(data)


def test_conversations_get_beyond_the_preface() -> None:
    """A fuzzer that is refused at the door proves nothing: calls begin, and messages are answered."""
    source = random.Random(0)
    worlds = [converse(source.randbytes(1000)) for _ in range(50)]
    assert sum(bool(world.handlers) for world in worlds) > 20
    assert sum(world.ledger.server_sent[0] > 0 for world in worlds) > 10


@pytest.mark.parametrize(
    "said",
    [
        b"\x00\x40\x00\x00\x00\x00\x00\x00\x01" + bytes(16_384),
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x01\x00\x00\x00\x01",
        b"\x00\x00\x04\x08\x00",
    ],
    ids=["DATA beyond the windows", "a window from nowhere", "a piece of a frame"],
)
def test_a_broken_promise_is_noticed(said: bytes) -> None:
    """The ledger is no rubber stamp: it refuses what a server must not say."""
    ledger = World().ledger
    with pytest.raises(AssertionError):
        ledger.hear(said * 5)
