"""Recipes for prefix sums."""

from homeostat.models.checkpoint import TaskReference
from homeostat.models.starts import Mixed, Zeros
from homeostat.training.depth import FixedDepth, RandomDepth
from homeostat.training.recipe import Recipe

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

FIXED = PATH_INDEPENDENT.changed(
    name="fixed",
    description="zero start; fixed depth of 20 steps",
    start=Zeros(),
    depth=FixedDepth(steps=20),
)
