"""Inner problems as iterated maps: implicit MAML, hyperparameters, and the theory of when more iterations help."""

from homeostat.bilevel.gradient_descent import GradientDescent
from homeostat.bilevel.meta import MetaLearner
from homeostat.bilevel.objective import Objective, row_gradients
from homeostat.bilevel.step import InnerStep

__all__ = ["GradientDescent", "InnerStep", "MetaLearner", "Objective", "row_gradients"]
