"""Probes: what a trained model does when it thinks longer."""

from homeostat.probes.audit import AuditEvent, audit
from homeostat.probes.dynamics import Dynamics, DynamicsRow, ExampleDynamics, measure_dynamics
from homeostat.probes.gradient_bias import BiasRow, GradientBias, Reference, gradient_bias
from homeostat.probes.judge import Judge
from homeostat.probes.results import Alignment, Audit, Budget, Clip, Difficulty, Estimate, Example, Verdict
from homeostat.probes.saving import save_audits

__all__ = [
    "Alignment",
    "Audit",
    "AuditEvent",
    "BiasRow",
    "Budget",
    "Clip",
    "Difficulty",
    "Dynamics",
    "DynamicsRow",
    "Estimate",
    "Example",
    "ExampleDynamics",
    "GradientBias",
    "Judge",
    "Reference",
    "Verdict",
    "audit",
    "gradient_bias",
    "measure_dynamics",
    "save_audits",
]
