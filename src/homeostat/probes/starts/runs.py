"""The runs of one batch from several starts, each made once, and what they look like beside each other."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homeostat.engine.nest import flatten
from homeostat.engine.problem import Problem
from homeostat.models.contract import IteratedModel
from homeostat.models.starts import Own
from homeostat.probes.cycles import Comparison, compare, null_cosines
from homeostat.probes.ends import End, run_to_end
from homeostat.probes.examples import ExampleBatch
from homeostat.probes.judge import Judge
from homeostat.probes.repeatable import check_finite
from homeostat.probes.starts.states import States, noise_scale, partners

_IGNORED = (
    "initial_state(context, start) gives the same state for every start; zeros and noise were put in its place, in the "
    "shape of that state"
)


@dataclass(frozen=True)
class Ended:
    """A run of the batch, and what is said of its end."""

    end: End
    answers: Tensor | None
    correct: Tensor | None


def run_from(
    model: IteratedModel, context: Any, state: Any, batch: ExampleBatch, judge: Judge, *, steps: int, rtol: float
) -> Ended:
    """Run a batch from a state, and judge where it ends. What failed is not right."""
    problem = Problem.of(model.step, state, context)
    end = run_to_end(problem, steps, rtol=rtol, stochastic=model.stochastic)
    with torch.no_grad():
        outputs = model.decode(problem.layout.build(end.leaves), problem.context_layout.build(problem.context))
        correct = judge.judged("correct", outputs, batch.targets, batch.rows)
        return Ended(end, judge.decoded(outputs), None if correct is None else correct & ~end.failed)


@dataclass(frozen=True)
class StartPart:
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


class StartRuns:
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
        self._ends: dict[str, Ended] = {}
        self._nulls: dict[str, np.ndarray] = {}
        self._controls: dict[str, tuple[Ended, np.ndarray]] = {}
        self.evaluations = 0
        self.dtype = str(own[layout.measured()[0]].dtype).removeprefix("torch.")
        self.notes: list[str] = []

    def all(self, names: Iterable[str]) -> Iterator[tuple[str, str, StartPart]]:
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

    def _ended(self, name: str) -> Ended | None:
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

    def _reference(self, name: str) -> Ended:
        found = self._ended(name)
        assert found is not None, "every example has a run from zeros and from its own start"
        return found

    def _run(self, state: Any) -> Ended:
        ended = run_from(
            self._model, self._context, state, self._batch, self._judge, steps=self._steps, rtol=self._rtol
        )
        self.evaluations += ended.end.evaluations
        return ended

    def _compared(self, first: End, second: End) -> Comparison:
        found = compare(self._problem, first, second)
        self.evaluations += found.evaluations
        return found

    def _control(self, reference: str) -> tuple[Ended, np.ndarray]:
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

    def _part(self, reference: str, ended: Ended | None) -> StartPart:
        """One start beside its reference. NaN stands for what has nothing to be compared with."""
        theirs = self._reference(reference)
        restart = self._control(reference)[1]
        nothing = np.full(self._batch.rows, np.nan)
        if ended is None:
            no_answers = None if theirs.answers is None else nothing
            no_judgement = None if theirs.correct is None else nothing
            none = np.zeros(len(nothing), dtype=bool)
            null = self._null(reference)
            return StartPart(nothing, nothing, none, null, restart, nothing, none, no_answers, no_judgement)
        failed = ended.end.failed | theirs.end.failed
        found = self._compared(theirs.end, ended.end)
        same_run = ended is theirs
        agreement = agree(ended, theirs, failed)
        return StartPart(
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

    def _all_pairs(self) -> StartPart:
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

        return StartPart(
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


def agree(ours: Ended, theirs: Ended, failed: Tensor) -> np.ndarray | None:
    if ours.answers is None or theirs.answers is None:
        return None
    same = (ours.answers == theirs.answers).reshape(len(failed), -1).all(1) & ~failed
    return same.cpu().numpy().astype(float)
