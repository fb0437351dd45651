"""Recipes for mazes."""

from homeostat.models.checkpoint import TaskReference
from homeostat.models.starts import Mixed
from homeostat.training.depth import RandomDepth
from homeostat.training.pool import Segments
from homeostat.training.recipe import Optimiser, Recipe

# Three things matter, in this order (docs/figures.md has the figures). Long paths: between any two rooms of a small
# maze they are so short that a net learns to give up on long ones. Carried states, which see hundreds of steps for the
# price of ten. Half steps in predictions, which settle where whole ones swing between two states.
MAZES = Recipe(
    name="mazes",
    description="sizes growing from 3 to 9 rooms, the goal the farthest of five; half the starts zero, half noise; "
    "states carried over 10 training steps on average, 6-14 steps with a graph in each; predictions take half steps",
    task=TaskReference(name="mazes"),
    train_options={"longest_of": 5},
    start=Mixed(),
    depth=RandomDepth(free=(0, 0), graphed=(6, 14)),
    path_noise=0.05,
    segments=Segments(fresh=0.1, swap=0.03),
    optimiser=Optimiser(learning_rate=2e-3, weight_decay=1e-2, schedule="one-cycle"),
    steps=4500,
    batch=32,
    sizes=(3, 4, 5, 6, 7, 8, 9),
    growth=0.4,
    largest=0.5,
    predict_steps=12,
    predict_damping=0.5,
)
