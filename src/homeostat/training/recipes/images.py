"""Recipes for small clean pictures: a multiscale equilibrium model at a fixed budget, differentiated in two ways.

The budget is what the source compares nets by: training takes exactly `depth.steps` plain steps from zeros, converged
or not; another one is one change: `.changed(depth=FixedDepth(steps=18))`. The implicit gradient solves its
linear system with a fixed number of products too. Neither solve has a tolerance, so that nothing warns; how far from
converged they were is in the training record (`last_residuals`).
"""

from homeostat.models.checkpoint import TaskReference
from homeostat.models.multiscale import MultiscaleConfig
from homeostat.models.starts import Zeros
from homeostat.tasks import Images
from homeostat.training.depth import FixedDepth
from homeostat.training.gradient import ImplicitGradient
from homeostat.training.recipe import Optimiser, Recipe

MULTISCALE_DIGITS = Recipe(
    name="multiscale-digits",
    description="zero start; 9 plain steps, differentiated as a fixed point by 5 products of GMRES, converged or not",
    task=TaskReference(name="images"),
    model=MultiscaleConfig.of(Images(), widths=(16, 24)),
    start=Zeros(),
    depth=FixedDepth(steps=9),
    gradient=ImplicitGradient(solver="picard", rtol=0, adjoint="gmres", adjoint_steps=5, on_failure="warn"),
    optimiser=Optimiser(learning_rate=4e-3, weight_decay=1e-2, schedule="one-cycle"),
    steps=300,
    batch=64,
    instances=1573,
    sizes=(1,),
    predict_steps=9,
)

MULTISCALE_DIGITS_UNROLLED = MULTISCALE_DIGITS.changed(
    name="multiscale-digits-unrolled",
    description="as multiscale-digits, but differentiated through the 9 steps themselves",
    gradient="unrolled",
)
