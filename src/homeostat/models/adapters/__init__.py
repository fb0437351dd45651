"""Adapters: other people's models, as models of five functions. Each says what a step is and what it costs."""

from homeostat.models.adapters.deep_thinking import DeepThinkingNet, load_deep_thinking
from homeostat.models.adapters.energy import EnergyModel, from_energy
from homeostat.models.adapters.reasoner import Reasoner, ReasonerConfig
from homeostat.models.adapters.reasoner_checkpoints import load_eqr, load_hrm, load_trm
from homeostat.models.adapters.tiny_recursive_model import TinyRecursive, tiny_recursive_model

__all__ = [
    "DeepThinkingNet",
    "EnergyModel",
    "Reasoner",
    "ReasonerConfig",
    "TinyRecursive",
    "from_energy",
    "load_deep_thinking",
    "load_eqr",
    "load_hrm",
    "load_trm",
    "tiny_recursive_model",
]
