"""The array of all states: whose row is whose, and that what goes in comes out."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from cellstream.engine.slab import Slab
from cellstream.errors import SettingsInvalid, TooManySessions
from cellstream.repository.manifest import State

STATES = (
    State(name="hidden", input="hidden", output="hidden_next", shape=(2, 3)),
    State(name="memory", input="memory", output="memory_next", shape=(4,), initial=-1.5),
)


def test_a_slot_starts_in_its_initial_state_at_position_0() -> None:
    """Also a slot that another session has used: no session sees another's state."""
    slab = Slab(STATES, 3)
    slot = slab.take()
    for array in slab.arrays:
        array[slot] = 7
    slab.positions[slot] = 5
    slab.give_back(slot)
    assert slab.take() == slot
    assert slab.positions[slot] == 0
    hidden, memory = slab.rows(np.array([slot]))
    assert np.array_equal(hidden, np.zeros((1, 2, 3)))
    assert np.array_equal(memory, np.full((1, 4), -1.5))


@given(calls=st.lists(st.one_of(st.none(), st.integers(0, 4)), max_size=60))
def test_the_lowest_free_slot_is_taken_first(calls: list[int | None]) -> None:
    """Against a plain set: memory in use stays dense, and a slot has one owner."""
    slab, free, owned = Slab(STATES, 5), set(range(5)), []
    for given_back in calls:
        if given_back is None:
            if not free:
                with pytest.raises(TooManySessions):
                    slab.take()
                continue
            slot = slab.take()
            assert slot == min(free)
            free.remove(slot)
            owned.append(slot)
        elif owned:
            slot = owned.pop(given_back % len(owned))
            slab.give_back(slot)
            free.add(slot)
        slab.check_integrity()
        assert slab.slots_taken == len(owned)
    assert [bool(taken) for taken in slab.taken] == [slot not in free for slot in range(5)]


def test_a_full_slab_says_how_many_it_holds() -> None:
    """Whoever is refused should learn the limit, not only that there is one."""
    slab = Slab(STATES, 2)
    slab.take(), slab.take()
    with pytest.raises(TooManySessions) as refused:
        slab.take()
    assert refused.value.values["sessions_max"] == "2"


def test_a_slot_is_given_back_once() -> None:
    """Given back twice, it would have two owners."""
    slab = Slab(STATES, 2)
    slot = slab.take()
    slab.give_back(slot)
    with pytest.raises(AssertionError, match="not taken"):
        slab.give_back(slot)
    with pytest.raises(AssertionError, match="not taken"):
        slab.reset(slot)


@given(data=st.data(), count=st.integers(1, 6))
def test_scatter_puts_back_what_gather_takes(data: st.DataObject, count: int) -> None:
    """They are inverses, bit for bit, in any order of slots, and touch no other row."""
    slab = Slab(STATES, 6)
    for _ in range(6):
        slab.take()
    chosen = np.array(data.draw(st.permutations(range(6)))[:count])
    rows = [
        data.draw(hnp.arrays(np.float32, (count, *state.shape), elements=st.floats(width=32)))
        for state in STATES
    ]
    before = [array.copy() for array in slab.arrays]
    slab.scatter(chosen, rows)
    gathered = [np.empty_like(array) for array in rows]
    slab.gather(chosen, gathered)
    assert [array.tobytes() for array in gathered] == [array.tobytes() for array in rows]
    assert [array.tobytes() for array in slab.rows(chosen)] == [array.tobytes() for array in rows]
    others = [slot for slot in range(6) if slot not in chosen]
    for array, old in zip(slab.arrays, before, strict=True):
        assert np.array_equal(array[others], old[others])


def test_gather_fills_rows_of_any_layout() -> None:
    """A graph may have the batch on another axis: its rows are then a strided view of its buffer."""
    slab = Slab(STATES[:1], 4)
    slots = np.array([slab.take(), slab.take()])
    slab.scatter(slots, [np.arange(12, dtype=np.float32).reshape(2, 2, 3)])
    buffer = np.zeros((2, 2, 3), np.float32)  # [layers, batch, units]
    slab.gather(slots, [np.moveaxis(buffer, 1, 0)])
    assert np.array_equal(buffer[:, 1], np.arange(6, 12).reshape(2, 3))


def test_integrity_notices_a_slot_that_is_free_and_taken() -> None:
    """The check that other tests lean on has to be able to fail."""
    slab = Slab(STATES, 3)
    slot = slab.take()
    slab.check_integrity()
    slab.taken[slot] = False
    with pytest.raises(AssertionError):
        slab.check_integrity()


@pytest.mark.parametrize("slots_max", [10**14, 10**19, 10**30])
def test_more_slots_than_memory_is_a_wrong_setting(slots_max: int) -> None:
    """A slip of the keyboard is no fault of the server's."""
    with pytest.raises(SettingsInvalid, match=f"slots_max is {slots_max}, and this machine has no room"):
        Slab(STATES, slots_max)
