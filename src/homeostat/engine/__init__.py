"""The fixed-point engine: `solve` and what it takes and returns."""

from homeostat.engine.nest import Carry, Shared
from homeostat.engine.options import Gradient, Implicit, Picard, Stop, Unrolled
from homeostat.engine.solution import Adjoint, Solution, Status
from homeostat.engine.solve import solve

__all__ = [
    "Adjoint",
    "Carry",
    "Gradient",
    "Implicit",
    "Picard",
    "Shared",
    "Solution",
    "Status",
    "Stop",
    "Unrolled",
    "solve",
]
