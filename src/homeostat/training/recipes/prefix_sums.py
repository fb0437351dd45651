"""Recipes for prefix sums: path independence promoted, left to itself, and penalised.

All train the same network on strings of 32 bits, and all but `path-independent` at about the compute of `fixed`. The
compute of a training step is counted as evaluations of the model's step, three for one with a graph, because its
backward pass costs about two more: 60 for each example of `fixed`.
"""

from homeostat.models.checkpoint import TaskReference
from homeostat.models.starts import Mixed, Zeros
from homeostat.training.depth import FixedDepth, ProgressiveDepth, RandomDepth
from homeostat.training.gradient import ImplicitGradient, PhantomGradient
from homeostat.training.recipe import Recipe
from homeostat.training.terms import PathPenalty

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

ZEROS_RANDOM_DEPTH = PATH_INDEPENDENT.changed(
    name="zeros-random-depth",
    description="as path-independent, but every start is zero",
    start=Zeros(),
)

NOISE_FIXED_DEPTH = FIXED.changed(
    name="noise-fixed-depth",
    description="as fixed, but half the starts are noise",
    start=Mixed(),
)

PROMOTE = FIXED.changed(
    name="promote",
    description="as fixed, with a penalty on 1 - cos of the states reached from zeros and from noise; half the batch, "
    "because each example is run twice",
    path_penalty=PathPenalty(weight=1.0),
    batch=64,
)

PENALISE = PROMOTE.changed(
    name="penalise",
    description="as promote, with the opposite sign: states reached from zeros and from noise are driven apart",
    path_penalty=PathPenalty(weight=-1.0),
)

PHANTOM = FIXED.changed(
    name="phantom",
    description="half the starts noise; up to 40 steps towards a fixed point, differentiated by the phantom gradient",
    start=Mixed(),
    depth=FixedDepth(steps=40),
    gradient=PhantomGradient(),
)

IMPLICIT = PHANTOM.changed(
    name="implicit",
    description="as phantom, but with the implicit gradient, of up to 10 adjoint steps",
    gradient=ImplicitGradient(adjoint_steps=10),
)

SHALLOW = FIXED.changed(
    name="shallow",
    description="as fixed, but 6 steps deep and for 3,333 training steps; what lies more than 12 bits back is out of "
    "reach in training",
    depth=FixedDepth(steps=6),
    steps=3333,
)

PROGRESSIVE = FIXED.changed(
    name="progressive",
    description="as fixed, but with the progressive loss alone, of up to 30 steps, and for 1,500 training steps",
    depth=ProgressiveDepth(steps=30),
    steps=1500,
)

PREFIX_SUMS = (
    PATH_INDEPENDENT,
    FIXED,
    PROMOTE,
    PENALISE,
    ZEROS_RANDOM_DEPTH,
    NOISE_FIXED_DEPTH,
    PHANTOM,
    IMPLICIT,
    SHALLOW,
    PROGRESSIVE,
)
