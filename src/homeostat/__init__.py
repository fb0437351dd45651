"""Homeostat: models that think by iterating. Does thinking longer help, on which inputs, and when should it stop?"""

from homeostat.engine import Carry, Implicit, Picard, Shared, Solution, Status, Stop, Unrolled, solve

__version__ = "0.1.0"

__all__ = ["Carry", "Implicit", "Picard", "Shared", "Solution", "Status", "Stop", "Unrolled", "solve"]
