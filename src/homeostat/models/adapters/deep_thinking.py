"""Deep-thinking nets (Schwarzschild et al. 2021; Bansal et al., NeurIPS 2022), in one and two dimensions.

A step is one application of the recurrent block: a convolution of thought and input together, for nets with recall,
and two residual blocks of two convolutions. It costs 1 cell evaluation.

Names of the tensors, after `module.`, which data parallelism puts before them:

    projection.0.weight                       (width, channels, 3) or (width, channels, 3, 3)
    recur_block.0.weight                      (width, width + channels, …), for nets with recall
    recur_block.i.j.conv1.weight, .conv2.…    residual block j = 0, 1, …; i is 2 in one dimension with recall, where a
                                              ReLU follows the convolution of thought and input, 1 in two dimensions
                                              with recall, where none does, and 0 without recall
    head.0.weight, head.2.weight, head.4.weight

The repository saves a dict with this state dict under `net`. Group normalisation has no weights there, so that a state
dict does not tell of it: say `group_norm=True` for the `_gn_` nets.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from homeostat.checks import plain_number
from homeostat.errors import CheckpointError, ContractError
from homeostat.models.adapters.foreign_weights import fit, read_file, tensors_of
from homeostat.models.contract import IteratedModel, check_attributes
from homeostat.models.starts import Start

_GROUPS = 4


class _Residual(nn.Module):
    """`relu(x + norm(conv2(relu(norm(conv1(x))))))`."""

    def __init__(self, convolution: Any, width: int, group_norm: bool) -> None:
        super().__init__()
        self.conv1 = convolution(width, width, 3, padding=1, bias=False)
        self.conv2 = convolution(width, width, 3, padding=1, bias=False)
        self.group_norm = group_norm

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self._normed(self.conv2(F.relu(self._normed(self.conv1(x))))))

    def _normed(self, x: Tensor) -> Tensor:
        return F.group_norm(x, _GROUPS) if self.group_norm else x


class DeepThinkingNet(nn.Module, IteratedModel):
    """Inputs `(batch, channels, length)` or `(batch, channels, height, width)` to logits `(batch, 2, …)`.

    The context is the input; the state is the thought `(batch, width, …)`, which starts as the projection of the input.

    Args:
        dims: 1 or 2.
        channels: of the input.
        width: of the thought.
        head: channels of the first two convolutions of the head; None: those of the repository.
        blocks: residual blocks.
        recall: whether every step sees the input again.
        group_norm: whether the residual blocks are normalised, in 4 groups.
        trained_steps: `max_iters` of the training.
        name: what reports call it.

    Example:
        >>> net = DeepThinkingNet(dims=1, channels=1, width=8, trained_steps=30)
        >>> from homeostat.models import Own
        >>> x = torch.rand(2, 1, 20) - 0.5
        >>> tuple(net.decode(net.step(net.initial_state(x, Own()), x), x).shape)
        (2, 2, 20)
        >>> net.light_cone(40)  # the first steps reach 9, 14, 19, … positions far
        8
    """

    def __init__(
        self,
        *,
        dims: int,
        channels: int,
        width: int,
        head: tuple[int, int] | None = None,
        blocks: int = 2,
        recall: bool = True,
        group_norm: bool = False,
        trained_steps: int | None = None,
        name: str = "deep-thinking",
    ) -> None:
        super().__init__()
        if dims not in (1, 2) or min(channels, width, blocks) < 1:
            raise ContractError(
                f"dims must be 1 or 2, channels, width and blocks above 0, not {dims}, {channels}, {width}, {blocks}"
            )
        if group_norm and width % _GROUPS:
            raise ContractError(f"group_norm needs a width that {_GROUPS} divides, not {width}")
        check_attributes(trained_steps)
        self.name, self.trained_steps, self.recall, self.blocks = name, plain_number(trained_steps), recall, blocks
        convolution = nn.Conv1d if dims == 1 else nn.Conv2d

        def layer(inputs: int, outputs: int) -> nn.Module:
            return convolution(inputs, outputs, 3, padding=1, bias=False)

        residual = nn.Sequential(*(_Residual(convolution, width, group_norm) for _ in range(blocks)))
        before = [layer(width + channels, width), *([nn.ReLU()] if dims == 1 else [])] if recall else []
        first, second = head or ((width, width // 2) if dims == 1 else (32, 8))
        self.projection = nn.Sequential(layer(channels, width), nn.ReLU())
        self.recur_block = nn.Sequential(*before, residual)
        self.head = nn.Sequential(layer(width, first), nn.ReLU(), layer(first, second), nn.ReLU(), layer(second, 2))

    def encode(self, inputs: Tensor) -> Tensor:
        return inputs

    def initial_state(self, context: Tensor, start: Start) -> Any:
        projection = self.projection(context)
        return start.like(projection, lambda: projection)

    def step(self, state: Tensor, context: Tensor) -> Tensor:
        return self.recur_block(torch.cat([state, context], 1) if self.recall else state)

    def decode(self, state: Tensor, context: Tensor) -> Tensor:
        """Logits `(batch, 2, …)` of both classes at every position."""
        return self.head(state)

    def light_cone(self, span: int) -> int:
        """A step reaches one position per convolution; the projection adds 1 and the head 3."""
        return max(0, -(-(span - 4) // (2 * self.blocks + self.recall)))

    def answers(self, outputs: Tensor) -> Tensor:
        """`(batch, …)`: the class of every position."""
        return outputs.argmax(1)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)` bool: every position is right. Targets are classes `(batch, …)`."""
        return (self.answers(outputs) == targets).flatten(1).all(1)

    def symbols(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`(batch,)`: share of the positions that are right."""
        return (self.answers(outputs) == targets).flatten(1).float().mean(1)


def load_deep_thinking(
    path: str | os.PathLike[str],
    *,
    trained_steps: int | None = None,
    group_norm: bool = False,
    device: str | torch.device = "cpu",
    name: str = "deep-thinking",
) -> DeepThinkingNet:
    """A `dt_net_…` of the deep-thinking repository; dimensions, width, channels, blocks and recall are told by shapes.

    Args:
        path: the file that training saved.
        trained_steps: `max_iters` of the training, 30 in the repository's configurations; no file tells it.
        group_norm: whether it is one of the `_gn_` nets.
        device: where to put it.
        name: what reports call it.

    Raises:
        CheckpointError: it cannot be read safely, or is no such net.
    """
    path = Path(path)
    found = read_file(path)
    if isinstance(found, Mapping) and isinstance(found.get("net"), Mapping):
        found = found["net"]
    tensors = tensors_of(found, path, drop=("module",))
    projection, block = tensors.get("projection.0.weight"), tensors.get("recur_block.0.weight")
    heads = [tensors.get(f"head.{i}.weight") for i in (0, 2)]
    if projection is None or projection.ndim not in (3, 4) or any(one is None or one.ndim < 1 for one in heads):
        raise CheckpointError(f"{path} has no projection.0.weight and head, and is no deep-thinking net")
    width, channels = projection.shape[:2]
    blocks = {key.split(".")[2] for key in tensors if key.startswith("recur_block.") and ".conv1." in key}
    try:
        net = DeepThinkingNet(
            dims=projection.ndim - 2,
            channels=channels,
            width=width,
            head=tuple(len(one) for one in heads if one is not None),  # type: ignore[arg-type]
            blocks=len(blocks),
            recall=block is not None,
            group_norm=group_norm,
            trained_steps=trained_steps,
            name=name,
        )
    except ContractError as error:
        raise CheckpointError(f"{path}: {error}") from error
    fit(net, tensors, path, f"a deep-thinking net of width {width}")
    return net.to(device).eval()
