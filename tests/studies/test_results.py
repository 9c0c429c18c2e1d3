"""That the four recipes differ in nothing but their cells, and that the page says what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import studies
from studies.networks import validation_curve
from studies.page import PAGE, render
from studies.study import NETWORKS, read_recipe

from cellstream.training.history import Evaluation, History
from cellstream.training.journal import Journal


def test_the_networks_learn_from_the_same_text_in_the_same_way() -> None:
    """Name, cell, hidden size and learning rate apart, the recipes are equal; so are the weights of two."""
    recipes = [read_recipe(network) for network in NETWORKS]
    alike = set()
    for recipe in recipes:
        model = recipe.model.model_copy(update={"cell": "lstm", "hidden_size": 1})
        training = recipe.training.model_copy(update={"learning_rate": 1.0, "forget_bias": 0.0})
        same = recipe.model_copy(update={"name": "any", "model": model, "training": training})
        alike.add(same.model_dump_json())
    assert len(alike) == 1
    weights = {recipe.name: recipe.model.config(256).parameters for recipe in recipes}
    assert abs(weights["study-rnn-wide"] / weights["study-lstm"] - 1) < 0.01


def test_a_run_s_log_becomes_its_curve(tmp_path: Path) -> None:
    """Training writes the log, and the study reads it."""
    with Journal(tmp_path, History()) as journal:
        for tokens, bits in ((600_000, 2.5), (1_200_000, 2.25)):
            journal.add_evaluation(Evaluation(tokens, 1.0, 2.0, bits, bits - 0.125, "to be"))
    assert validation_curve(tmp_path / "log.jsonl") == [(600_000, 2.5), (1_200_000, 2.25)]


def test_the_page_is_written_from_the_committed_results() -> None:
    """Results without a new page, or a page changed by hand, are noticed."""
    assert PAGE.read_text(encoding="utf-8") == render()


def test_every_step_of_the_study_is_listed() -> None:
    """Whoever repeats it runs the commands that the package names, and no other file is one."""
    named = re.findall(r"python -m studies\.(\w+)", studies.__doc__ or "")
    files = Path(studies.__file__).parent.glob("*.py")
    assert sorted(named) == sorted(
        file.stem for file in files if 'if __name__ == "__main__":' in file.read_text(encoding="utf-8")
    )
