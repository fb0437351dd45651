"""A cell on graphs: what an edge knows of its input reaches its answer through the nodes alone."""

import warnings
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from homeostat.errors import InputError
from homeostat.models.net import Net
from homeostat.models.starts import Start
from homeostat.tasks import EdgeCopy


class GraphConfig(BaseModel):
    """Sizes of a `GraphNet`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["graph"] = "graph"
    features: int = Field(ge=1, le=256)
    """Numbers on an edge, in and out."""
    identifiers: int = Field(ge=1, le=1024)
    """Numbers on a node."""
    width: int = Field(default=64, ge=1, le=4096)
    """Numbers in the state of a node: all edges that meet there have to pass through it."""
    memory: int = Field(default=3, ge=1, le=256)
    """Numbers that an edge keeps from step to step beside its answer."""

    @classmethod
    def of(cls, task: EdgeCopy, *, width: int = 64, memory: int = 3) -> "GraphConfig":
        """Sizes that fit a task.

        Example:
            >>> GraphConfig.of(EdgeCopy())
            GraphConfig(kind='graph', features=1, identifiers=16, width=64, memory=3)
        """
        return cls(features=task.features, identifiers=task.identifiers, width=width, memory=memory)


class GraphNet(Net):
    """Graphs `{"edges": (b, 2, e), "features": (b, e, d), "nodes": (b, n, k)}` to answers `(b, e, d)`, any n and e.

    The state holds the answer y of every edge and a memory m, `(b, e, d + memory)`; the own start is zeros. With x the
    features, p the encoded node identifiers and learned linear maps without bias, one step is

        h <- GINEConv(p, [x - y, m]) - GINEConv(p, 0)        what the nodes hear, `(b, n, width)`
        r <- R (G(p)[source] * h[target])                    what each edge reads from its two nodes
        y <- y + B m + r,   m <- A m + r'                    both clamped to -1 to 1

    The convolution is that of PyTorch Geometric (Hu et al. 2020, arXiv 1905.12265) with the mean over incoming edges
    and one linear map behind it: target node j takes the mean of relu(p[source] + W [x - y, m]). Its value for silent
    edges is subtracted, so that y = x, m = 0 is always a fixed point, as in the residual form of an iterative solver;
    whether iteration leads there, and at what pace, is what training has to find.

    An edge sees its own feature only in what it tells its target node, never in what it reads. A node has `width`
    numbers for all of its incoming edges, whose sources it tells apart by their identifiers p: G(p) takes out of h
    what belongs to this source. Where edges outnumber what a node can hold apart, one step leaves an error, of which
    the next step hears. Two edges with the same source and target cannot be told apart.

    Raises:
        InputError: PyTorch Geometric is not installed.

    Example:
        >>> from homeostat.models import Own
        >>> net = GraphNet(GraphConfig.of(EdgeCopy(), width=8))
        >>> context = net.encode(EdgeCopy().sample(5, 4, split="train", seed=0).inputs)
        >>> state = net.step(net.initial_state(context, Own()), context)
        >>> tuple(state.shape), tuple(net.decode(state, context).shape)
        ((4, 25, 4), (4, 25, 1))
    """

    def __init__(
        self, config: GraphConfig, *, name: str = "graph", trained_steps: int | None = None, damping: float = 1.0
    ) -> None:
        super().__init__(name=name, trained_steps=trained_steps, damping=damping)
        self.config = config
        width, kept = config.width, config.features + config.memory
        self.identify = nn.Linear(config.identifiers, width)
        self.tell = nn.Linear(kept, width, bias=False)
        self.convolution = _gine_conv()(nn.Linear(width, width, bias=False), aggr="mean")
        self.gate = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.read = nn.Linear(width, kept, bias=False)
        # What an edge keeps: the memory decays at first, and does not move the answer.
        self.keep = nn.Linear(config.memory, kept, bias=False)
        with torch.no_grad():
            self.keep.weight.zero_()
            self.keep.weight[config.features :].copy_(0.5 * torch.eye(config.memory))

    def encode(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        identities = self.identify(inputs["nodes"])
        rows, edges, _ = inputs["features"].shape
        silent = inputs["features"].new_zeros(rows, edges, self.config.width)
        return {
            "edges": inputs["edges"],
            "features": inputs["features"],
            "identities": identities,
            "silence": self._convolve(identities, inputs["edges"], silent),
            "gate": self.gate(identities),
        }

    def initial_state(self, context: dict[str, Tensor], start: Start) -> Any:
        rows, edges, _ = context["features"].shape
        return start.like(context["features"].new_zeros(rows, edges, self.config.features + self.config.memory))

    def update(self, state: Tensor, context: dict[str, Tensor]) -> Tensor:
        answer, memory = state.split([self.config.features, self.config.memory], dim=2)  # (b e d), (b e m)
        told = self.tell(torch.cat([context["features"] - answer, memory], dim=2))
        heard = self._convolve(context["identities"], context["edges"], told) - context["silence"]  # (b n w)
        sources, targets = context["edges"].unbind(1)
        read = self.read(_rows(context["gate"], sources) * _rows(heard, targets))
        kept = self.keep(memory) + torch.cat([answer, torch.zeros_like(memory)], dim=2)
        return (kept + read).clamp(-1, 1)

    def decode(self, state: Tensor, context: dict[str, Tensor]) -> Tensor:
        return state[..., : self.config.features]

    def _convolve(self, nodes: Tensor, edges: Tensor, told: Tensor) -> Tensor:
        """One convolution over all graphs of a batch as one graph without edges between them: `(b, n, width)`."""
        rows, count, width = nodes.shape
        shift = count * torch.arange(rows, device=edges.device)[:, None, None]
        joined = (edges + shift).transpose(0, 1).reshape(2, -1)
        return self.convolution(nodes.reshape(-1, width), joined, told.reshape(-1, width)).view(rows, count, width)


def _rows(nodes: Tensor, index: Tensor) -> Tensor:
    """The node features `(b, n, w)` at `index` `(b, e)`: `(b, e, w)`."""
    return nodes.gather(1, index[..., None].expand(-1, -1, nodes.shape[2]))


def _gine_conv() -> Any:
    """PyTorch Geometric's `GINEConv`, imported when a network needs it: it is an optional extra, and takes seconds."""
    with warnings.catch_warnings():
        # It compiles parts of itself with torch.jit.script, which PyTorch 2.13 calls deprecated.
        warnings.filterwarnings("ignore", message=r"`torch\.jit", category=DeprecationWarning)
        try:
            from torch_geometric.nn import GINEConv
        except ImportError:
            raise InputError(
                "graph networks need PyTorch Geometric, which is not installed: pip install 'homeostat[graphs]'"
            ) from None
    return GINEConv
