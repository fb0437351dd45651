"""Equilibria as modules, and what their training needs: penalties, normalisation, dropout that stays fixed."""

from homeostat.nn.dropout import VariationalDropout
from homeostat.nn.equilibrium import Equilibrium
from homeostat.nn.jacobian import jacobian_penalty, spectral_radius
from homeostat.nn.normalisation import evaluate_once, normalise

__all__ = [
    "Equilibrium",
    "VariationalDropout",
    "evaluate_once",
    "jacobian_penalty",
    "normalise",
    "spectral_radius",
]
