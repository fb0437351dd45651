"""Recipes that come with the package, by name; a file for each task. A new one is one entry here."""

from homeostat.errors import InputError
from homeostat.training.recipe import Recipe
from homeostat.training.recipes.edge_copy import EDGE_COPY, EDGE_COPY_FIXED
from homeostat.training.recipes.mazes import MAZES
from homeostat.training.recipes.prefix_sums import FIXED, PATH_INDEPENDENT

RECIPES = {recipe.name: recipe for recipe in (PATH_INDEPENDENT, FIXED, MAZES, EDGE_COPY, EDGE_COPY_FIXED)}
"""Every recipe by name."""

REFERENCE = {"prefix-sums": "path-independent", "mazes": "mazes", "edge-copy": "edge-copy"}
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
