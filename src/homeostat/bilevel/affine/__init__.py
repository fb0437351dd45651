"""The theory of extra steps, executable: when more iterations at test time than in training cannot help."""

from homeostat.bilevel.affine.draws import draw_affine
from homeostat.bilevel.affine.inequalities import (
    FirstOrder,
    first_order,
    largest_gain,
    more_steps_cannot_help,
    no_regret,
    problem_that_gains_most,
    tightness,
)
from homeostat.bilevel.affine.inequality import Inequality
from homeostat.bilevel.affine.losses import CrossEntropy, Huber, OuterLoss, Squared
from homeostat.bilevel.affine.meta_learning import QuadraticTasks, draw_tasks, more_steps_help
from homeostat.bilevel.affine.minimise import Change, change_of_loss, outer_minimiser
from homeostat.bilevel.affine.problem import AffineProblem
from homeostat.bilevel.affine.rate import Rate, fitted_rate, vanishing

__all__ = [
    "AffineProblem",
    "Change",
    "CrossEntropy",
    "FirstOrder",
    "Huber",
    "Inequality",
    "OuterLoss",
    "QuadraticTasks",
    "Rate",
    "Squared",
    "change_of_loss",
    "draw_affine",
    "draw_tasks",
    "first_order",
    "fitted_rate",
    "largest_gain",
    "more_steps_cannot_help",
    "more_steps_help",
    "no_regret",
    "outer_minimiser",
    "problem_that_gains_most",
    "tightness",
    "vanishing",
]
