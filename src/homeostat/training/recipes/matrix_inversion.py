"""Recipes for matrix inversion: trained on the easy set alone."""

from homeostat.models.checkpoint import TaskReference
from homeostat.models.matrix import MatrixConfig
from homeostat.models.starts import Mixed, Zeros
from homeostat.training.depth import FixedDepth, RandomDepth
from homeostat.training.recipe import Optimiser, Recipe

MATRIX_INVERSION = Recipe(
    name="matrix-inversion",
    description="half the starts zero, half noise; random depth (15-95 steps free, then 5-20 with a graph)",
    task=TaskReference(name="matrix-inversion"),
    model=MatrixConfig(channels=2),
    start=Mixed(),
    depth=RandomDepth(free=(15, 95), graphed=(5, 20)),
    optimiser=Optimiser(learning_rate=1e-2, schedule="one-cycle"),
    steps=1200,
    batch=32,
    sizes=(2,),
    predict_steps=80,
)

MATRIX_INVERSION_FIXED = MATRIX_INVERSION.changed(
    name="matrix-inversion-fixed",
    description="zero start; fixed depth of 30 steps",
    start=Zeros(),
    depth=FixedDepth(steps=30),
)
