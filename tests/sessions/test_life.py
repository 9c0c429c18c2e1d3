"""The table of a session's life: what can happen to it, and what cannot."""

from __future__ import annotations

import itertools

import pytest

from cellstream.metrics import SESSION_END_CAUSES
from cellstream.sessions import Cause, life
from cellstream.sessions.life import Event, State
from cellstream.v1 import prediction_pb2 as pb

# Written out again and not read off the table: a session is held, kept or gone for good.
LIVES = {
    "opened, then closed": ([Event.CLOSE], State.ENDED),
    "opened, then its stream ends": ([Event.STREAM_END], State.ENDED),
    "let go of, and attached to again": ([Event.LET_GO, Event.ATTACH], State.HELD),
    "taken over, twice": ([Event.TAKE_OVER, Event.TAKE_OVER], State.HELD),
    "let go of, then expired": ([Event.LET_GO, Event.EXPIRE], State.ENDED),
    "let go of, then closed from outside": ([Event.LET_GO, Event.CLOSE], State.ENDED),
    "held, then expired": ([Event.EXPIRE], State.ENDED),
    "held while the server goes away": ([Event.DRAIN], State.ENDED),
    "kept while the server goes away": ([Event.LET_GO, Event.DRAIN], State.ENDED),
}


@pytest.mark.parametrize("name", LIVES)
def test_a_life_leads_where_it_should(name: str) -> None:
    """Each legal story, from its opening on."""
    events, end = LIVES[name]
    state = State.HELD
    for event in events:
        state = life.after(state, event)
    assert state is end


def test_every_other_pair_is_a_mistake_of_ours() -> None:
    """Each state with each event: what the stories above do not contain must not pass in silence."""
    legal = set()
    for events, _ in LIVES.values():
        state = State.HELD
        for event in events:
            legal.add((state, event))
            state = life.after(state, event)
    for pair in itertools.product(State, Event):
        if pair not in legal:
            with pytest.raises(AssertionError, match="cannot happen"):
                life.after(*pair)


def test_an_ended_session_never_comes_back() -> None:
    """No event leads out of ENDED, so a lost state is never mistaken for a live one."""
    assert not [pair for pair in life.TRANSITIONS if pair[0] is State.ENDED]


def test_every_end_has_its_label() -> None:
    """The dashboard shows ends by cause; an end without a label would be silent."""
    ending = {event for (_, event), state in life.TRANSITIONS.items() if state is State.ENDED}
    assert set(life.ENDED_BY) == ending
    assert set(life.ENDED_BY.values()) == set(SESSION_END_CAUSES)


def test_causes_have_the_numbers_of_the_wire() -> None:
    """They are sent as they are."""
    assert {f"CAUSE_{cause.name}": cause.value for cause in Cause} == {
        name: number for name, number in pb.Cause.items() if number
    }
