"""During training: alignment, the residual at twice the horizon, and limit classes, to whatever logger is in use."""

from homeostat.probes.callbacks.lightning import lightning_monitor
from homeostat.probes.callbacks.monitor import TrainingMonitor
from homeostat.probes.callbacks.observation import Observation, Reading
from homeostat.probes.callbacks.transformers import monitor_trainer

__all__ = ["Observation", "Reading", "TrainingMonitor", "lightning_monitor", "monitor_trainer"]
