"""Probes: what a trained model does when it thinks longer."""

from homeostat.probes.attacks.attack import attack
from homeostat.probes.attacks.result import Attack, AttackRow
from homeostat.probes.audits.audit import AuditEvent, audit
from homeostat.probes.certificates.certify import certify
from homeostat.probes.certificates.result import CertificateRow, Certificates, ExampleCertificate
from homeostat.probes.comparison.compare import compare
from homeostat.probes.comparison.result import Comparison
from homeostat.probes.courses.condition import Condition
from homeostat.probes.courses.courses import Courses
from homeostat.probes.courses.follow import follow
from homeostat.probes.dynamics.measure import measure_dynamics
from homeostat.probes.dynamics.result import Dynamics, DynamicsRow, ExampleDynamics
from homeostat.probes.extra_steps.measure import extra_steps
from homeostat.probes.extra_steps.result import (
    ExtraSteps,
    FirstOrder,
    SignAgreement,
    StepsCurve,
    StepsRow,
    StepsVerdict,
)
from homeostat.probes.gradient_bias import BiasRow, GradientBias, Reference, gradient_bias
from homeostat.probes.horizons import BestBudget, HorizonCell, HorizonTable, cross_horizons
from homeostat.probes.judge import Judge
from homeostat.probes.limits.classify import classify_limits
from homeostat.probes.limits.result import ExampleLimit, Limit, LimitClasses, LimitShares
from homeostat.probes.results import Alignment, Audit, Budget, Clip, Difficulty, Estimate, Example, Verdict
from homeostat.probes.saving import save_audits
from homeostat.probes.starts.align import align_starts
from homeostat.probes.starts.result import StartAlignment, StartAlignments
from homeostat.probes.tokens.measure import measure_tokens
from homeostat.probes.tokens.next_tokens import NextTokens, next_tokens
from homeostat.probes.tokens.result import TokenBudget, TokenRow, TokenTable
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
    "Comparison",
    "Condition",
    "Courses",
    "Difficulty",
    "Dynamics",
    "DynamicsRow",
    "Estimate",
    "Example",
    "ExampleCertificate",
    "ExampleDynamics",
    "ExampleLimit",
    "ExtraSteps",
    "FirstOrder",
    "GradientBias",
    "HorizonCell",
    "HorizonTable",
    "Judge",
    "Limit",
    "LimitClasses",
    "LimitShares",
    "NextTokens",
    "Reference",
    "SignAgreement",
    "StartAlignment",
    "StartAlignments",
    "StepsCurve",
    "StepsRow",
    "StepsVerdict",
    "TokenBudget",
    "TokenRow",
    "TokenTable",
    "Trust",
    "TrustGroup",
    "TrustRow",
    "Verdict",
    "align_starts",
    "attack",
    "audit",
    "certify",
    "classify_limits",
    "compare",
    "compare_trust",
    "cross_horizons",
    "extra_steps",
    "follow",
    "gradient_bias",
    "measure_dynamics",
    "measure_tokens",
    "next_tokens",
    "save_audits",
]
