"""Recipes for mazes."""

from homeostat.models.checkpoint import TaskReference
from homeostat.models.starts import Mixed
from homeostat.training.depth import RandomDepth
from homeostat.training.recipe import Optimiser, Recipe

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
