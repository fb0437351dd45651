"""Recipes for sinusoids: implicit MAML in the protocol of jaxopt's example, and MAML on the same tasks."""

from homeostat.models.checkpoint import TaskReference
from homeostat.models.meta import MetaConfig, MLPInner
from homeostat.models.starts import Own
from homeostat.training.depth import FixedDepth
from homeostat.training.gradient import ImplicitGradient
from homeostat.training.recipe import Optimiser, Recipe

IMAML = Recipe(
    name="imaml",
    description="implicit MAML: 16 inner steps with a line search, pull of 2 to the start, 5 conjugate-gradient steps",
    task=TaskReference(name="sinusoids"),
    # The weights of the example this protocol is from begin LeCun normal, which learns more slowly: docs/figures.md.
    model=MetaConfig(inner=MLPInner(initialisation="uniform"), regulariser=2.0),
    start=Own(),
    depth=FixedDepth(steps=16),
    # No tolerance: all of the steps are taken, of the inner problem and of its adjoint, as in the protocol.
    gradient=ImplicitGradient(adjoint="cg", adjoint_steps=5, rtol=0),
    optimiser=Optimiser(learning_rate=1e-3, clip=1e6),
    steps=1000,
    batch=25,
    sizes=(10,),
)

MAML = IMAML.changed(
    name="maml",
    description="MAML: 5 inner steps with a line search and no pull, differentiated one by one",
    model=MetaConfig(inner=MLPInner(initialisation="uniform")),
    depth=FixedDepth(steps=5),
    gradient="unrolled",
)
