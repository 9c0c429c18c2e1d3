"""Train the four networks: the same text in the same order, the same seed, the same number of tokens.

    python -m studies.networks [NETWORK ...]

The recipes hold the rate that each learns at: the one chosen by `learning_rates`, or half of it, where a
whole run at that was given up. `results/given_up.json` has the rate and the curve of those runs, copied by
hand from their logs before they were begun anew. The checkpoints stay in `runs/`; what is committed is what
they measured: sizes, tokens, bits per character. A run that was broken off goes on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cellstream.training import train
from studies.study import NETWORKS, RUNS, read_checkpoint, read_recipe, read_result, recipe_path, write_result


def main() -> None:
    """Train what was named, or all of them."""
    for network in sys.argv[1:] or NETWORKS:
        train(recipe_path(network), runs_directory=RUNS, resume=True)
        record(network)


def record(network: str) -> None:
    """Keep what a trained network measured."""
    checkpoint = read_checkpoint(network)
    measured = {
        "cell": checkpoint.config.cell,
        "layers": checkpoint.config.layers,
        "hidden_size": checkpoint.config.hidden_size,
        "weights": checkpoint.config.parameters,
        "learning_rate": read_recipe(network).training.learning_rate,
        "precision": checkpoint.record.precision,
        **checkpoint.record.metrics,
        "validation": validation_curve(RUNS / f"study-{network}" / "log.jsonl"),
        "versions": checkpoint.record.versions,
    }
    write_result("networks", {**read_result("networks"), network: measured})


def validation_curve(log: Path) -> list[tuple[int, float]]:
    """Read how validation went from a run's log: tokens learned from, bits per character."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [(int(line["tokens_seen"]), round(line["validation_bits_per_character"], 4)) for line in lines]


if __name__ == "__main__":
    main()
