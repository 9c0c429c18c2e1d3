"""Loss by how far back the needed information lies: what is lost by forgetting, character by character.

Two questions to each network, both on the held-out plays, at the same random places for every network:

- **context**: the same characters predicted from an empty state and only the k characters before them. How
  much more do they surprise than behind the whole play so far? What is left at k is what the network uses of
  text farther back than k.
- **reset**: the state is emptied somewhere and the network reads on. How much more does the k-th character
  after the reset surprise than it would have without one?

Each is a mean over paired differences, so that what makes a character hard in any case cancels; the band is
95 % (1.96 standard errors of that mean, places taken as independent).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cellstream.training.data import load_splits
from studies.predictors import Bits, Predictor, Tokens, TorchPredictor
from studies.study import NETWORKS, RUNS, read_network, read_recipe, read_result, write_result

CONTEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

PLACES = 1024
"""Random places: a band of about ±0.01 bits where the curve is nearly down."""

SEED = 4


@dataclass(frozen=True)
class Curve:
    """A mean with its band, at some distances.

    Attributes:
        distances: Characters; for the reset, the last of each group.
        bits: Mean difference in bits per character.
        band: Half its width, 95 %.
    """

    distances: list[int]
    bits: list[float]
    band: list[float]


def main() -> None:
    """Measure the networks that were named, or all."""
    torch.set_num_threads(1)
    works = heldout_works()
    for network in sys.argv[1:] or NETWORKS:
        curves = measure(TorchPredictor(read_network(network)), works)
        write_result("memory", {**read_result("memory"), network: curves})
        print(f"{network}: {curves}", flush=True)


def heldout_works() -> list[Tokens]:
    """The held-out plays as bytes."""
    return [piece.ids for piece in load_splits(read_recipe("lstm").data, RUNS).heldout]


def measure(predictor: Predictor, works: Sequence[Tokens]) -> dict[str, object]:
    """Ask both questions.

    Args:
        predictor: The network.
        works: Held-out texts, each int64 [tokens].

    Returns:
        `bits_per_character` behind the whole work so far, and the curves `context` and `reset`.
    """
    whole = [predictor.surprises(work[:, None])[:, 0] for work in works]  # [tokens − 1]: of tokens 1, 2, …
    at = places(works, PLACES, SEED)
    return {
        "bits_per_character": round(float(np.concatenate(whole).mean()), 4),
        "context": asdict(context_curve(predictor, works, whole, at)),
        "reset": asdict(reset_curve(predictor, works, whole, at)),
    }


def places(works: Sequence[Tokens], count: int, seed: int) -> NDArray[np.int64]:
    """Draw places with the longest context before and as much after them: [count, 2], work and token."""
    random = np.random.default_rng(seed)
    longest = CONTEXTS[-1]
    free = np.array([len(work) - 2 * longest - 1 for work in works])
    drawn = random.choice(int(free.sum()), size=count, replace=False)
    which = np.searchsorted(np.cumsum(free), drawn, side="right")
    return np.stack((which, drawn - (np.cumsum(free) - free)[which] + longest), axis=1)


def context_curve(
    predictor: Predictor, works: Sequence[Tokens], whole: Sequence[Bits], at: NDArray[np.int64]
) -> Curve:
    """Compare each place's token behind its last k tokens with the same behind all of them."""
    full = np.array([whole[work][token - 1] for work, token in at])
    differences = []
    for context in CONTEXTS:
        tokens = np.stack([works[work][token - context : token + 1] for work, token in at], axis=1)
        differences.append(predictor.surprises(tokens)[-1] - full)
    return _curve(CONTEXTS, differences)


def reset_curve(
    predictor: Predictor, works: Sequence[Tokens], whole: Sequence[Bits], at: NDArray[np.int64]
) -> Curve:
    """Compare the tokens behind a reset with the same without one, in groups that end at `CONTEXTS`.

    The token at a place is read into an empty state; the token after it is the first one predicted.
    """
    longest = CONTEXTS[-1]
    tokens = np.stack([works[work][token : token + longest + 1] for work, token in at], axis=1)
    full = np.stack([whole[work][token : token + longest] for work, token in at], axis=1)
    difference = predictor.surprises(tokens) - full  # [longest, places]
    starts = (0, *CONTEXTS[:-1])
    return _curve(
        CONTEXTS, [difference[start:end].mean(0) for start, end in zip(starts, CONTEXTS, strict=True)]
    )


def _curve(distances: Sequence[int], differences: Sequence[Bits]) -> Curve:
    """Means over places, [places] at each distance, with their bands."""
    return Curve(
        list(distances),
        [round(float(one.mean()), 4) for one in differences],
        [round(float(1.96 * one.std(ddof=1) / np.sqrt(len(one))), 4) for one in differences],
    )


if __name__ == "__main__":
    main()
