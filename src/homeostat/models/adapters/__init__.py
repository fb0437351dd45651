"""Adapters: other people's models, as models of five functions. Each says what a step is and what it costs."""

from homeostat.models.adapters.albert import albert
from homeostat.models.adapters.deep_thinking import DeepThinkingNet, load_deep_thinking
from homeostat.models.adapters.energy import EnergyModel, from_energy
from homeostat.models.adapters.hrm_text import hrm_text
from homeostat.models.adapters.loop_layers import LoopedLayers, loop_layers
from homeostat.models.adapters.perceiver import perceiver
from homeostat.models.adapters.reasoner import Reasoner, ReasonerConfig
from homeostat.models.adapters.reasoner_checkpoints import load_eqr, load_hrm, load_trm
from homeostat.models.adapters.recurrent_depth import RecurrentDepth, recurrent_depth
from homeostat.models.adapters.tiny_recursive_model import TinyRecursive, tiny_recursive_model
from homeostat.models.adapters.torchdeq import TorchDEQModel, from_torchdeq

__all__ = [
    "DeepThinkingNet",
    "EnergyModel",
    "LoopedLayers",
    "Reasoner",
    "ReasonerConfig",
    "RecurrentDepth",
    "TinyRecursive",
    "TorchDEQModel",
    "albert",
    "from_energy",
    "from_torchdeq",
    "hrm_text",
    "load_deep_thinking",
    "load_eqr",
    "load_hrm",
    "load_trm",
    "loop_layers",
    "perceiver",
    "recurrent_depth",
    "tiny_recursive_model",
]
