"""Recipes that come with the package, by name; a file for each task. A new one is one entry here."""

from homeostat.errors import InputError
from homeostat.training.recipe import Recipe
from homeostat.training.recipes.blurry_digits import BLURRY_DIGITS, BLURRY_DIGITS_FIXED
from homeostat.training.recipes.edge_copy import EDGE_COPY, EDGE_COPY_FIXED
from homeostat.training.recipes.few_shot import IMAML_CHARACTERS, IMAML_DIGITS
from homeostat.training.recipes.images import MULTISCALE_DIGITS, MULTISCALE_DIGITS_UNROLLED
from homeostat.training.recipes.matrix_inversion import MATRIX_INVERSION, MATRIX_INVERSION_FIXED
from homeostat.training.recipes.mazes import MAZES
from homeostat.training.recipes.prefix_sums import PREFIX_SUMS
from homeostat.training.recipes.sinusoids import IMAML, MAML
from homeostat.training.recipes.sudoku import SUDOKU_4, SUDOKU_6, SUDOKU_9
from homeostat.training.recipes.text import SEQUENCE_TEXT, SEQUENCE_TEXT_UNROLLED

RECIPES = {
    recipe.name: recipe
    for recipe in (
        *PREFIX_SUMS,
        MAZES,
        SUDOKU_4,
        SUDOKU_6,
        SUDOKU_9,
        EDGE_COPY,
        EDGE_COPY_FIXED,
        MATRIX_INVERSION,
        MATRIX_INVERSION_FIXED,
        BLURRY_DIGITS,
        BLURRY_DIGITS_FIXED,
        IMAML,
        MAML,
        MULTISCALE_DIGITS,
        MULTISCALE_DIGITS_UNROLLED,
        SEQUENCE_TEXT,
        SEQUENCE_TEXT_UNROLLED,
        IMAML_CHARACTERS,
        IMAML_DIGITS,
    )
}
"""Every recipe by name."""

REFERENCE = {
    "prefix-sums": "path-independent",
    "mazes": "mazes",
    "sudoku": "sudoku-6",
    "edge-copy": "edge-copy",
    "matrix-inversion": "matrix-inversion",
    "blurry-digits": "blurry-digits",
    "sinusoids": "imaml",
    "images": "multiscale-digits",
    "text": "sequence-text",
    "few-shot-characters": "imaml-characters",
    "few-shot-digits": "imaml-digits",
}
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
