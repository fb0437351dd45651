"""Recipes that come with the package, by name. A new one is one entry here."""

from homeostat.errors import InputError
from homeostat.models.checkpoint import TaskReference
from homeostat.models.starts import Mixed, Zeros
from homeostat.training.recipe import FixedDepth, Optimiser, RandomDepth, Recipe

_PREFIX = TaskReference(name="prefix-sums")

PATH_INDEPENDENT = Recipe(
    name="path-independent",
    description="half the starts zero, half noise; random depth (0-29 steps free, then 5-19 with a graph)",
    task=_PREFIX,
    start=Mixed(),
    depth=RandomDepth(free=(0, 29), graphed=(5, 19)),
    steps=1000,
    sizes=(32,),
)

FIXED = PATH_INDEPENDENT.model_copy(
    update={
        "name": "fixed",
        "description": "zero start; fixed depth of 20 steps",
        "start": Zeros(),
        "depth": FixedDepth(steps=20),
    }
)

MAZES = Recipe(
    name="mazes",
    description="sizes growing from 3 to 7; half the starts zero, half noise; up to 6 n steps free, then 8-19; "
    "predictions take half steps",
    task=TaskReference(name="mazes"),
    start=Mixed(),
    depth=RandomDepth(free=(0, 6), free_unit="sizes", graphed=(8, 19)),
    optimiser=Optimiser(learning_rate=2e-3, weight_decay=1e-2, schedule="one-cycle"),
    steps=5000,
    batch=64,
    sizes=(3, 4, 5, 6, 7),
    growth=0.6,
    largest=0.5,
    predict_steps=12,
    predict_damping=0.5,
)

RECIPES = {recipe.name: recipe for recipe in (PATH_INDEPENDENT, FIXED, MAZES)}

REFERENCE = {"prefix-sums": "path-independent", "mazes": "mazes"}
"""The recipe that a task is trained with when none is named."""


def get_recipe(name: str) -> Recipe:
    """A recipe of the package.

    Raises:
        InputError: an unknown name.

    Example:
        >>> get_recipe("fixed").horizon
        20
    """
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name!r}; known are {', '.join(RECIPES)}")
    return RECIPES[name]
