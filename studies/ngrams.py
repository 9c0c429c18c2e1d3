"""Interpolated, modified Kneser–Ney n-grams over bytes, in numpy.

Chen and Goodman, "An empirical study of smoothing techniques for language modeling", Computer Speech &
Language 13 (1999), section 3.3 and appendix. The kept packages of the Python Package Index read such models
and do not make them (kenlm), so here are the equations:

    p(w | h) = max(c(hw) − D(c(hw)), 0) / c(h•) + γ(h) · p(w | h′)
    γ(h)     = (D₁·N₁(h•) + D₂·N₂(h•) + D₃·N₃₊(h•)) / c(h•)

h′ is h without its first byte; c counts in the longest order, and in the lower ones how many different bytes
stood before; N₁, N₂, N₃₊ are how many bytes followed h once, twice, oftener. Below one byte all 256 are
equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ORDER_MAX = 8
"""A gram is one uint64, a byte of text each byte, the newest lowest."""

DISCOUNTS_FALLBACK = (0.5, 1.0, 1.5)
"""Where counts of 1 to 4 do not all occur, as for single bytes; those of KenLM's `--discount_fallback`."""

Codes = NDArray[np.uint64]


class Discounts(NamedTuple):
    """What is taken from a count of one, of two, of three and more."""

    one: float
    two: float
    more: float


def estimate_discounts(counts: NDArray[np.int64]) -> Discounts:
    """Estimate the discounts of an order from how many of its grams were counted one to four times."""
    n1, n2, n3, n4 = (int((counts == times).sum()) for times in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return Discounts(*DISCOUNTS_FALLBACK)
    y = n1 / (n1 + 2 * n2)
    return Discounts(1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)


@dataclass(frozen=True, eq=False)
class _Order:
    """The grams of one length, sorted, so that those of one context h lie together.

    Attributes:
        grams: uint64 [grams].
        shares: max(c − D, 0) / c(h•) of each, float64 [grams].
        contexts: uint64 [contexts], sorted.
        rests: γ of each context, float64 [contexts].
    """

    grams: Codes
    shares: NDArray[np.float64]
    contexts: Codes
    rests: NDArray[np.float64]


class KneserNey:
    """A model of bytes.

    Args:
        text: What it counts.
        order: Its longest grams, 1 to `ORDER_MAX` bytes.
        discounts: Of each order, shortest first; None: estimated.
    """

    def __init__(self, text: bytes, order: int, discounts: list[Discounts] | None = None) -> None:
        if not 1 <= order <= ORDER_MAX or len(text) < order:
            raise ValueError(f"expected an order from 1 to {ORDER_MAX}, and a text of that length")
        self._orders: list[_Order] = []
        grams, counts = np.unique(_codes(text, order), return_counts=True)
        for length in range(order, 0, -1):
            given = discounts[length - 1] if discounts else estimate_discounts(counts)
            self._orders.insert(0, _order(grams, counts, given))
            # Each different gram is one more byte that stood before its shorter one.
            grams, counts = np.unique(grams & _mask(length - 1), return_counts=True)

    def probabilities(self, text: bytes, start: int) -> NDArray[np.float64]:
        """Give the probability of each byte of a text from `start` on, behind all bytes before it.

        Args:
            text: The bytes.
            start: At least the order − 1, so that no context is cut short.

        Returns:
            float64 [bytes from start on].
        """
        order = len(self._orders)
        if start < order - 1:
            raise ValueError(f"expected {order - 1} bytes before the first, found {start}")
        codes = _codes(text[start - order + 1 :], order)
        p = np.full(len(codes), 1 / 256)
        for length, known in enumerate(self._orders, start=1):
            grams = codes & _mask(length)
            context, seen = _find(known.contexts, grams >> np.uint64(8))
            gram, counted = _find(known.grams, grams)
            # A context never seen says nothing: the shorter one stands.
            p = np.where(seen, np.where(counted, known.shares[gram], 0.0) + known.rests[context] * p, p)
        return p


def _order(grams: Codes, counts: NDArray[np.int64], discounts: Discounts) -> _Order:
    contexts, first = np.unique(grams >> np.uint64(8), return_index=True)
    totals = np.add.reduceat(counts, first)
    taken = np.choose(np.minimum(counts, 3) - 1, discounts)
    sizes = np.diff(np.append(first, len(grams)))
    shares = np.maximum(counts - taken, 0) / np.repeat(totals, sizes)
    # A discount larger than its count takes no more than there is.
    rests = np.add.reduceat(np.minimum(taken, counts), first) / totals
    return _Order(grams, shares, contexts, rests)


def _codes(text: bytes, length: int) -> Codes:
    """Every gram of a text, in its order, uint64 [bytes − length + 1]."""
    read = np.frombuffer(text, dtype=np.uint8).astype(np.uint64)
    count = len(read) - length + 1
    codes = np.zeros(count, dtype=np.uint64)
    for place in range(length):
        codes = codes << np.uint64(8) | read[place : place + count]
    return codes


def _mask(length: int) -> np.uint64:
    """What keeps the newest `length` bytes of a gram."""
    return np.uint64((1 << 8 * length) - 1)


def _find(table: Codes, wanted: Codes) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where each is in a sorted table (anywhere, if it is not), and whether it is."""
    places = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    return places, table[places] == wanted
