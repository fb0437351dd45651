"""Adapters: other people's models, as models of five functions. Each says what a step is and what it costs."""

from homeostat.models.adapters.reasoner import Reasoner, ReasonerConfig
from homeostat.models.adapters.reasoner_checkpoints import load_eqr, load_hrm, load_trm
from homeostat.models.adapters.tiny_recursive_model import TinyRecursive, tiny_recursive_model

__all__ = [
    "Reasoner",
    "ReasonerConfig",
    "TinyRecursive",
    "load_eqr",
    "load_hrm",
    "load_trm",
    "tiny_recursive_model",
]
