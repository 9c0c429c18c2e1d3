"""Train the four networks: the same text in the same order, the same seed, the same number of tokens.

    python -m studies.networks [NETWORK ...]

What each learns at comes from `learning_rates`. The checkpoints stay in `runs/`; what is committed is what they
measured: sizes, tokens, bits per character.
"""

from __future__ import annotations

import sys

from cellstream.training import train
from studies.study import NETWORKS, RUNS, read_checkpoint, read_result, recipe_path, write_result


def main() -> None:
    """Train what was named, or all of them."""
    for network in sys.argv[1:] or NETWORKS:
        bits = read_result("learning_rates")[network]
        rate = float(min(bits, key=bits.__getitem__))
        train(recipe_path(network), runs_directory=RUNS, overrides={"training.learning_rate": rate})
        checkpoint = read_checkpoint(network)
        measured = {
            "cell": checkpoint.config.cell,
            "layers": checkpoint.config.layers,
            "hidden_size": checkpoint.config.hidden_size,
            "weights": checkpoint.config.parameters,
            "learning_rate": rate,
            **checkpoint.record.metrics,
            "versions": checkpoint.record.versions,
        }
        write_result("networks", {**read_result("networks"), network: measured})


if __name__ == "__main__":
    main()
