"""Choose each network's learning rate, by the same rule, on the validation play alone.

A short run with the whole schedule (warm-up and decay) at 8 and 16 thousandths; then twice or half as much,
as long as the best rate is the highest or the lowest tried. The held-out plays are not read.
"""

from __future__ import annotations

import sys
from itertools import chain

import torch

from cellstream.cells.stack import FusedStack
from cellstream.training.data import Splits, load_splits, windows
from cellstream.training.learner import Learner
from cellstream.training.measure import bits_per_character
from cellstream.training.pace import choose_pace
from cellstream.training.recipe import Recipe
from cellstream.training.schedule import Schedule
from studies.study import NETWORKS, RUNS, read_recipe, read_result, write_result

TOKENS = 1_000_000
"""Of a short run: a sixth of the whole, half a minute each."""

FIRST_RATES = (8e-3, 16e-3)

VALIDATION_ROWS = 16


def main() -> None:
    """Try rates for every network, and keep what came of each try."""
    torch.set_num_threads(1)
    tried: dict[str, dict[str, float]] = read_result("learning_rates")
    for network in sys.argv[1:] or NETWORKS:
        recipe = read_recipe(network)
        splits = load_splits(recipe.data, RUNS)
        bits = tried.setdefault(network, {})
        while (rate := next_rate({float(one): value for one, value in bits.items()})) is not None:
            bits[f"{rate:g}"] = short_run(recipe, splits, rate)
            print(f"{network}: {rate:g} → {bits[f'{rate:g}']:.4f} bits per character", flush=True)
            write_result("learning_rates", tried)


def next_rate(bits: dict[float, float]) -> float | None:
    """Give the rate to try next; None where the best one has a worse one on either side.

    Args:
        bits: Validation bits per character by the rates tried so far.
    """
    for rate in FIRST_RATES:
        if rate not in bits:
            return rate
    best = min(bits, key=bits.__getitem__)
    if best == min(bits):
        return best / 2
    return best * 2 if best == max(bits) else None


def short_run(recipe: Recipe, splits: Splits, rate: float) -> float:
    """Train for `TOKENS` tokens at a rate; give the bits per character of the validation play."""
    torch.manual_seed(recipe.seed)
    model = FusedStack(recipe.model.config(splits.tokenizer.vocabulary_size))
    schedule = Schedule(rate, recipe.training.warmup_ratio, recipe.training.final_ratio)
    rows, window = recipe.training.batch_rows, recipe.training.window
    read = windows(splits.training.ids, rows=rows, window=window, seed=recipe.seed)
    first = next(read)
    pace = choose_pace(model, recipe.training, first)
    learner, tokens = Learner(model, recipe.training, pace.precision), 0
    for part in chain([first], read):
        if tokens >= TOKENS:
            break
        learner.learn(part, schedule.learning_rate(tokens / TOKENS))
        tokens += part.inputs.size
    return bits_per_character(model, splits.validation, VALIDATION_ROWS)


if __name__ == "__main__":
    main()
