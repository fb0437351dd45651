"""Homeostat: models that think by iterating. Does thinking longer help, on which inputs, and when should it stop?"""

from homeostat import bilevel, nn
from homeostat.engine import (
    CG,
    GMRES,
    Anderson,
    Broyden,
    Carry,
    Implicit,
    Neumann,
    NormalCG,
    OneStep,
    Phantom,
    Picard,
    Shared,
    Shine,
    Solution,
    Status,
    Stop,
    Unrolled,
    solve,
    solve_stream,
)
from homeostat.inference import Breadth, Condition, Policy, fit_stopping, predict
from homeostat.models import IteratedModel, from_functions, load
from homeostat.probes import Audit, audit, compare, gradient_bias
from homeostat.training import train

__version__ = "0.1.0"

__all__ = [
    "CG",
    "GMRES",
    "Anderson",
    "Audit",
    "Breadth",
    "Broyden",
    "Carry",
    "Condition",
    "Implicit",
    "IteratedModel",
    "Neumann",
    "NormalCG",
    "OneStep",
    "Phantom",
    "Picard",
    "Policy",
    "Shared",
    "Shine",
    "Solution",
    "Status",
    "Stop",
    "Unrolled",
    "audit",
    "bilevel",
    "compare",
    "fit_stopping",
    "from_functions",
    "gradient_bias",
    "load",
    "nn",
    "predict",
    "solve",
    "solve_stream",
    "train",
]
