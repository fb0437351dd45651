"""`measure_tokens`: accuracy, loss, residual and the step that gets it right, by the place of a token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homeostat.engine.norms import residuals
from homeostat.engine.problem import Problem
from homeostat.errors import ContractError, InputError
from homeostat.models.contract import IteratedModel, as_model
from homeostat.models.starts import Own
from homeostat.probes import estimates
from homeostat.probes.examples import ExampleBatch, Examples, batches_of, evaluating, groups_of, whole_number
from homeostat.probes.results import Estimate
from homeostat.probes.tokens.next_tokens import right_tokens, token_losses
from homeostat.probes.tokens.result import TokenBudget, TokenRow, TokenTable
from homeostat.tasks.base import IGNORE


def measure_tokens(
    model: Any,
    examples: Examples | Mapping[str, Examples],
    *,
    steps: Sequence[int],
    bins: int = 8,
    token_states: bool | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> TokenTable:
    """Run a language model and look at its answers token by token.

    Tokens of one sequence are not independent, so intervals are over sequences: of accuracy Wilson's, with the
    effective count of clustered tokens; of the loss a bootstrap of whole sequences; medians are those of sequences.

    Args:
        model: outputs are logits `(batch, vocabulary, length)`, as every adapter of a language model gives.
        examples: batches `(inputs, targets)`, or several such iterables by name; targets `(batch, length)` int64,
            `IGNORE` (-100) where no token is asked (see `next_tokens`).
        steps: budgets.
        bins: sequences are cut into so many stretches of places, as equal as can be; each is a row.
        token_states: whether every measured leaf of the state is `(batch, length, …)`, so that there is a residual per
            token; what the model says (`token_states`) when None, and where it says nothing, yes.
        seed: of the model's own start, where it draws one, and of the bootstrap.
        device: where to run; that of the model's parameters when None.

    Returns:
        A `TokenTable`: print it.

    Raises:
        InputError: no examples, impossible budgets, targets that are no tokens.
        ContractError: a model that breaks the contract, or whose state has no parts that belong to tokens.

    Example:
        >>> import homeostat as hs
        >>> table = torch.eye(5)
        >>> slow = hs.from_functions(  # says the token before, and at the third step and later the token itself
        ...     encode=lambda ids: torch.stack([table[ids], table[ids.roll(1, 1)]], -1),
        ...     initial_state=lambda both: torch.zeros_like(both[..., 0]),
        ...     step=lambda z, both: z + both[..., 0] / 2,
        ...     decode=lambda z, both: (z + 1.2 * both[..., 1]).movedim(-1, 1),
        ... )
        >>> ids = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]])
        >>> found = measure_tokens(slow, [(ids, ids)], steps=[1, 3], bins=1)
        >>> [budget.accuracy.value for budget in found.rows[0].budgets], found.rows[0].first_right.value
        ([0.0, 1.0], 3.0)
    """
    budgets = sorted({whole_number("steps", step) for step in steps})
    if not budgets:
        raise InputError("steps must be budgets, such as [1, 4, 16], not an empty list")
    bins = whole_number("bins", bins, most=100_000)
    iterated = as_model(model, where="the model")
    by_token = getattr(model, "token_states", True) if token_states is None else token_states
    rows: list[TokenRow] = []
    evaluations = failed = 0
    with evaluating(model, device) as place, torch.no_grad():
        for name, batches in groups_of(examples).items():
            collected = _Collected()
            for batch in batches_of(name, batches, place):
                failed += _one_batch(iterated, batch, budgets, by_token, seed, collected)
                evaluations += batch.rows * budgets[-1]
            rows += _rows_of(name, collected, budgets, bins, seed)
    note = "" if by_token else "residual: the state has no parts that belong to tokens."
    return TokenTable(
        iterated.name, iterated.trained_steps, iterated.unit_cost, seed, failed, tuple(rows), evaluations, note
    )


@dataclass
class _Collected:
    """Arrays `(sequences, length)` of every batch, and `(sequences, budgets, length)`."""

    asked: list[np.ndarray] = field(default_factory=list)
    first: list[np.ndarray] = field(default_factory=list)  # infinite where never right
    right: list[np.ndarray] = field(default_factory=list)
    loss: list[np.ndarray] = field(default_factory=list)
    residual: list[np.ndarray] = field(default_factory=list)


def _one_batch(
    model: IteratedModel, batch: ExampleBatch, budgets: Sequence[int], by_token: bool, seed: int, into: _Collected
) -> int:
    """Follow one batch; returns how many of its sequences were not finite at the end."""
    context = model.encode(batch.inputs)
    problem = Problem.of(model.step, model.initial_state(context, Own().seeded(seed, batch.indices)), context)
    measured, state, targets = problem.layout.measured(), problem.state, batch.targets
    shape = targets.shape if isinstance(targets, Tensor) else None
    if shape is None or len(shape) != 2:
        what = f"shape {tuple(shape)}" if shape is not None else f"a {type(targets).__name__}"
        raise InputError(f"targets must be tokens of shape (batch, length), not {what}")
    for i in measured if by_token else ():
        if state[i].shape[:2] != shape:
            raise ContractError(
                f"{problem.layout.names[i]} has shape {tuple(state[i].shape)}, not one entry a token, {tuple(shape)}; "
                "say token_states=False: residuals are then not measured"
            )
    first = torch.full(shape, float("inf"), device=targets.device)
    kept: dict[str, list[Tensor]] = {"right": [], "loss": [], "residual": []}
    fine = torch.ones(len(targets), dtype=torch.bool, device=targets.device)
    bound = problem.bind(problem.context)
    for step in range(1, budgets[-1] + 1):
        before, state = state, bound(state)
        outputs = model.decode(problem.layout.build(state), problem.context_layout.build(problem.context))
        fine = torch.stack([state[i].isfinite().flatten(1).all(1) for i in measured]).all(0)
        right = right_tokens(outputs, targets) & fine[:, None]
        first = torch.where(right & first.isinf(), float(step), first)
        if step not in budgets:
            continue
        kept["right"].append(right)
        kept["loss"].append(token_losses(outputs, targets).masked_fill(~fine[:, None], float("nan")))
        if by_token:
            old, new = ([leaves[i].flatten(0, 1) for i in measured] for leaves in (before, state))
            relative = residuals(old, new)[2].view(shape)
            kept["residual"].append(relative.nan_to_num(nan=float("inf")))
    into.asked.append((targets != IGNORE).cpu().numpy())
    into.first.append(first.cpu().numpy())
    for name, values in kept.items():
        if values:
            getattr(into, name).append(torch.stack(values, 1).cpu().numpy())
    return int((~fine).sum())


def _rows_of(name: str, found: _Collected, budgets: Sequence[int], bins: int, seed: int) -> list[TokenRow]:
    length = max(asked.shape[1] for asked in found.asked)

    def joined(parts: list[np.ndarray], fill: Any) -> np.ndarray:
        """Sequences of all lengths as one array; what is not there is not asked."""
        wide = [np.concatenate([p, np.full((*p.shape[:-1], length - p.shape[-1]), fill, p.dtype)], -1) for p in parts]
        return np.concatenate(wide)

    asked, first = joined(found.asked, False), joined(found.first, np.inf)
    right, loss = joined(found.right, False), joined(found.loss, 0)
    residual = joined(found.residual, np.inf) if found.residual else None
    rows = []
    for places in np.array_split(np.arange(length), min(bins, length)):
        here = asked[:, places]
        counts = here.sum(1)
        some = counts > 0
        if not some.any():
            continue
        per, here = counts[some], here[some]

        def cut(values: np.ndarray, places: np.ndarray = places, some: np.ndarray = some) -> np.ndarray:
            return values[some][..., places]

        found_budgets = []
        for i, steps in enumerate(budgets):
            nats = np.where(here, cut(loss)[:, i], 0).sum(1, dtype=float)
            finite = ~np.isnan(nats)
            found_budgets.append(
                TokenBudget(
                    steps=steps,
                    accuracy=estimates.clustered_ratio((cut(right)[:, i] & here).sum(1), per),
                    loss=_mean(nats[finite], per[finite], seed),
                    residual=None if residual is None else _median(cut(residual)[:, i], here),
                )
            )
        reached = cut(first)
        rows.append(
            TokenRow(
                difficulty=name,
                first=int(places[0]),
                last=int(places[-1]),
                tokens=int(per.sum()),
                sequences=int(some.sum()),
                budgets=tuple(found_budgets),
                first_right=_median(reached, here),
                never_right=estimates.clustered_ratio((np.isinf(reached) & here).sum(1), per),
            )
        )
    return rows


def _mean(sums: np.ndarray, counts: np.ndarray, seed: int) -> Estimate:
    """Mean a token, with an interval from sequences resampled whole."""
    return estimates.together(sums[:, None], per=counts, seed=seed)[0]


def _median(values: np.ndarray, asked: np.ndarray) -> Estimate:
    """Median over sequences of each one's own (lower) median token."""
    ordered = np.sort(np.where(asked, values, np.nan), axis=1)  # NaN last: what is not asked
    return estimates.median(np.take_along_axis(ordered, (asked.sum(1) - 1)[:, None] // 2, 1)[:, 0])
