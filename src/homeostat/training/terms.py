"""What can be added to the loss of the task: a Jacobian penalty, and a path penalty of either sign.

Both are measured at the states that the training runs reach; their weights may follow a schedule.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from homeostat.engine.nest import flatten
from homeostat.errors import HomeostatError
from homeostat.training.data import Data

_WARM = 0.3
"""Share of the training over which `"warmup"` rises: that of the one-cycle learning rate."""


class _Term(Data):
    weight: float = Field(allow_inf_nan=False)
    schedule: Literal["constant", "linear", "warmup"] = "constant"
    """`"constant"`: the weight throughout. `"linear"`: from 0 to the weight over the whole training. `"warmup"`: from 0
    to the weight over the first 30 % of it."""

    def weight_at(self, progress: float) -> float:
        """The weight at a share `progress`, 0 to 1, of the training."""
        share = {"constant": 1.0, "linear": progress, "warmup": min(1.0, progress / _WARM)}[self.schedule]
        return self.weight * share


class JacobianTerm(_Term):
    """`weight * ||J||_F^2 / n` at the reached state, `homeostat.nn.jacobian_penalty`: a map that contracts.

    No gradient flows into the state. The signs of its estimate are drawn once for the rows of a process, so that a
    training with this term in two processes equals one in one process in expectation only.

    Example:
        >>> JacobianTerm(weight=0.5, schedule="linear").weight_at(0.5)
        0.25
    """

    weight: float = Field(gt=0, allow_inf_nan=False)


class PathPenalty(_Term):
    """`weight * p`, where p is small when runs of the same inputs from two starts end in the same state.

    A weight above 0 promotes path independence, one below 0 penalises it. For the flattened end states a and b of an
    example, n entries each, p is, in the mean over examples,

    * `"cosine"`: 1 - cos(a, b);
    * `"distance"`: |a - b|^2 / (|a|^2 + |b|^2), which is 0 only where they are equal, and at most 2;
    * `"dot"`: -<a, b> / n, which is unbounded unless the state is bounded.

    The loss of the task is that of the recipe's own run alone, so that the penalty is all that the other runs add. With
    n further runs a training step takes n + 1 times the evaluations: see `row_evaluations` in the training record.

    Source:
        Anil et al., "Path independent equilibrium models can better exploit test-time computation", NeurIPS 2022,
        arXiv 2211.09961, penalise with the scalar product of the fixed points that different noise starts lead to:
        `between="noises"` and a negative weight with `"dot"`, or `"cosine"` for its form without scale. They do not
        give the weight. Their networks that promote path independence use random starts and depths; the term with a
        positive weight is ours.

    Example:
        >>> one, other = [torch.tensor([[3.0, 0.0]])], [torch.tensor([[0.0, 4.0]])]
        >>> [PathPenalty(weight=1, measure=m).misalignment(one, other).item() for m in ("cosine", "distance", "dot")]
        [1.0, 1.0, -0.0]
    """

    measure: Literal["cosine", "distance", "dot"] = "cosine"
    between: Literal["start and noise", "noises"] = "start and noise"
    """The recipe's own run and one from noise, or two from noise."""
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Standard deviation of the noise, in units of the state."""

    @field_validator("weight")
    @classmethod
    def _says_something(cls, weight: float) -> float:
        if weight == 0:
            raise ValueError("weight 0 does nothing: above 0 promotes path independence, below 0 penalises it")
        return weight

    def misalignment(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """p of each example, `(batch,)`, from the measured leaves of two end states."""
        a, b = (torch.cat([leaf.flatten(1).float() for leaf in leaves], 1) for leaves in (first, second))
        dot = (a * b).sum(1)
        if self.measure == "dot":
            return -dot / a.shape[1]
        if self.measure == "distance":
            size = a.square().sum(1) + b.square().sum(1)
            return (a - b).square().sum(1) / size.clamp(min=torch.finfo(size.dtype).tiny)
        return 1 - torch.cosine_similarity(a, b, dim=1)


def measured_leaves(state: Any, name: str) -> list[Tensor]:
    """The leaves of a state that a penalty can look at.

    Raises:
        HomeostatError: there is nothing in them.
    """
    leaves, layout = flatten(state, "state")
    found = [leaves[i] for i in layout.measured()]
    if not any(leaf[0].numel() for leaf in found if len(leaf)):
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in found)
        raise HomeostatError(f"{name} has nothing to look at: the state is empty, with leaves of shape {shapes}")
    return found
