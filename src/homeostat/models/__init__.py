"""The contract, the reference model, and checkpoints."""

from homeostat.models.checkpoint import Checkpoint, CheckpointConfig, load, save, shipped
from homeostat.models.classifier import ClassifierConfig, ClassifierNet
from homeostat.models.contract import IteratedModel, as_model, from_functions
from homeostat.models.conv_inner import ConvInner
from homeostat.models.graph import GraphConfig, GraphNet
from homeostat.models.matrix import MatrixConfig, MatrixNet
from homeostat.models.meta import MetaConfig, MetaNet, MLPInner
from homeostat.models.multiscale import MultiscaleConfig, MultiscaleNet
from homeostat.models.net import Net
from homeostat.models.recall import RecallConfig, RecallNet
from homeostat.models.recursive import RecursiveConfig, RecursiveNet
from homeostat.models.registry import ModelConfig
from homeostat.models.sequence import SequenceConfig, SequenceNet
from homeostat.models.starts import Mixed, Noise, Own, Perturbed, Projection, Start, Zeros

__all__ = [
    "Checkpoint",
    "CheckpointConfig",
    "ClassifierConfig",
    "ClassifierNet",
    "ConvInner",
    "GraphConfig",
    "GraphNet",
    "IteratedModel",
    "MLPInner",
    "MatrixConfig",
    "MatrixNet",
    "MetaConfig",
    "MetaNet",
    "Mixed",
    "ModelConfig",
    "MultiscaleConfig",
    "MultiscaleNet",
    "Net",
    "Noise",
    "Own",
    "Perturbed",
    "Projection",
    "RecallConfig",
    "RecallNet",
    "RecursiveConfig",
    "RecursiveNet",
    "SequenceConfig",
    "SequenceNet",
    "Start",
    "Zeros",
    "as_model",
    "from_functions",
    "load",
    "save",
    "shipped",
]
