"""`align_starts`: do runs from other starts end in the same place?

Asymptotic alignment of Anil et al., "Path Independent Equilibrium Models Can Better Exploit Test-Time Computation"
(arXiv 2211.09961), in both of its public forms, with what keeps it from misleading: a null baseline, a control that
starts from the limit itself, distance beside cosine, cycles up to their phase, and what became of the answers.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homeostat.engine.nest import flatten
from homeostat.engine.problem import Problem
from homeostat.models.contract import IteratedModel, as_model
from homeostat.models.starts import Own
from homeostat.probes import estimates
from homeostat.probes.cycles import Comparison, compare, null_cosines
from homeostat.probes.ends import End, run_to_end
from homeostat.probes.examples import (
    ExampleBatch,
    Examples,
    batches_of,
    evaluating,
    groups_of,
    positive,
    whole_number,
)
from homeostat.probes.judge import Judge
from homeostat.probes.repeatable import check_finite, check_repeatable
from homeostat.probes.starts_result import StartAlignment, StartAlignments, mean_of
from homeostat.probes.starts_states import States, check_names, noise_scale, partners

_IGNORED = (
    "initial_state(context, start) gives the same state for every start; zeros and noise were put in its place, in the "
    "shape of that state"
)


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
                runs = _Runs(iterated, batch, judge, steps, rtol, seed)
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


@dataclass(frozen=True)
class _Ended:
    """A run of the batch, and what is said of its end."""

    end: End
    answers: Tensor | None
    correct: Tensor | None


@dataclass(frozen=True)
class _Part:
    """One start of one batch, `(rows,)` float64 each."""

    cosine: np.ndarray
    plain: np.ndarray
    phased: np.ndarray
    null: np.ndarray
    restart: np.ndarray
    distance: np.ndarray
    failed: np.ndarray
    agreement: np.ndarray | None
    correct: np.ndarray | None


@dataclass
class _Collected:
    reference: str
    parts: list[_Part] = field(default_factory=list)


class _Runs:
    """All runs of one batch. Each is made once, however many starts need it."""

    def __init__(
        self, model: IteratedModel, batch: ExampleBatch, judge: Judge, steps: int, rtol: float, seed: int
    ) -> None:
        self._model, self._batch, self._judge = model, batch, judge
        self._steps, self._rtol, self._seed = steps, rtol, seed
        self._context = model.encode(batch.inputs)
        own, layout = flatten(model.initial_state(self._context, Own().seeded(seed, batch.indices)), "state")
        check_finite(own, layout.measured(), model.name, "its own start", batch.indices)
        self._states = States(model, self._context, own, layout, seed)
        self._own = layout.build(own, marks=True)
        self._zeros = self._states.zeros(batch.indices)
        self._from_zeros = self._states.is_own(self._zeros)
        self._problem = Problem.of(model.step, self._own, self._context)
        self._ends: dict[str, _Ended] = {}
        self._nulls: dict[str, np.ndarray] = {}
        self._controls: dict[str, tuple[_Ended, np.ndarray]] = {}
        self.evaluations = 0
        self.dtype = str(own[layout.measured()[0]].dtype).removeprefix("torch.")
        self.notes: list[str] = []

    def all(self, names: Iterable[str]) -> Iterator[tuple[str, str, _Part]]:
        """Name, reference and findings of each start that can be had."""
        for name in names:
            reference = "zeros" if name in ("own", "swapped") else "own"
            if name in ("swapped", "all pairs") and self._batch.rows == 1:
                self.notes.append(
                    f"example {self._batch.indices[0]} is alone in its batch: there is no other example's limit to "
                    "start it from or to compare it with, and it counts for neither"
                )
            if name == "all pairs":
                yield name, reference, self._all_pairs()
            else:
                yield name, reference, self._part(reference, self._ended(name))
        if self._batch.rows == 1 and not self.notes:
            self.notes.append(f"example {self._batch.indices[0]} is alone in its batch: it has no null baseline")
        if self._from_zeros and {"own", "zeros"} & set(names):
            self.notes.append(
                "the model starts from zeros: own and zeros are one run, with accuracy and nothing to compare with"
            )
        if self._states.ignored:
            self.notes.append(_IGNORED)

    def _ended(self, name: str) -> _Ended | None:
        """The run from a start that is named; None for a swap without another example."""
        if name == "own" and self._from_zeros:
            name = "zeros"
        if name == "swapped" and self._batch.rows == 1:
            return None
        if name not in ("own", "zeros"):
            return self._run(self._state(name))  # asked for once, and not kept
        if name not in self._ends:
            self._ends[name] = self._run(self._state(name))
        return self._ends[name]

    def _state(self, name: str) -> Any:
        if name == "own":
            return self._own
        if name == "zeros":
            return self._zeros
        if name == "swapped":
            leaves = self._reference("zeros").end.leaves
            indices = self._batch.indices
            return self._states.others(leaves, partners(len(indices), self._seed, indices.start, leaves[0].device))
        scale = noise_scale(name)
        assert scale is not None, "names have been checked"
        return self._states.noise(scale, self._batch.indices)

    def _reference(self, name: str) -> _Ended:
        found = self._ended(name)
        assert found is not None, "every example has a run from zeros and from its own start"
        return found

    def _run(self, state: Any) -> _Ended:
        problem = Problem.of(self._model.step, state, self._context)
        end = run_to_end(problem, self._steps, rtol=self._rtol, stochastic=self._model.stochastic)
        self.evaluations += end.evaluations
        outputs = self._model.decode(problem.layout.build(end.leaves), self._context)
        correct = self._judge.judged("correct", outputs, self._batch.targets, self._batch.rows)
        return _Ended(end, self._judge.decoded(outputs), None if correct is None else correct & ~end.failed)

    def _compared(self, first: End, second: End) -> Comparison:
        found = compare(self._problem, first, second)
        self.evaluations += found.evaluations
        return found

    def _control(self, reference: str) -> tuple[_Ended, np.ndarray]:
        """The run that goes on from where the reference ended, and its cosine with that end."""
        reference = "zeros" if self._from_zeros else reference
        if reference not in self._controls:
            theirs = self._reference(reference)
            rows = torch.arange(self._batch.rows, device=theirs.end.failed.device)
            ended = self._run(self._states.others(theirs.end.leaves, rows))
            self._controls[reference] = ended, self._compared(theirs.end, ended.end).cosine.cpu().numpy()
        return self._controls[reference]

    def _null(self, reference: str) -> np.ndarray:
        reference = "zeros" if self._from_zeros else reference
        if reference not in self._nulls:
            null, evaluations = null_cosines(self._problem, self._reference(reference).end)
            self._nulls[reference] = null.cpu().numpy()
            self.evaluations += evaluations
        return self._nulls[reference]

    def _part(self, reference: str, ended: _Ended | None) -> _Part:
        """One start beside its reference. NaN stands for what has nothing to be compared with."""
        theirs = self._reference(reference)
        restart = self._control(reference)[1]
        nothing = np.full(self._batch.rows, np.nan)
        if ended is None:
            no_answers = None if theirs.answers is None else nothing
            no_judgement = None if theirs.correct is None else nothing
            none = np.zeros(len(nothing), dtype=bool)
            null = self._null(reference)
            return _Part(nothing, nothing, none, null, restart, nothing, none, no_answers, no_judgement)
        failed = ended.end.failed | theirs.end.failed
        found = self._compared(theirs.end, ended.end)
        same_run = ended is theirs
        agreement = _agree(ended, theirs, failed)
        return _Part(
            cosine=nothing if same_run else found.cosine.cpu().numpy(),
            plain=nothing if same_run else found.plain.cpu().numpy(),
            phased=(found.phased & (not same_run)).cpu().numpy(),
            null=self._null(reference),
            restart=restart,
            distance=nothing if same_run else found.distance.cpu().numpy(),
            failed=failed.cpu().numpy(),
            agreement=nothing if same_run and agreement is not None else agreement,
            correct=None if ended.correct is None else ended.correct.cpu().numpy().astype(float),
        )

    def _all_pairs(self) -> _Part:
        """Every example from where each example ended, as means over its partners. Its own end is the control."""
        rows = self._batch.rows
        if rows == 1:
            return self._part("own", None)
        leaves = self._reference("own").end.leaves
        everyone = torch.arange(rows, device=leaves[0].device)
        parts = [self._part("own", self._control("own")[0])]
        for shift in range(1, rows):
            parts.append(self._part("own", self._run(self._states.others(leaves, everyone.roll(shift)))))

        def mean(name: str) -> Any:
            arrays = [getattr(part, name) for part in parts]
            return None if arrays[0] is None else np.mean(arrays, axis=0)

        return _Part(
            cosine=mean("cosine"),
            plain=mean("plain"),
            phased=np.any([part.phased for part in parts], axis=0),
            null=parts[0].null,
            restart=parts[0].restart,
            distance=mean("distance"),
            failed=np.any([part.failed for part in parts], axis=0),
            agreement=mean("agreement"),
            correct=mean("correct"),
        )


def _agree(ours: _Ended, theirs: _Ended, failed: Tensor) -> np.ndarray | None:
    if ours.answers is None or theirs.answers is None:
        return None
    same = (ours.answers == theirs.answers).reshape(len(failed), -1).all(1) & ~failed
    return same.cpu().numpy().astype(float)


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
