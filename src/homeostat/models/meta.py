"""A meta-learner of the package: a small network whose weights are where the learning of every task begins."""

import math
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from homeostat.bilevel import GradientDescent, MetaLearner
from homeostat.models.conv_inner import ConvInner
from homeostat.models.net import Net
from homeostat.models.starts import Start

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_CUT = 0.87962566103423978
"""Standard deviation of a standard normal distribution that is cut off at -2 and 2."""


class MLPInner(BaseModel):
    """A multilayer perceptron on each sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mlp"] = "mlp"
    inputs: int = Field(default=1, ge=1)
    outputs: int = Field(default=1, ge=1)
    widths: tuple[Annotated[int, Field(ge=1)], ...] = (40, 40)
    """Of the hidden layers."""
    activation: Literal["relu", "tanh"] = "relu"
    initialisation: Literal["uniform", "lecun-normal"] = "lecun-normal"
    """`uniform`: weights and biases between plus and minus 1 / sqrt(inputs), as `nn.Linear` has them. `lecun-normal`:
    weights normal with variance 1 / inputs, cut off at two standard deviations, and biases 0, as flax's `Dense` has
    them. With biases of 0 every unit of the first layer bends at x = 0, and sinusoids are learned more slowly."""

    classifies: ClassVar[bool] = False

    def build(self) -> nn.Module:
        """The module with fresh weights.

        Example:
            >>> MLPInner(widths=(4,)).build()
            Sequential(
              (0): Linear(in_features=1, out_features=4, bias=True)
              (1): ReLU()
              (2): Linear(in_features=4, out_features=1, bias=True)
            )
        """
        sizes = (self.inputs, *self.widths, self.outputs)
        parts: list[nn.Module] = []
        for before, after in pairwise(sizes):
            linear = nn.Linear(before, after)
            if self.initialisation == "lecun-normal":
                std = 1 / math.sqrt(before) / _CUT
                nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(linear.bias)
            parts += [linear, _ACTIVATIONS[self.activation]()]
        return nn.Sequential(*parts[:-1])


Inner = Annotated[MLPInner | ConvInner, Field(discriminator="kind")]
"""Configuration of the network that learns a task; `kind` says which."""


class MetaConfig(BaseModel):
    """What a `MetaNet` is made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["meta"] = "meta"
    inner: Inner = MLPInner()
    """The network that learns each task."""
    regulariser: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """lambda, the pull of a task's parameters towards where they began; what implicit gradients need."""
    step_size: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Of the inner gradient descent; None searches one for each task at every step."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of the parameters, and of all computing with them."""


class MetaNet(Net):
    """A `homeostat.bilevel.MetaLearner` that comes with its module: gradient descent on the mean squared error or,
    where the inner network classifies, on the cross-entropy.

    Inputs are `{"support_inputs": ..., "support_targets": ..., "query_inputs": ...}`, tasks first, then samples; the
    state is the flat vector of each task's parameters (with the step size beside it where that is searched), and the
    own start is the network's own weights. Logits of classes come as a `ClassificationTask` has them,
    `(batch, classes, queries)`.

    Example:
        >>> from homeostat.models import Own
        >>> from homeostat.tasks import Sinusoids
        >>> net = MetaNet(MetaConfig(step_size=0.1))
        >>> inputs, targets = Sinusoids().sample(10, 3, split="train", seed=0)
        >>> context = net.encode(inputs)
        >>> state = net.step(net.initial_state(context, Own()), context)
        >>> tuple(state.shape), tuple(net.decode(state, context).shape)
        ((3, 1761), (3, 10, 1))
    """

    def __init__(
        self, config: MetaConfig, *, name: str = "meta", trained_steps: int | None = None, damping: float = 1.0
    ) -> None:
        super().__init__(name=name, trained_steps=trained_steps, damping=damping)
        self.config = config
        module = config.inner.build().to(_DTYPES[config.dtype])
        self.learner = MetaLearner(
            module,
            loss=F.cross_entropy if config.inner.classifies else F.mse_loss,
            regulariser=config.regulariser,
            inner=GradientDescent(config.step_size),
        )

    def encode(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs in the dtype of the parameters.

        Raises:
            ContractError: pictures of another size than the network is made for.
        """
        if isinstance(self.config.inner, ConvInner):
            self.config.inner.check(inputs["support_inputs"])
            self.config.inner.check(inputs["query_inputs"])
        dtype = _DTYPES[self.config.dtype]
        return pytree.tree_map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, inputs)

    def initial_state(self, context: dict[str, Tensor], start: Start) -> Any:
        return self.learner.initial_state(context, start)

    def update(self, state: Any, context: dict[str, Tensor]) -> Any:
        return self.learner.step(state, context)

    def decode(self, state: Any, context: dict[str, Tensor]) -> Tensor:
        outputs = self.learner.decode(state, context)
        return outputs.movedim(-1, 1) if self.config.inner.classifies else outputs
