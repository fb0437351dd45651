"""A moving average of the weights, which often answers better than the weights of the last step."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Average:
    """Exponential moving average of a model's parameters: `average <- d * average + (1 - d) * parameters`.

    `d = min(decay, (1 + t) / (10 + t))` after training step t, so that the first weights, which have learned nothing,
    are forgotten in a short training too. Buffers are those of the last step. The average is kept in float32 at least.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> average = Average(model, decay=0.5)
        >>> for value in (1.0, 2.0, 2.0):
        ...     _ = nn.init.constant_(model.weight, value)
        ...     average.update(model)
        >>> round(average.model.weight.item(), 4)  # 0.25 * (0.1818 * 1 + 0.8182 * 2) + 0.75 * 2
        1.9545
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        def blend(average: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
            step = int(count)
            share = min(decay, (1 + step) / (10 + step))
            return torch.lerp(new.to(average.dtype), average, share)

        self._averaged = AveragedModel(model, avg_fn=blend)
        for parameter in self._averaged.module.parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()

    @property
    def model(self) -> nn.Module:
        """A copy of the model with the averaged weights."""
        return self._averaged.module

    def update(self, model: nn.Module) -> None:
        """Take in the weights after a training step."""
        self._averaged.update_parameters(model)

    def tensors(self) -> dict[str, Tensor]:
        """All there is to know."""
        return dict(self._averaged.state_dict())

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Bring the average back to what `tensors` gave."""
        self._averaged.load_state_dict(dict(tensors))
