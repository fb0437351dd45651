"""The networks of the package, by the kind of their configuration. A new one is one file and one line in each table."""

from typing import Annotated

from pydantic import Field

from homeostat.models.classifier import ClassifierConfig, ClassifierNet
from homeostat.models.graph import GraphConfig, GraphNet
from homeostat.models.matrix import MatrixConfig, MatrixNet
from homeostat.models.meta import MetaConfig, MetaNet
from homeostat.models.multiscale import MultiscaleConfig, MultiscaleNet
from homeostat.models.net import Net
from homeostat.models.recall import RecallConfig, RecallNet
from homeostat.models.recursive import RecursiveConfig, RecursiveNet
from homeostat.models.sequence import SequenceConfig, SequenceNet

ModelConfig = Annotated[
    RecallConfig
    | RecursiveConfig
    | MatrixConfig
    | ClassifierConfig
    | GraphConfig
    | MetaConfig
    | MultiscaleConfig
    | SequenceConfig,
    Field(discriminator="kind"),
]
"""Configuration of any network of the package; `kind` says which."""

NETS: dict[type, type[Net]] = {
    RecallConfig: RecallNet,
    RecursiveConfig: RecursiveNet,
    MatrixConfig: MatrixNet,
    ClassifierConfig: ClassifierNet,
    GraphConfig: GraphNet,
    MetaConfig: MetaNet,
    MultiscaleConfig: MultiscaleNet,
    SequenceConfig: SequenceNet,
}


def build_net(config: ModelConfig, *, name: str, trained_steps: int | None = None, damping: float = 1.0) -> Net:
    """The network that a configuration describes, with fresh weights.

    Example:
        >>> build_net(RecallConfig(spatial_dims=1, in_channels=1, classes=2, width=4), name="small").name
        'small'
    """
    return NETS[type(config)](config, name=name, trained_steps=trained_steps, damping=damping)  # type: ignore[call-arg]
