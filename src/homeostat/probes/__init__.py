"""Probes: what a trained model does when it thinks longer."""

from homeostat.probes.attack import attack
from homeostat.probes.attack_result import Attack, AttackRow
from homeostat.probes.audit import AuditEvent, audit
from homeostat.probes.gradient_bias import BiasRow, GradientBias, Reference, gradient_bias
from homeostat.probes.judge import Judge
from homeostat.probes.limit_classes import classify_limits
from homeostat.probes.limit_classes_result import ExampleLimit, Limit, LimitClasses, LimitShares
from homeostat.probes.results import Alignment, Audit, Budget, Clip, Difficulty, Estimate, Example, Verdict
from homeostat.probes.saving import save_audits
from homeostat.probes.starts import align_starts
from homeostat.probes.starts_result import StartAlignment, StartAlignments

__all__ = [
    "Alignment",
    "Attack",
    "AttackRow",
    "Audit",
    "AuditEvent",
    "BiasRow",
    "Budget",
    "Clip",
    "Difficulty",
    "Estimate",
    "Example",
    "ExampleLimit",
    "GradientBias",
    "Judge",
    "Limit",
    "LimitClasses",
    "LimitShares",
    "Reference",
    "StartAlignment",
    "StartAlignments",
    "Verdict",
    "align_starts",
    "attack",
    "audit",
    "classify_limits",
    "gradient_bias",
    "save_audits",
]
