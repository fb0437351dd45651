"""Recipes for edge copy: trained on graphs of 2 to 10 nodes, as the source does."""

from homeostat.models.checkpoint import TaskReference
from homeostat.models.graph import GraphConfig
from homeostat.models.starts import Mixed, Zeros
from homeostat.tasks import EdgeCopy
from homeostat.training.depth import FixedDepth, RandomDepth
from homeostat.training.recipe import Optimiser, Recipe

EDGE_COPY = Recipe(
    name="edge-copy",
    description="half the starts zero, half noise; random depth (0-20 steps free, then 3-10 with a graph)",
    task=TaskReference(name="edge-copy"),
    model=GraphConfig.of(EdgeCopy()),
    start=Mixed(),
    depth=RandomDepth(free=(0, 20), graphed=(3, 10)),
    optimiser=Optimiser(learning_rate=3e-3, weight_decay=1e-4, schedule="one-cycle"),
    steps=2000,
    batch=32,
    sizes=tuple(range(2, 11)),
    predict_steps=1,
)

EDGE_COPY_FIXED = EDGE_COPY.changed(
    name="edge-copy-fixed",
    description="zero start; fixed depth of 10 steps",
    start=Zeros(),
    depth=FixedDepth(steps=10),
)
