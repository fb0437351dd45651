"""Recipes for sudoku: a network for each side.

Two things matter. States are carried from one training step to the next, so that a row is worked on for many steps of
which only the last few keep a graph. And a share of the rows goes on from the state of another puzzle, so that a
confident wrong answer has to be given up.
"""

from homeostat.models.checkpoint import TaskReference
from homeostat.models.recursive import RecursiveConfig
from homeostat.models.starts import Mixed
from homeostat.tasks.sudoku import Sudoku
from homeostat.training.depth import RandomDepth
from homeostat.training.pool import Segments
from homeostat.training.recipe import Optimiser, Recipe


def _recipe(side: int, *, steps: int, batch: int, fresh: float, **sizes: int) -> Recipe:
    return Recipe(
        name=f"sudoku-{side}",
        description=f"{side}x{side} without spare givens; half the starts zero, half noise; states carried over "
        f"{1 / fresh:.0f} training steps on average, 1-3 steps with a graph in each; 5 % swapped",
        task=TaskReference(name="sudoku", options={"side": side}),
        model=RecursiveConfig.of(Sudoku(side=side), **sizes),
        start=Mixed(),
        depth=RandomDepth(free=(0, 0), graphed=(1, 3)),
        segments=Segments(fresh=fresh, swap=0.05),
        ema=0.99,
        optimiser=Optimiser(learning_rate=2e-3, weight_decay=1e-2, schedule="one-cycle"),
        steps=steps,
        batch=batch,
        sizes=(side,),
        predict_steps=24,
    )


SUDOKU_4 = _recipe(4, steps=600, batch=64, fresh=0.2)

SUDOKU_6 = _recipe(6, steps=2000, batch=64, fresh=0.125)

SUDOKU_9 = _recipe(9, steps=50_000, batch=256, fresh=0.0625, width=128, hidden=256)
"""For a GPU: about 200 times the arithmetic of the 6x6 one."""
