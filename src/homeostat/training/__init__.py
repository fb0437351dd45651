"""Training: recipes as data, and the loop that follows them."""

from homeostat.training.depth import FixedDepth, LogNormalPoissonDepth, ProgressiveDepth, RandomDepth
from homeostat.training.gradient import (
    ImplicitGradient,
    NeumannGradient,
    OneStepGradient,
    PhantomGradient,
    ShineGradient,
)
from homeostat.training.instances import training_instances
from homeostat.training.loop import TrainingEvent, train
from homeostat.training.pool import Segments
from homeostat.training.recipe import Optimiser, Recipe
from homeostat.training.recipes import RECIPES, REFERENCE, get_recipe
from homeostat.training.terms import JacobianTerm, PathPenalty

__all__ = [
    "RECIPES",
    "REFERENCE",
    "FixedDepth",
    "ImplicitGradient",
    "JacobianTerm",
    "LogNormalPoissonDepth",
    "NeumannGradient",
    "OneStepGradient",
    "Optimiser",
    "PathPenalty",
    "PhantomGradient",
    "ProgressiveDepth",
    "RandomDepth",
    "Recipe",
    "Segments",
    "ShineGradient",
    "TrainingEvent",
    "get_recipe",
    "train",
    "training_instances",
]
