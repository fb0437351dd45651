"""Colours of groups, readable with any colour vision (Okabe and Ito), on light and on dark paper."""

from homeostat.probes.report.palette import MODELS_DARK as DARK
from homeostat.probes.report.palette import MODELS_LIGHT as LIGHT

MARKS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "hexagon", "x")

__all__ = ["DARK", "LIGHT", "MARKS"]
