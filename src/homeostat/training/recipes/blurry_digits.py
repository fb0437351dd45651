"""Recipes for blurry digits: trained on the mild half of the blur."""

from homeostat.models.checkpoint import TaskReference
from homeostat.models.classifier import ClassifierConfig
from homeostat.models.starts import Mixed, Zeros
from homeostat.tasks import BlurryDigits
from homeostat.training.depth import FixedDepth, RandomDepth
from homeostat.training.recipe import Optimiser, Recipe

BLURRY_DIGITS = Recipe(
    name="blurry-digits",
    description="half the starts zero, half noise; random depth (0-12 steps free, then 3-9 with a graph)",
    task=TaskReference(name="blurry-digits"),
    model=ClassifierConfig.of(BlurryDigits(), width=24),
    start=Mixed(),
    depth=RandomDepth(free=(0, 12), graphed=(3, 9)),
    optimiser=Optimiser(learning_rate=4e-3, weight_decay=1e-2, schedule="one-cycle"),
    steps=1000,
    batch=32,
    sizes=(1, 2, 3),
    predict_steps=64,
)

BLURRY_DIGITS_FIXED = BLURRY_DIGITS.changed(
    name="blurry-digits-fixed",
    description="zero start; fixed depth of 8 steps",
    start=Zeros(),
    depth=FixedDepth(steps=8),
)
