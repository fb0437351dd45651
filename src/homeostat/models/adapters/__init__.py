"""Adapters: other people's models, as models of five functions. Each says what a step is and what it costs."""

from homeostat.models.adapters.albert import albert
from homeostat.models.adapters.hrm_text import hrm_text
from homeostat.models.adapters.loop_layers import LoopedLayers, loop_layers
from homeostat.models.adapters.perceiver import perceiver
from homeostat.models.adapters.recurrent_depth import RecurrentDepth, recurrent_depth

__all__ = ["LoopedLayers", "RecurrentDepth", "albert", "hrm_text", "loop_layers", "perceiver", "recurrent_depth"]
