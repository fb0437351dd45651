"""Recipes for text: a transformer layer as an equilibrium model at a fixed budget, differentiated in two ways.

As in the recipes for pictures neither solve has a tolerance; see there.
"""

from homeostat.models.checkpoint import TaskReference
from homeostat.models.sequence import SequenceConfig
from homeostat.models.starts import Zeros
from homeostat.tasks import Text
from homeostat.training.depth import FixedDepth
from homeostat.training.gradient import ImplicitGradient
from homeostat.training.recipe import Optimiser, Recipe

SEQUENCE_TEXT = Recipe(
    name="sequence-text",
    description="zero start; 6 plain steps, differentiated as a fixed point by 5 plain steps of the adjoint, converged "
    "or not",
    task=TaskReference(name="text"),
    model=SequenceConfig.of(Text(), width=64),
    start=Zeros(),
    depth=FixedDepth(steps=6),
    gradient=ImplicitGradient(solver="picard", rtol=0, adjoint="picard", adjoint_steps=5, on_failure="warn"),
    optimiser=Optimiser(learning_rate=2e-3, weight_decay=1e-2, schedule="one-cycle"),
    steps=600,
    batch=32,
    sizes=(64,),
    predict_steps=2,
)

SEQUENCE_TEXT_UNROLLED = SEQUENCE_TEXT.changed(
    name="sequence-text-unrolled",
    description="as sequence-text, but differentiated through the 6 steps themselves",
    gradient="unrolled",
)
