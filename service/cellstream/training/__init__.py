"""Training: real text, a recipe, and a checkpoint with honest numbers at its end. Needs the extra `train`."""

from cellstream.training.corpus import fetch_corpus
from cellstream.training.interrupts import Stopped
from cellstream.training.loop import train
from cellstream.training.recipe import Recipe, load_recipe

__all__ = ["Recipe", "Stopped", "fetch_corpus", "load_recipe", "train"]
