"""Models that go down an energy: energy-based models, and diffusion-like ones, whose score is minus its gradient.

A step is `z <- z - step_size * grad E(z, x)`. It costs one gradient of the energy.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from homeostat.checks import is_number, plain_number
from homeostat.engine.nest import flatten
from homeostat.errors import ContractError
from homeostat.models.adapters.keyed_noise import fingerprints, mixed, normals
from homeostat.models.contract import IteratedModel, check_attributes
from homeostat.models.starts import Start


class EnergyModel(nn.Module, IteratedModel):
    """See `from_energy`."""

    _energy: Callable[[Any, Any], Any]
    _encode: Callable[[Any], Any]
    _initial_state: Callable[[Any], Any]
    _decode: Callable[[Any, Any], Any]

    def __init__(self, functions: dict[str, Callable[..., Any]], numbers: dict[str, float], seed: int) -> None:
        super().__init__()
        for name, function in functions.items():  # a module among them becomes a part of this one
            setattr(self, f"_{name}", function)
        self.step_size, self.damping = numbers["step_size"], numbers["damping"]
        self.temperature = numbers["temperature"]
        self.seed = seed
        self.stochastic = self.temperature > 0

    def encode(self, inputs: Any) -> Any:
        context = self._encode(inputs)
        return (context, fingerprints(inputs)) if self.stochastic else context

    def initial_state(self, context: Any, start: Start) -> Any:
        if not self.stochastic:
            return start.like(self._initial_state(context))
        context, keys = context
        for number in (self.seed, start.seed):
            keys = mixed(keys + number)
        if start.indices is not None:
            keys = mixed(keys + torch.tensor(start.indices, device=keys.device))
        return start.like((self._initial_state(context), keys))

    def step(self, state: Any, context: Any) -> Any:
        state, context, keys = self._parted(state, context)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                state, context = _recordable(state), _recordable(context)
                new = self._descended(state, context, record=False)
        else:
            new = self._descended(state, context, record=torch.is_grad_enabled() and self._learns(state, context))
        if keys is None:
            return new
        leaves, layout = flatten(new, "state")
        width = self.damping * math.sqrt(2 * self.step_size * self.temperature)
        for i in layout.measured():
            keys = mixed(keys + 1)
            leaves[i] = leaves[i] + width * normals(keys, leaves[i].shape[1:]).to(leaves[i].dtype)
        return layout.build(leaves, marks=True), keys

    def _descended(self, state: Any, context: Any, *, record: bool) -> Any:
        leaves, layout = flatten(state, "state")
        moving = layout.measured()
        with torch.enable_grad():
            for i in moving:
                if not (record and leaves[i].requires_grad):
                    leaves[i] = leaves[i].detach().requires_grad_()
            energy = self._checked(layout.build(leaves), context, len(leaves[0]))
            gradients = torch.autograd.grad(energy.sum(), [leaves[i] for i in moving], create_graph=record)
            for i, gradient in zip(moving, gradients, strict=True):
                leaves[i] = leaves[i] - self.damping * self.step_size * gradient
                leaves[i] = leaves[i] if record else leaves[i].detach()
        return layout.build(leaves, marks=True)

    def _checked(self, state: Any, context: Any, rows: int) -> Tensor:
        energy = self._energy(state, context)
        if not isinstance(energy, Tensor) or energy.shape != (rows,):
            found = tuple(energy.shape) if isinstance(energy, Tensor) else type(energy).__name__
            raise ContractError(f"energy(state, context) must return ({rows},), one number an example, not {found}")
        return energy

    def _learns(self, state: Any, context: Any) -> bool:
        leaves = [*pytree.tree_leaves(state), *pytree.tree_leaves(context), *self.parameters()]
        return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)

    def _parted(self, state: Any, context: Any) -> tuple[Any, Any, Tensor | None]:
        return (state[0], context[0], state[1]) if self.stochastic else (state, context, None)

    def decode(self, state: Any, context: Any) -> Any:
        state, context, _ = self._parted(state, context)
        return self._decode(state, context)

    def score(self, state: Any, context: Any) -> Tensor:
        """`(batch,)`: minus the energy."""
        state, context, _ = self._parted(state, context)
        return -self._checked(state, context, len(flatten(state, "state")[0][0]))


def _recordable(tree: Any) -> Any:
    """Tensors made under `inference_mode` as ones that autograd may keep."""
    copied = lambda leaf: leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf  # noqa: E731
    return pytree.tree_map(copied, tree)


def _same(inputs: Any) -> Any:
    return inputs


def _state(state: Any, context: Any) -> Any:
    return state


def from_energy(
    energy: Callable[[Any, Any], Tensor],
    *,
    initial_state: Callable[[Any], Any],
    step_size: float,
    encode: Callable[[Any], Any] = _same,
    decode: Callable[[Any, Any], Any] = _state,
    damping: float = 1.0,
    temperature: float = 0.0,
    seed: int = 0,
    trained_steps: int | None = None,
    name: str = "energy",
) -> EnergyModel:
    """A model that answers with what has little energy: `z <- z - step_size * grad E(z, x)`.

    With a `temperature` T above 0 a step is one of Langevin dynamics, which adds noise of standard deviation
    sqrt(2 * step_size * T). The noise is found from keys in the state, which come from the input, `seed`, and seed and
    index of the start: the same example gets the same noise in any batch, and `stochastic` says that there is some.
    The state is then a pair (own state, keys).

    Steps work under `no_grad` and `inference_mode`, and then return states without a graph. With gradients on, a step
    keeps its graph where its state, its context or a parameter asks for it, so that a model can be trained through
    it; parameters are found in `energy`, `encode` and `decode` that are modules, not in closures.

    Args:
        energy: `(state, context) -> (batch,)`, differentiable in the state; an example's energy must not depend on the
            other ones.
        initial_state: `context -> state`.
        step_size: how far a step goes along the gradient.
        encode: `inputs -> context`; the inputs themselves if not given.
        decode: `(state, context) -> outputs`; the state itself if not given.
        damping: share of a step that is taken, of its noise too.
        temperature: of the noise; 0: none.
        seed: of the noise.
        trained_steps: most steps that training took.
        name: what reports call it.

    Returns:
        A model whose `score` is minus the energy and whose `unit_cost` is 1, for the one gradient of a step.

    Raises:
        ContractError: a number that makes no sense, or something that cannot be called.

    Source:
        Energy-based reasoning as iterated optimisation: Du et al., "Learning iterative reasoning through energy
        minimization", ICML 2022. Langevin dynamics: Welling and Teh, ICML 2011.

    Example:
        >>> model = from_energy(lambda z, x: ((z - x) ** 2).sum(1), initial_state=torch.zeros_like, step_size=0.25)
        >>> from homeostat.models import Own
        >>> x = torch.tensor([[4.0]])
        >>> model.step(model.initial_state(x, Own()), x)  # 0 - 0.25 * 2 * (0 - 4)
        tensor([[2.]])
    """
    functions = {"energy": energy, "encode": encode, "initial_state": initial_state, "decode": decode}
    for key, function in functions.items():
        if not callable(function):
            raise ContractError(f"{key} must be a function, not {function!r}")
    limits = {"step_size": (step_size, math.inf), "damping": (damping, 1.0), "temperature": (temperature, math.inf)}
    for key, (value, most) in limits.items():
        number = is_number(value) and math.isfinite(value)
        least_fits = number and (value >= 0 if key == "temperature" else value > 0)
        if not least_fits or value > most:
            wanted = {"step_size": "above 0", "damping": "above 0 and at most 1", "temperature": "0 or above"}[key]
            raise ContractError(f"{key} must be a finite number {wanted}, not {value!r}")
    check_attributes(trained_steps)
    model = EnergyModel(functions, {key: float(value) for key, (value, _) in limits.items()}, seed)
    model.name, model.trained_steps = name, plain_number(trained_steps)
    return model
