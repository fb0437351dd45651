"""Training: recipes as data, and the loop that follows them."""

from homeostat.training.loop import TrainingEvent, train
from homeostat.training.recipe import FixedDepth, Optimiser, RandomDepth, Recipe
from homeostat.training.recipes import RECIPES, REFERENCE, get_recipe

__all__ = [
    "RECIPES",
    "REFERENCE",
    "FixedDepth",
    "Optimiser",
    "RandomDepth",
    "Recipe",
    "TrainingEvent",
    "get_recipe",
    "train",
]
