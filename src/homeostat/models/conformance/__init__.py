"""Does a model keep the contract? Checks that run anybody's model and say in plain words what is wrong."""

from homeostat.models.conformance.check import check_model
from homeostat.models.conformance.result import Check, Conformance

__all__ = ["Check", "Conformance", "check_model"]
