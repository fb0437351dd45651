"""Answers for inputs that nobody has judged: with the steps each took, its residual and its status."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.engine import Picard, Shared, Solution, Stop, solve
from homeostat.engine.nest import Layout, flatten
from homeostat.errors import InputError
from homeostat.inference.guided import Guided, Stopped
from homeostat.inference.policy import Policy
from homeostat.inference.stream import stream_of
from homeostat.models.contract import as_model
from homeostat.models.starts import Own
from homeostat.probes.courses.watched import bare_context
from homeostat.probes.examples import whole_number

_BATCH = 256


@dataclass(frozen=True, repr=False)
class Prediction:
    """Outputs of one batch and how the iteration went, by example.

    Attributes:
        outputs: what the model's `decode` gives.
        steps: `(batch,)` int64.
        residual: `(batch,)`, relative residual of the last step, RMS(f(z) - z) / RMS(f(z)).
        status: `(batch,)` int8 of `Status`. Anything but CONVERGED is an answer read while the state was still moving;
            with a policy, one for which its conditions were not met.
        row_evaluations: evaluations of `step` times the rows in each.
        confidence: `(batch,)`, with a policy: softmax probability of the least sure asked position; NaN where outputs
            are no logits.
        abstained: `(batch,)` bool, with a policy: whether it would not give this answer.
    """

    outputs: Any
    steps: Tensor
    residual: Tensor
    status: Tensor
    row_evaluations: int
    confidence: Tensor | None = None
    abstained: Tensor | None = None

    def __repr__(self) -> str:
        text = repr(Solution(None, self.steps, self.residual, self.status, self.row_evaluations))
        text = text.replace("Solution", "Prediction", 1)
        if self.abstained is not None:
            text += f"\n  abstained: {int(self.abstained.sum())} of {len(self.abstained)}"
        return text


def predict(
    model: Any,
    inputs: Any,
    *,
    stop: Stop | None = None,
    policy: Policy | None = None,
    judge: Any = None,
    batch_size: int = _BATCH,
) -> Prediction:
    """Run a batch of inputs until each example stops, and decode.

    Args:
        model: anything with the functions of the contract, in evaluation mode.
        inputs: one batch, as the model's `encode` takes it.
        stop: tolerance and most steps. Or
        policy: what `fit_stopping` has made; runs in a batch that stays full.
        judge: reads answers where the policy was fitted with one; the model's own object when None.
        batch_size: most examples that are iterated at once, with a policy.

    Raises:
        ContractError: a model that breaks the contract.
        PolicyError: a policy that was made for another model.
        InputError: neither `stop` nor `policy`, or both.

    Example:
        >>> import torch, homeostat as hs
        >>> heron = hs.from_functions(
        ...     encode=lambda x: x,
        ...     initial_state=lambda x: torch.ones_like(x),
        ...     step=lambda z, x: 0.5 * (z + x / z),
        ...     decode=lambda z, x: z,
        ... )
        >>> found = hs.predict(heron, torch.tensor([[4.0], [9.0]]), stop=hs.Stop(rtol=1e-5, max_steps=20))
        >>> found.outputs.T, found.steps
        (tensor([[2., 3.]]), tensor([5, 6]))
    """
    if (stop is None) == (policy is None):
        raise InputError("predict takes either stop=hs.Stop(...) or policy=hs.Policy.load(...)")
    whole_number("batch_size", batch_size)
    with torch.no_grad():
        if policy is not None:
            return _by_policy(Guided(model, policy, judge), inputs, batch_size)
        assert stop is not None
        iterated = as_model(model)
        context = iterated.encode(inputs)
        start = iterated.initial_state(context, Own())
        solution = solve(iterated.step, start, context, method=Picard(), stop=stop)
        leaves, layout = flatten(solution.state, "state")
        outputs = iterated.decode(layout.build(leaves), bare_context(context))
    return Prediction(outputs, solution.steps, solution.residual, solution.status, solution.row_evaluations)


def _by_policy(guided: Guided, inputs: Any, batch_size: int) -> Prediction:
    context = guided.context(inputs)
    leaves, layout = flatten(context, "context")
    rows = next((len(x) for x, kind in zip(leaves, layout.kinds, strict=True) if kind != "shared"), 0)
    if rows <= batch_size:
        solution = solve(
            guided.map.step, guided.start(context), context, method=Picard(), stop=guided.map.stop, sync_every=1
        )
        return _prediction(guided.read(solution.state, context), solution.row_evaluations * guided.row_cost)
    stream = stream_of(guided, (_row(leaves, layout, i) for i in range(rows)), batch_size, refill=0.125)
    found: list[Any] = [None] * rows
    for example in stream:
        found[example.index] = guided.read(example.state, example.context)
    return _prediction(_stack(found), stream.row_evaluations * guided.row_cost)


def _row(leaves: list[Any], layout: Layout, row: int) -> Any:
    """The context of one example."""
    chosen = [
        (Shared(x) if x is not None else None) if kind == "shared" else x[row : row + 1]
        for x, kind in zip(leaves, layout.kinds, strict=True)
    ]
    return pytree.tree_unflatten(chosen, layout.spec)


def _stack(found: list[Stopped]) -> Stopped:
    def join(parts: list[Any]) -> Any:
        return pytree.tree_map(lambda *leaves: torch.cat(leaves), *parts)

    return Stopped(**{name: join([getattr(one, name) for one in found]) for name in Stopped.__dataclass_fields__})


def _prediction(found: Stopped, row_evaluations: int) -> Prediction:
    return Prediction(
        found.outputs,
        found.steps,
        found.residual,
        found.status,
        row_evaluations,
        found.confidence,
        found.abstained,
    )
