"""The four networks, by name, and where everything lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cellstream.cells.checkpoint import Checkpoint, load_checkpoint
from cellstream.cells.stack import FusedStack, load_weights
from cellstream.training.recipe import Recipe, load_recipe

HERE = Path(__file__).parent
RESULTS = HERE / "results"
RUNS = HERE.parent / "runs"
MODELS = HERE.parent / "models"
PAGES = HERE.parent / "docs" / "studies"

NETWORKS = ("lstm", "gru", "rnn-wide", "rnn")
"""The networks of the study; `recipes/<name>.toml` describes each, `runs/study-<name>` keeps it."""


def recipe_path(network: str) -> Path:
    """The recipe of a network."""
    return HERE / "recipes" / f"{network}.toml"


def read_recipe(network: str) -> Recipe:
    """Read the recipe of a network."""
    return load_recipe(recipe_path(network))


def read_checkpoint(network: str) -> Checkpoint:
    """Read a trained network.

    Raises:
        CheckpointInvalid: `python -m studies.networks` has not trained it yet.
    """
    return load_checkpoint(RUNS / f"study-{network}" / "checkpoint")


def read_network(network: str) -> FusedStack:
    """Read a trained network, ready to predict."""
    checkpoint = read_checkpoint(network)
    model = FusedStack(checkpoint.config)
    load_weights(model, checkpoint.weights)
    return model.eval()


def read_result(name: str) -> Any:
    """Read what an earlier step wrote; an empty dictionary where it has not run yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_result(name: str, values: Any) -> None:
    """Write a step's results, whole or not at all, in the order given."""
    RESULTS.mkdir(exist_ok=True)
    partial = RESULTS / f"{name}.partial"
    partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    partial.replace(RESULTS / f"{name}.json")


def in_order(results: dict[str, Any]) -> list[tuple[str, Any]]:
    """The networks that were measured, always in the same order."""
    return [(network, results[network]) for network in NETWORKS if network in results]
