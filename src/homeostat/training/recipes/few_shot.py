"""Recipes for few-shot classification: implicit MAML with a small convolutional network."""

from homeostat.models.checkpoint import TaskReference
from homeostat.models.conv_inner import ConvInner
from homeostat.models.meta import MetaConfig
from homeostat.models.starts import Own
from homeostat.tasks import FewShotCharacters, FewShotDigits
from homeostat.training.depth import FixedDepth
from homeostat.training.gradient import ImplicitGradient
from homeostat.training.recipe import Optimiser, Recipe

IMAML_CHARACTERS = Recipe(
    name="imaml-characters",
    description="implicit MAML, 5 ways, 1 shot: 8 inner steps of 0.1, pull of 1 towards the start, 4 adjoint steps",
    task=TaskReference(name="few-shot-characters"),
    model=MetaConfig(inner=ConvInner.of(FewShotCharacters(), width=16, blocks=3), regulariser=1.0, step_size=0.1),
    start=Own(),
    depth=FixedDepth(steps=8),
    # No tolerance: the parameters belong to these steps, converged or not, as in the sinusoids' recipe.
    gradient=ImplicitGradient(adjoint="gmres", adjoint_steps=4, rtol=0),
    optimiser=Optimiser(learning_rate=3e-3, clip=10.0, schedule="one-cycle"),
    steps=300,
    batch=16,
    sizes=(1,),
)

IMAML_DIGITS = IMAML_CHARACTERS.changed(
    name="imaml-digits",
    task=TaskReference(name="few-shot-digits"),
    model=MetaConfig(inner=ConvInner.of(FewShotDigits(), width=16, blocks=2), regulariser=1.0, step_size=0.1),
    steps=150,
)
