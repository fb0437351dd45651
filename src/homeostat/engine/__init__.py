"""The fixed-point engine: `solve`, `solve_stream` and what they take and return."""

from homeostat.engine.gradients import Gradient, Implicit, Neumann, OneStep, Phantom, Shine, Unrolled
from homeostat.engine.methods import CG, GMRES, Anderson, Broyden, NormalCG, Picard
from homeostat.engine.nest import Carry, Shared
from homeostat.engine.solution import Adjoint, AdjointSolver, Obstacle, Solution, Status
from homeostat.engine.solve import solve
from homeostat.engine.stop import Stop
from homeostat.engine.stream import PENDING, SolutionStream, StreamedExample, solve_stream

__all__ = [
    "CG",
    "GMRES",
    "PENDING",
    "Adjoint",
    "AdjointSolver",
    "Anderson",
    "Broyden",
    "Carry",
    "Gradient",
    "Implicit",
    "Neumann",
    "NormalCG",
    "Obstacle",
    "OneStep",
    "Phantom",
    "Picard",
    "Shared",
    "Shine",
    "Solution",
    "SolutionStream",
    "Status",
    "Stop",
    "StreamedExample",
    "Unrolled",
    "solve",
    "solve_stream",
]
