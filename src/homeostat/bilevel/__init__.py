"""Inner problems as iterated maps: implicit MAML, hyperparameters, and the theory of when more iterations help."""

from homeostat.bilevel.gradient_descent import GradientDescent
from homeostat.bilevel.hypergradient import Hypergradient, hypergradient
from homeostat.bilevel.inner import InnerProblem, functional, module_parameters
from homeostat.bilevel.logistic_regression import RegularisationTuning, tune_regularisation
from homeostat.bilevel.meta import MetaLearner
from homeostat.bilevel.momentum import Momentum
from homeostat.bilevel.newton import Newton
from homeostat.bilevel.nonlinear_cg import NonlinearCG
from homeostat.bilevel.objective import KnownGradient, Objective, row_gradients
from homeostat.bilevel.proximal_gradient import ProximalGradient
from homeostat.bilevel.proximal_operators import Ball, Box, Proximal, SoftThreshold
from homeostat.bilevel.step import InnerStep

__all__ = [
    "Ball",
    "Box",
    "GradientDescent",
    "Hypergradient",
    "InnerProblem",
    "InnerStep",
    "KnownGradient",
    "MetaLearner",
    "Momentum",
    "Newton",
    "NonlinearCG",
    "Objective",
    "Proximal",
    "ProximalGradient",
    "RegularisationTuning",
    "SoftThreshold",
    "functional",
    "hypergradient",
    "module_parameters",
    "row_gradients",
    "tune_regularisation",
]
