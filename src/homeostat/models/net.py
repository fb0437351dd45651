"""What the package's own networks share: a name, a horizon, and steps that may go only part of the way."""

from abc import abstractmethod
from typing import Any

import torch
from torch import nn

from homeostat.engine.nest import flatten
from homeostat.errors import ContractError
from homeostat.models.contract import IteratedModel


class Net(nn.Module, IteratedModel):
    """A network of the package. A subclass says `encode`, `initial_state`, `update` and `decode`.

    With `damping` below 1 a step goes only that share of the way to the state that `update` gives: the fixed points
    stay the same, and a model that would swing between two states can settle. Training uses whole steps.
    """

    def __init__(self, *, name: str, trained_steps: int | None = None, damping: float = 1.0) -> None:
        super().__init__()
        self.name = name
        self.trained_steps = trained_steps
        self.damping = damping

    @abstractmethod
    def update(self, state: Any, context: Any) -> Any:
        """One whole step."""

    def projection(self, context: Any) -> Any:
        """The input in the shape of the state, for starts that begin with it: `start.like(state, projection)`.

        Raises:
            ContractError: this network has none.
        """
        raise ContractError(
            f"{type(self).__name__} has no projection of its input in the shape of its state; choose another start"
        )

    def step(self, state: Any, context: Any) -> Any:
        new = self.update(state, context)
        if self.damping == 1:
            return new
        old, layout = flatten(state, "state")
        leaves, _ = flatten(new, "state")
        for i in layout.measured():
            leaves[i] = torch.lerp(old[i], leaves[i], self.damping)
        return layout.build(leaves, marks=True)
