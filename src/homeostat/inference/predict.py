"""Answers for inputs that nobody has judged: with the steps each took, its residual and its status."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.engine import Carry, Picard, Shared, Solution, Status, Stop, solve
from homeostat.engine.nest import flatten
from homeostat.errors import InputError
from homeostat.inference.breadth import Breadth, widen
from homeostat.inference.guided import Guided
from homeostat.inference.policy import Policy
from homeostat.inference.stopped import Stopped
from homeostat.inference.stream import stream_of
from homeostat.models.contract import as_model
from homeostat.models.starts import own_start
from homeostat.probes.answers import judge_of
from homeostat.probes.courses.signals import AnswerReader
from homeostat.probes.courses.watched import bare_context, rows_of
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
            with a policy, STOPPED says that its conditions were met.
        row_evaluations: evaluations of `step` that all examples have taken together, over all starts.
        confidence: `(batch,)`: softmax probability of the least sure asked position; NaN where nothing says that
            outputs are logits.
        abstained: `(batch,)` bool: answers that the policy would not give; without one, those that did not converge.
        agreement: `(batch,)`, with several starts: share of the runs that end with this answer.
    """

    outputs: Any
    steps: Tensor
    residual: Tensor
    status: Tensor
    row_evaluations: int
    confidence: Tensor
    abstained: Tensor
    agreement: Tensor | None = None

    def __repr__(self) -> str:
        text = repr(Solution(None, self.steps, self.residual, self.status, self.row_evaluations))
        abstained = f"abstained: {int(self.abstained.sum())} of {len(self.abstained)}"
        return f"{text.replace('Solution', 'Prediction', 1)}\n  {abstained}"


def predict(
    model: Any,
    inputs: Any,
    *,
    stop: Stop | None = None,
    policy: Policy | None = None,
    breadth: Breadth | None = None,
    judge: Any = None,
    batch_size: int = _BATCH,
) -> Prediction:
    """Run a batch of inputs until each example stops, and decode.

    Args:
        model: anything with the functions of the contract, in evaluation mode.
        inputs: one batch, as the model's `encode` takes it.
        stop: tolerance and most steps. Or
        policy: what `fit_stopping` has made; examples that stop leave room for others, so that the batch stays full.
        breadth: several starts for each example, and how one answer is chosen among theirs. A policy's promise is for
            one start.
        judge: says how answers are read: needed by a policy that was fitted with one, and by breadth; the model's own
            object when None.
        batch_size: most rows that are iterated at once, with a policy.

    Raises:
        ContractError: a model that breaks the contract.
        PolicyError: a policy that was made for another model.
        InputError: neither `stop` nor `policy`, or both; nothing that says what breadth needs.

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
    whole_number("batch_size", batch_size)
    if policy is not None and not isinstance(policy, Policy):
        raise InputError(f"policy must be a Policy, such as hs.Policy.load('policy.json'), not {policy!r}")
    if stop is not None and policy is None:
        runner: _ByStop | _ByPolicy = _ByStop(model, stop, judge)
    elif policy is not None and stop is None:
        runner = _ByPolicy(model, policy, judge, batch_size)
    else:
        raise InputError("predict takes either stop=hs.Stop(...) or policy=hs.Policy.load(...)")
    agreement = None
    with torch.no_grad():
        context = runner.context(inputs)
        state = runner.model.initial_state(context["model"], own_start(rows_of(context)))
        if breadth is None:
            found = runs = runner.run(state, context)
        else:
            state = breadth.begin(state, lambda start: runner.model.initial_state(context["model"], start))
            runs = runner.run(state, widen(context, breadth.starts))
            chosen, agreement = breadth.choose_runs(runs, context["asked"])
            found = runs.rows(chosen * len(chosen) + torch.arange(len(chosen), device=chosen.device))
    abstained = found.abstained
    if breadth is not None and breadth.choose == "agreement" and agreement is not None:
        abstained = abstained | (agreement < breadth.least_agreement)
    return Prediction(
        found.outputs,
        found.steps,
        found.residual,
        found.status,
        int(runs.evaluations.sum()),
        found.confidence,
        abstained,
        agreement,
    )


class _ByStop:
    """Runs that stop by a tolerance."""

    def __init__(self, model: Any, stop: Stop, judge: Any) -> None:
        self.model, self._stop, self._judge = as_model(model), stop, judge_of(model, judge)

    def context(self, inputs: Any) -> dict[str, Any]:
        return {"model": self.model.encode(inputs), "asked": self._judge.asked_of(inputs)}

    def run(self, state: Any, context: dict[str, Any]) -> Stopped:
        done = solve(self.model.step, state, context["model"], method=Picard(), stop=self._stop)
        leaves, layout = flatten(done.state, "state")
        tree, bare = layout.build(leaves), bare_context(context)
        reader = AnswerReader.of(self.model.decode(tree, bare["model"]), self._judge)
        unsettled = done.status != int(Status.CONVERGED)
        return Stopped.at(self.model, reader, tree, bare, done.steps, done.steps, done.residual, done.status, unsettled)


class _ByPolicy:
    """Runs that stop by a policy."""

    def __init__(self, model: Any, policy: Policy, judge: Any, batch_size: int) -> None:
        self._guided, self._batch_size = Guided(model, policy, judge), batch_size
        self.model = self._guided.model

    def context(self, inputs: Any) -> dict[str, Any]:
        return self._guided.context(inputs)

    def run(self, state: Any, context: dict[str, Any]) -> Stopped:
        guided = self._guided
        begun = guided.map.start(state, context)
        rows = len(begun["taken"])
        if rows <= self._batch_size:
            done = solve(guided.map.step, begun, context, method=Picard(), stop=guided.map.stop, sync_every=1)
            return guided.read(done.state, context)
        starts = (_row_of(begun, "state", row) for row in range(rows))
        contexts = (_row_of(context, "context", row) for row in range(rows))
        stream = stream_of(guided, lambda _: next(starts), contexts, self._batch_size, refill=0.125)
        finished = sorted(((e.index, guided.read(e.state, e.context)) for e in stream), key=lambda pair: pair[0])
        return _stack([one for _, one in finished])


def _row_of(tree: Any, role: Any, row: int) -> Any:
    """One example of a state or context, with its marks."""
    leaves, layout = flatten(tree, role)
    chosen = []
    for leaf, kind, marked in zip(leaves, layout.kinds, layout.marked, strict=True):
        if kind == "shared":
            chosen.append(None if leaf is None else Shared(leaf))
        else:
            chosen.append(Carry(leaf[row : row + 1]) if marked else leaf[row : row + 1])
    return pytree.tree_unflatten(chosen, layout.spec)


def _stack(found: list[Stopped]) -> Stopped:
    def join(*parts: Any) -> Any:
        return torch.cat(parts)

    columns = {f.name: [getattr(one, f.name) for one in found] for f in fields(Stopped)}
    return Stopped(**{name: pytree.tree_map(join, *parts) for name, parts in columns.items()})
