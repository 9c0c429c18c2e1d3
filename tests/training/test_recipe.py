"""Recipes are checked whole, and say what is wrong, before anything runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cellstream.errors import RecipeInvalid
from cellstream.training import load_recipe
from cellstream.training.recipe import Data, Model, Recipe, Training


def test_a_recipe_is_read(recipe_path: Path) -> None:
    """Its sizes are the network's; its text is found from where the recipe is."""
    recipe = load_recipe(recipe_path)
    assert recipe.data.text == recipe_path.parent / "tale.txt"
    config = recipe.model.config(vocabulary_size=256)
    assert (config.cell, config.layers, config.hidden_size, config.embedding_size) == ("lstm", 2, 16, 8)
    assert (config.vocabulary_size, config.dropout) == (256, 0.1)


def test_overrides_replace_and_add_values(recipe_path: Path) -> None:
    """A demonstration trains the shipped recipe for a shorter time."""
    recipe = load_recipe(recipe_path, {"training.minutes": 0.5, "name": "other", "model.cell": "gru"})
    assert (recipe.training.minutes, recipe.training.tokens) == (0.5, 12_800)
    assert (recipe.name, recipe.model.cell) == ("other", "gru")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.layers": 0}, "model.layers: expected greater than 0, found 0"),
        ({"model.layers": "two"}, "model.layers: expected a valid integer"),
        ({"model.cell": "transformer"}, "model.cell: expected 'rnn', 'lstm' or 'gru', found 'transformer'"),
        ({"model.dropout": 1.0}, "model.dropout: expected less than 1, found 1.0"),
        (
            {"model.heads": 8},
            "model.heads: expected no such key, found 8; the keys here are cell, layers, hidden_size,",
        ),
        ({"training.epoch": 8}, "training.epoch: expected no such key, found 8; the keys here are tokens,"),
        ({"model.layer": 2}, "model.layer: expected no such key, found 2; did you mean layers?"),
        ({"sed": 2}, "sed: expected no such key, found 2; did you mean seed?"),
        ({"optimizer.name": "sgd"}, "optimizer: expected no such key"),
        ({"name": "Upper Case"}, "name: "),
        ({"training.tokens": -1}, "training.tokens: expected greater than 0, found -1"),
        ({"training.precision": "int8"}, "training.precision: "),
        ({"data.text": None}, "data: expected either corpus or text"),
        ({"data.corpus": "shakespeare"}, "data: expected either corpus or text"),
        ({"data.heldout": ["tempest"]}, "data: expected no validation and no heldout beside a text"),
        (
            {"data.text": None, "data.corpus": "shakespeare", "data.validation": ["hamlet"]},
            "data: expected works of the corpus for validation and for heldout",
        ),
        (
            {
                "data.text": None,
                "data.corpus": "shakespeare",
                "data.validation": ["hamlet"],
                "data.heldout": ["hamlet"],
            },
            "data: expected validation and heldout without a work in common",
        ),
        ({"data.tokenizer": "bpe"}, "data: expected a vocabulary_size beside the tokenizer bpe"),
        ({"data.vocabulary_size": 999}, "data: expected a vocabulary_size beside the tokenizer bpe"),
        (
            {"data.tokenizer": "bpe", "data.vocabulary_size": 256},
            "data.vocabulary_size: expected greater than or equal to 257, found 256",
        ),
        ({"training.averaging": 1}, "training.averaging: expected less than 1, found 1"),
        ({"training.recurrent_dropout": -0.1}, "training.recurrent_dropout: expected greater than or equal"),
        ({"training.tokens": None}, "training: expected tokens, or minutes, or both"),
        ({"name.first": "x"}, "name.first: expected a table at name, found 'tale'"),
    ],
)
def test_an_impossible_recipe_says_key_expected_and_found(
    recipe_path: Path, overrides: dict[str, object], message: str
) -> None:
    """A typo must not cost the five minutes of training after it."""
    with pytest.raises(RecipeInvalid) as caught:
        load_recipe(recipe_path, overrides)
    assert message in caught.value.message


def test_all_problems_are_told_at_once(recipe_path: Path) -> None:
    """Nobody likes to mend one line a try."""
    with pytest.raises(RecipeInvalid) as caught:
        load_recipe(recipe_path, {"model.layers": 0, "training.window": 0})
    assert len(caught.value.message.splitlines()) == 3


def test_a_missing_key_is_named(recipe_path: Path) -> None:
    """With the file in which it is missing."""
    recipe_path.write_text("seed = 1\n")
    with pytest.raises(
        RecipeInvalid, match=r"(?s)tale\.toml is no recipe.*name: expected a value, found none"
    ):
        load_recipe(recipe_path)


@pytest.mark.parametrize("content", [b"name = \n", b"\xff"])
def test_what_is_no_toml_is_refused(recipe_path: Path, content: bytes) -> None:
    """The parser's place and reason go on to the user."""
    recipe_path.write_bytes(content)
    with pytest.raises(RecipeInvalid, match=r"tale\.toml: "):
        load_recipe(recipe_path)


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    """Not a traceback: a path mistyped is the commonest mistake."""
    with pytest.raises(RecipeInvalid, match=r"nowhere\.toml"):
        load_recipe(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("name", ["shakespeare-lstm", "shakespeare-rnn"])
def test_the_shipped_recipes_stand(name: str) -> None:
    """Whoever trains them again must be able to, and the held-out plays must be those that the card names."""
    recipe = load_recipe(Path(__file__).parents[2] / "models" / name / "recipe.toml")
    assert recipe.name == name
    assert recipe.data.heldout == ("julius_caesar", "tempest")


def test_the_docs_have_every_key_with_its_default() -> None:
    """Whoever writes a recipe reads docs/training.md, and nothing else."""
    page = Path(__file__).resolve().parents[2] / "docs" / "training.md"
    told: dict[str, str] = {}
    for names, default in re.findall(
        r"^\| (`[a-z_.`, ]+`) \|([^|]*)\|", page.read_text(encoding="utf-8"), re.M
    ):
        keys = re.findall(r"[a-z_.]+", names)
        defaults = default.strip().split(", ") if ", " in default else [default.strip()] * len(keys)
        told.update(zip(keys, defaults, strict=True))
    for prefix, part in (("", Recipe), ("data.", Data), ("model.", Model), ("training.", Training)):
        for name, field in part.model_fields.items():
            if name not in ("data", "model", "training"):
                given = not field.is_required() and field.default not in (None, ())
                default = str(field.default).removesuffix(".0").lower() if given else ""
                assert told[prefix + name] == default, prefix + name
