"""How long the past stays in a prediction: two readers with different pasts, then the same characters.

One reads on where it was in the play; the other comes from elsewhere in it. From then on both read the same.
As long as their predictions differ, the network still holds what came before.
"""

from __future__ import annotations

import numpy as np
from docs.figures.measures import Numbers, divergence_bits
from docs.figures.reading import Reader, as_tokens

PLACES = 96
PAST = 200
SHARED = 200
"""How many places of the play are asked, and how many characters are read before and after the pasts meet."""


def divergences(reader: Reader, text: str) -> Numbers:
    """Bits that the reader from elsewhere loses on each shared character.

    Args:
        reader: The network.
        text: A play.

    Returns:
        Mean over places, [SHARED]; at index k both have read k + 1 shared characters.
    """
    tokens = as_tokens(text)
    meet = np.linspace(PAST, len(text) - SHARED, PLACES).astype(int)
    around = meet[:, None] + np.arange(-PAST, SHARED)
    true = tokens[around]  # [places, time]
    other = true.copy()
    other[:, :PAST] = np.roll(true[:, :PAST], PLACES // 2, axis=0)
    both = np.concatenate([true, other]).T
    return np.array(
        [
            divergence_bits(*np.split(step.log_probabilities, 2)).mean()
            for at, step in enumerate(reader.steps(both))
            if at >= PAST
        ]
    )
