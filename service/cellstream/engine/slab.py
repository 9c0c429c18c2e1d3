"""The states of all sessions: one array for each state tensor, a session is a row number (*slot*).

Knows shapes and initial values from the manifest, and which slots are free. Knows no session, and not what a
state means. `gather` and `scatter` are inverses.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellstream.errors import SettingsInvalid, TooManySessions
from cellstream.repository.manifest import State


class Slab:
    """Room for `slots_max` sessions, reserved once.

    The lowest free slot is always taken first, so that the memory in use stays dense: pages of slots that
    were never taken are never touched, and the operating system never backs them.

    Args:
        states: What a session carries.
        slots_max: How many sessions fit.

    Attributes:
        arrays: For each state, [slots_max, *shape].
        positions: How many tokens each slot's session has absorbed, int64 [slots_max].
        taken: For each slot, whether a session owns it.
        slots_taken: How many slots are taken.

    Raises:
        SettingsInvalid: There is no memory for so many.
    """

    def __init__(self, states: Sequence[State], slots_max: int) -> None:
        self.slots_max = slots_max
        self.slots_taken = 0
        try:
            self.arrays: list[NDArray[Any]] = [
                np.empty((slots_max, *state.shape), np.dtype(state.dtype)) for state in states
            ]
            self.positions = np.zeros(slots_max, np.int64)
            self.taken = bytearray(slots_max)
        except (MemoryError, OverflowError, ValueError) as error:  # numpy's for what no array can have
            raise SettingsInvalid(
                f"slots_max is {slots_max}, and this machine has no room for the states of so many "
                f"sessions: {error}. Choose a smaller one.",
                setting="slots_max",
            ) from error
        self._initial = [state.initial for state in states]
        self._given_back: list[int] = []  # A heap; every one of them lies below `_fresh`.
        self._fresh = 0  # Slots from here on were never taken.

    def __repr__(self) -> str:
        return f"<Slab: {self.slots_taken} of {self.slots_max} slots taken>"

    def take(self) -> int:
        """Takes the lowest free slot, in its initial state at position 0.

        Raises:
            TooManySessions: No slot is free.
        """
        if self._given_back:
            slot = heapq.heappop(self._given_back)
        elif self._fresh < self.slots_max:
            slot = self._fresh
            self._fresh += 1
        else:
            raise TooManySessions(
                f"all {self.slots_max} sessions of this model are in use; try again later",
                sessions_max=self.slots_max,
            )
        self.taken[slot] = True
        self.slots_taken += 1
        self.reset(slot)
        return slot

    def give_back(self, slot: int) -> None:
        """Frees a slot that was taken."""
        assert self.taken[slot], f"slot {slot} is not taken"
        self.taken[slot] = False
        self.slots_taken -= 1
        heapq.heappush(self._given_back, slot)

    def reset(self, slot: int) -> None:
        """Puts a taken slot back to its initial state, position 0."""
        assert self.taken[slot], f"slot {slot} is not taken"
        for array, initial in zip(self.arrays, self._initial, strict=True):
            array[slot] = initial
        self.positions[slot] = 0

    def gather(self, slots: NDArray[np.int64], into: Sequence[NDArray[Any]]) -> None:
        """Copies the states of `slots` into arrays of [rows, *shape], one for each state."""
        for array, rows in zip(self.arrays, into, strict=True):
            # With mode "raise" numpy would copy into a buffer of its own first.
            array.take(slots, 0, rows, "clip")

    def rows(self, slots: NDArray[np.int64]) -> list[NDArray[Any]]:
        """The states of `slots`, copied: for each state [rows, *shape]."""
        return [array[slots] for array in self.arrays]

    def scatter(self, slots: NDArray[np.int64], rows: Sequence[NDArray[Any]]) -> None:
        """Puts arrays of [rows, *shape], one for each state, back where `gather` took them."""
        for array, values in zip(self.arrays, rows, strict=True):
            array[slots] = values

    def check_integrity(self) -> None:
        """Asserts that free and taken slots are all slots, and that none is both."""
        free = self._given_back
        assert len(set(free)) == len(free), "a slot was given back twice"
        assert all(slot < self._fresh and not self.taken[slot] for slot in free), "a taken slot is free"
        assert sum(self.taken) == self.slots_taken, "the count of taken slots is wrong"
        assert len(free) + self.slots_taken == self._fresh, "a slot is neither free nor taken"
        assert not any(self.taken[self._fresh :]), "a slot was taken out of order"
