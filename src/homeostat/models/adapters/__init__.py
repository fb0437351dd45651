"""Adapters: other people's models, as models of five functions. Each says what a step is and what it costs."""

from homeostat.models.adapters.torchdeq import TorchDEQModel, from_torchdeq

__all__ = ["TorchDEQModel", "from_torchdeq"]
