"""`attack`: the start that an adversary would choose.

Anil et al. (arXiv 2211.09961) attack with L-BFGS over the start; objective and bounds are not known, so that those here
are our own, and stated. Path independence is a claim about every start, and a search that fails proves nothing by
itself: so the searches stand beside starts that need no gradient, and the worst of all of them is reported.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from homeostat.errors import ContractError, InputError
from homeostat.models.contract import as_model
from homeostat.probes import estimates
from homeostat.probes.attacks.batch import AttackedBatch, Plan, Worst
from homeostat.probes.attacks.result import Attack, AttackRow
from homeostat.probes.attacks.search import Method
from homeostat.probes.examples import Examples, batches_of, evaluating, groups_of, positive, whole_number
from homeostat.probes.judge import Judge
from homeostat.probes.repeatable import check_repeatable
from homeostat.probes.results import Estimate
from homeostat.probes.starts.result import mean_of

AttackObjective = Literal["latent", "answer"]

_GRAD_STEPS = 32


def attack(
    model: Any,
    examples: Examples | Mapping[str, Examples],
    *,
    steps: int,
    radius: float = 1.0,
    objective: AttackObjective = "latent",
    method: Method = "lbfgs",
    restarts: int = 3,
    iterations: int = 20,
    grad_steps: int | None = None,
    judge: Any = None,
    rtol: float = 1e-3,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Attack:
    """Search, for each example, the start within a ball from which the model ends worst.

    The ball lies around the model's own start, in the Euclidean norm over all floating leaves together; its radius is
    `radius` times the typical size of a state, the median over a difficulty's examples of the root mean square of
    their clean limits. Tokens, flags, counters and what is marked `Carry` are left alone.

    A search looks `grad_steps` steps ahead, and is differentiated through all of them. It climbs
    log(1 - cosine + d²/(1 + d²)) of state and clean limit ("latent"; d is their relative distance, and of a cycle the
    nearest state counts), or the log of the task's loss ("answer"; where there is no loss, the smallest margin by which
    the clean answer wins, the other way round). The first restart begins
    next to the model's own start, the others at random places of the ball. Every second one looks not only at the last
    of these steps but at those after 1, 2, 4, 8, ... as well: where a map saturates, that is where a gradient is left.
    Gradients are scaled row by row, so that a tiny one is as good as any.

    What each search found is then run for the full `steps`, and so are starts that need no gradient: as many random
    ones on the surface of the ball as there are restarts, and another example's limit, drawn into the ball. An
    example's figures are the worst over all of these, its own start included.

    Args:
        model: anything with the functions of the contract (see `from_functions`).
        examples: batches `(inputs, targets)`, or several such iterables by the name of their difficulty. All examples
            of a difficulty are held at once.
        steps: budget of the runs that count.
        radius: of the ball, in units of the typical size of a state.
        objective: "latent", break the alignment of states; "answer", break the decoded answer.
        method: "lbfgs", projected onto the ball after every step; or "projected-gradient", normalised steps.
        restarts: searches of each example. A search takes `iterations` + 1 runs of `grad_steps` steps, twice forward
            and once back, and one full run; each restart brings one full run from a random start with it.
        iterations: steps of a search.
        grad_steps: steps that a search looks ahead; None: 32, or `steps` if that is less.
        judge: has what it can of `correct`, `answers`, `loss` (see `Judge`); the model's own object when None.
        rtol: relative residual over p steps at which a state counts as repeated, for the periods of cycles.
        seed: of restarts, random starts, swaps and the bootstrap.
        device: where to run; that of the model's parameters when None.

    Raises:
        InputError: no examples, impossible options, or an objective "answer" with nothing to climb.
        ContractError: a model that breaks the contract, whose state is not finite before the first step, that draws
            random numbers, or whose limits are all zero or all failed, so that there is no unit for the radius.

    Example:
        >>> import homeostat as hs
        >>> model = hs.from_functions(
        ...     encode=lambda x: x,
        ...     initial_state=torch.zeros_like,
        ...     step=lambda z, x: torch.tanh(3 * z.mean(1, keepdim=True) + 0.1).expand_as(x),
        ...     decode=lambda z, x: z > 0,
        ... )
        >>> x = torch.zeros(16, 100)
        >>> row = attack(model, [(x, None)], steps=50, radius=0.1).of("all examples")
        >>> row.agreement, row.agreement_random  # random directions hardly move the mean of 100 entries
        (0.000 [0.000, 0.194] n=16, 1.000 [0.806, 1.000] n=16)
    """
    began = time.perf_counter()
    steps, radius, rtol = whole_number("steps", steps), positive("radius", radius), positive("rtol", rtol)
    _one_of("objective", objective, get_args(AttackObjective))
    _one_of("method", method, get_args(Method))
    restarts, iterations = whole_number("restarts", restarts), whole_number("iterations", iterations)
    ahead = min(steps, _GRAD_STEPS) if grad_steps is None else whole_number("grad_steps", grad_steps, most=steps)
    seed = whole_number("seed", seed, least=0, most=2**63 - 1)
    judge = judge if isinstance(judge, Judge) else Judge.of(model if judge is None else judge)
    iterated = as_model(model, where="the model")
    plan = Plan(iterated, judge, steps, objective, method, restarts, iterations, ahead, rtol, seed)
    found: list[AttackRow] = []
    notes: dict[str, list[str]] = {}
    dtype = ""
    with evaluating(model, device) as place, torch.no_grad():
        for key, batches in groups_of(examples).items():
            attacked: list[AttackedBatch] = []
            for batch in batches_of(key, batches, place):
                if not found and not attacked:
                    check_repeatable(iterated, batch.inputs, seed=seed, indices=batch.indices, steps=steps)
                attacked.append(AttackedBatch(plan, batch))
            unit = _unit(key, attacked)
            worst = [batch.worst(radius * unit) for batch in attacked]
            found.append(_row(key, attacked, worst, radius * unit, unit, seed))
            dtype = attacked[0].dtype
            for note in dict.fromkeys(note for batch in attacked for note in batch.notes):
                notes.setdefault(note, []).append(key)
    return Attack(
        model=iterated.name,
        objective=objective,
        method=method,
        radius=radius,
        steps=steps,
        restarts=restarts,
        iterations=iterations,
        grad_steps=ahead,
        rtol=rtol,
        seed=seed,
        dtype=dtype,
        device=str(place),
        rows=tuple(found),
        seconds=time.perf_counter() - began,
        notes=tuple(f"{', '.join(keys)}: {note}" for note, keys in notes.items()),
    )


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name} must be {' or '.join(map(repr, known))}, not {value!r}")


def _unit(difficulty: str, batches: list[AttackedBatch]) -> float:
    """The typical size of a state: median root mean square of the limits that are finite."""
    sizes = np.concatenate([batch.sizes for batch in batches])
    unit = float(np.median(sizes)) if len(sizes) else 0.0
    if unit == 0:
        what = "zero" if len(sizes) else "not finite"
        raise ContractError(f"the limits of {difficulty!r} are {what}: a radius in units of their size means nothing")
    return unit


@dataclass(frozen=True)
class _Joined:
    exact: Estimate | None
    agreement: Estimate | None
    cosine: Estimate
    cosines: tuple[float, ...]
    corrects: tuple[bool, ...] | None
    agreements: tuple[bool, ...] | None


def _joined(parts: list[Worst], seed: int) -> _Joined:
    def flags(name: str) -> tuple[bool, ...] | None:
        arrays = [getattr(part, name) for part in parts]
        return None if any(a is None for a in arrays) else tuple(np.concatenate(arrays).tolist())

    cosines = tuple(np.concatenate([part.cosine for part in parts]).tolist())
    corrects, agreements = flags("correct"), flags("agreement")
    return _Joined(
        exact=None if corrects is None else estimates.share(corrects),
        agreement=None if agreements is None else estimates.share(agreements),
        cosine=mean_of(cosines, seed),
        cosines=cosines,
        corrects=corrects,
        agreements=agreements,
    )


def _row(
    difficulty: str,
    batches: list[AttackedBatch],
    worst: list[tuple[Worst, Worst, Worst]],
    radius: float,
    unit: float,
    seed: int,
) -> AttackRow:
    clean, random, attacked = (_joined([part[i] for part in worst], seed) for i in range(3))
    return AttackRow(
        difficulty=difficulty,
        count=len(attacked.cosines),
        exact_clean=clean.exact,
        exact_attacked=attacked.exact,
        exact_random=random.exact,
        agreement=attacked.agreement,
        agreement_random=random.agreement,
        cosine_attacked=attacked.cosine,
        cosine_random=random.cosine,
        null=mean_of(np.concatenate([batch.null for batch in batches]), seed),
        radius=radius,
        length=radius * max(batch.entries for batch in batches) ** 0.5,
        unit=unit,
        failed=int(sum(part[2].failed.sum() for part in worst)),
        evaluations=sum(batch.evaluations for batch in batches),
        cosines=attacked.cosines,
        cosines_random=random.cosines,
        agreements=attacked.agreements,
        corrects=attacked.corrects,
    )
