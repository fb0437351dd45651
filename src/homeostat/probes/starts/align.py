"""`align_starts`: do runs from other starts end in the same place?

Asymptotic alignment of Anil et al., "Path Independent Equilibrium Models Can Better Exploit Test-Time Computation"
(arXiv 2211.09961), in both of its public forms, with what keeps it from misleading: a null baseline, a control that
starts from the limit itself, distance beside cosine, cycles up to their phase, and what became of the answers.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from homeostat.models.contract import as_model
from homeostat.probes import estimates
from homeostat.probes.examples import (
    Examples,
    batches_of,
    evaluating,
    groups_of,
    positive,
    whole_number,
)
from homeostat.probes.judge import Judge
from homeostat.probes.repeatable import check_repeatable
from homeostat.probes.starts.result import StartAlignment, StartAlignments, mean_of
from homeostat.probes.starts.runs import StartPart, StartRuns
from homeostat.probes.starts.states import check_names


def align_starts(
    model: Any,
    examples: Examples | Mapping[str, Examples],
    *,
    steps: int,
    starts: Iterable[str] | None = None,
    judge: Any = None,
    rtol: float = 1e-3,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> StartAlignments:
    """Run every example from several starts, and compare where the runs end.

    | start | it starts from | compared with the run from |
    |---|---|---|
    | `own` | the model's own start | zeros |
    | `zeros` | zeros | own |
    | `noise 0.5` | Gaussian noise of this standard deviation | own |
    | `swapped` | where another example's run from zeros ended: Algorithm 1 | zeros |
    | `all pairs` | where each example's run from its own start ended, itself included: the authors' code | own |

    A run takes `steps` steps, less where nothing but rounding is left of an example. Each start costs one run, and so
    does the control (twice where the model does not start from zeros); `all pairs` costs one for each example of a
    batch. Only floating leaves of a state are replaced: tokens, flags, counters and what is marked `Carry` begin as
    in the model's own start.

    Args:
        model: anything with the functions of the contract (see `from_functions`).
        examples: batches `(inputs, targets)`, or several such iterables by the name of their difficulty. Examples are
            swapped within their batch.
        steps: budget of every run.
        starts: names as above; None: own, zeros, noise 0.5, 1 and 2, and swapped.
        judge: has what it can of `correct` and `answers` (see `Judge`); the model's own object when None.
        rtol: relative residual over p steps at which a state counts as repeated, for the periods of cycles.
        seed: of noise, permutations and the bootstrap.
        device: where to run; that of the model's parameters when None.

    Raises:
        InputError: no examples, an unknown start, an impossible budget.
        ContractError: a model that breaks the contract, whose state is not finite before the first step, or that
            draws random numbers, so that two runs from the same start differ.

    Example:
        >>> import homeostat as hs
        >>> model = hs.from_functions(
        ...     encode=lambda x: x,
        ...     initial_state=torch.zeros_like,
        ...     step=lambda z, x: torch.tanh(3 * z + 0.1 * x),  # two attractors: the start decides
        ...     decode=lambda z, x: z > 0,
        ... )
        >>> x = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
        >>> found = align_starts(model, [(x, None)], steps=100, starts=["noise 1", "swapped"])
        >>> round(found.of("all examples", "noise 1").agreement.value, 2)
        0.61
        >>> found.of("all examples", "swapped").restart  # what goes on from its limit stays there
        1.000 [1.000, 1.000] n=64
    """
    began = time.perf_counter()
    names = check_names(starts)
    steps, rtol = whole_number("steps", steps), positive("rtol", rtol)
    seed = whole_number("seed", seed, least=0, most=2**63 - 1)
    judge = judge if isinstance(judge, Judge) else Judge.of(model if judge is None else judge)
    iterated = as_model(model, where="the model")
    collected: dict[tuple[str, str], _Collected] = {}
    notes: dict[str, list[str]] = {}
    evaluations, dtype = 0, ""
    with evaluating(model, device) as place, torch.no_grad():
        for key, batches in groups_of(examples).items():
            for batch in batches_of(key, batches, place):
                if not collected:
                    check_repeatable(iterated, batch.inputs, seed=seed, indices=batch.indices, steps=steps)
                runs = StartRuns(iterated, batch, judge, steps, rtol, seed)
                for name, reference, part in runs.all(names):
                    collected.setdefault((key, name), _Collected(reference)).parts.append(part)
                for note in runs.notes:
                    notes.setdefault(note, []).append(key)
                evaluations, dtype = evaluations + runs.evaluations, runs.dtype
    return StartAlignments(
        model=iterated.name,
        steps=steps,
        rtol=rtol,
        seed=seed,
        dtype=dtype,
        device=str(place),
        rows=tuple(_row(key, name, found, seed) for (key, name), found in collected.items()),
        evaluations=evaluations,
        seconds=time.perf_counter() - began,
        notes=tuple(f"{', '.join(dict.fromkeys(keys))}: {note}" for note, keys in notes.items()),
    )


@dataclass
class _Collected:
    reference: str
    parts: list[StartPart] = field(default_factory=list)


def _row(difficulty: str, start: str, found: _Collected, seed: int) -> StartAlignment:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in found.parts])

    def known(name: str) -> np.ndarray | None:
        return None if any(getattr(part, name) is None for part in found.parts) else joined(name)

    def share(values: np.ndarray | None) -> Any:
        if values is None:
            return None
        values = values[~np.isnan(values)]
        # Shares of several runs from each example are no longer yes or no.
        return mean_of(values, seed) if start == "all pairs" else estimates.share(values > 0)

    distances = joined("distance")
    agreement, correct = known("agreement"), known("correct")
    return StartAlignment(
        difficulty=difficulty,
        start=start,
        reference=found.reference,
        cosine=mean_of(joined("cosine"), seed),
        plain=mean_of(joined("plain"), seed),
        phase_aligned=int(joined("phased").sum()),
        null=mean_of(joined("null"), seed),
        restart=mean_of(joined("restart"), seed),
        distance=float(np.median(distances[~np.isnan(distances)])) if (~np.isnan(distances)).any() else float("nan"),
        agreement=share(agreement),
        exact=share(correct),
        failed=int(joined("failed").sum()),
        cosines=tuple(joined("cosine").tolist()),
        plain_cosines=tuple(joined("plain").tolist()),
        nulls=tuple(joined("null").tolist()),
        restarts=tuple(joined("restart").tolist()),
        distances=tuple(distances.tolist()),
        agreements=None if agreement is None else tuple(agreement.tolist()),
        corrects=None if correct is None else tuple(correct.tolist()),
    )
