"""Probes: what a trained model does when it thinks longer."""

from homeostat.probes.attack import attack
from homeostat.probes.attack_result import Attack, AttackRow
from homeostat.probes.audit import AuditEvent, audit
from homeostat.probes.certificate import certify
from homeostat.probes.certificate_result import CertificateRow, Certificates, ExampleCertificate
from homeostat.probes.dynamics import measure_dynamics
from homeostat.probes.dynamics_result import Dynamics, DynamicsRow, ExampleDynamics
from homeostat.probes.gradient_bias import BiasRow, GradientBias, Reference, gradient_bias
from homeostat.probes.horizons import BestBudget, HorizonCell, HorizonTable, cross_horizons
from homeostat.probes.judge import Judge
from homeostat.probes.limit_classes import classify_limits
from homeostat.probes.limit_classes_result import ExampleLimit, Limit, LimitClasses, LimitShares
from homeostat.probes.results import Alignment, Audit, Budget, Clip, Difficulty, Estimate, Example, Verdict
from homeostat.probes.saving import save_audits
from homeostat.probes.starts import align_starts
from homeostat.probes.starts_result import StartAlignment, StartAlignments
from homeostat.probes.trust import Trust, TrustGroup, TrustRow, compare_trust

__all__ = [
    "Alignment",
    "Attack",
    "AttackRow",
    "Audit",
    "AuditEvent",
    "BestBudget",
    "BiasRow",
    "Budget",
    "CertificateRow",
    "Certificates",
    "Clip",
    "Difficulty",
    "Dynamics",
    "DynamicsRow",
    "Estimate",
    "Example",
    "ExampleCertificate",
    "ExampleDynamics",
    "ExampleLimit",
    "GradientBias",
    "HorizonCell",
    "HorizonTable",
    "Judge",
    "Limit",
    "LimitClasses",
    "LimitShares",
    "Reference",
    "StartAlignment",
    "StartAlignments",
    "Trust",
    "TrustGroup",
    "TrustRow",
    "Verdict",
    "align_starts",
    "attack",
    "audit",
    "certify",
    "classify_limits",
    "compare_trust",
    "cross_horizons",
    "gradient_bias",
    "measure_dynamics",
    "save_audits",
]
