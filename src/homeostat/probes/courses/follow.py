"""`follow`: examples to the end of the longest budget, with all signals and whether they are right at each step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homeostat.engine.iterate import Release, iterate
from homeostat.engine.problem import Problem
from homeostat.errors import ContractError, InputError
from homeostat.models.contract import IteratedModel, as_model
from homeostat.models.model_hash import hash_of
from homeostat.models.starts import own_start
from homeostat.probes.answers import judge_of
from homeostat.probes.courses.courses import Courses
from homeostat.probes.courses.signals import CHEAP, COSTLY, AnswerReader, Signal
from homeostat.probes.courses.watched import WatchedMap, bare_context
from homeostat.probes.examples import (
    ExampleBatch,
    Examples,
    batches_of,
    evaluating,
    groups_of,
    rows_at,
    whole_number,
)
from homeostat.probes.judge import Judge
from homeostat.probes.sweep import RestTest

OnExamples = Callable[[str, int], None]
"""Told the difficulty and the number of its examples that are done."""


def follow(
    model: Any,
    examples: Examples | Mapping[str, Examples],
    *,
    max_steps: int,
    judge: Any = None,
    signals: Sequence[Signal] = CHEAP,
    seed: int = 0,
    device: str | torch.device | None = None,
    on_examples: OnExamples | None = None,
) -> Courses:
    """Follow examples through every step, recording signals and whether the answer is right.

    Args:
        model: anything with the functions of the contract.
        examples: batches `(inputs, targets)`, or several such iterables by the name of their difficulty.
        max_steps: the longest budget.
        judge: has `correct`, and `answers` where outputs are no integers; the model's own object when None. Its
            `asked(inputs) -> (rows, ...)` bool says where an answer is asked, if not everywhere.
        signals: which ones to record. Those that this model does not have are left out, with a note; `alignment` runs
            every example a second time.
        seed: of the second start.
        device: where to run; that of the model's parameters when None.
        on_examples: told of progress.

    Raises:
        InputError: no examples, nothing that says what is right, an unknown signal.
        ContractError: a model that breaks the contract, or that draws random numbers.

    Example:
        >>> import torch, homeostat as hs
        >>> heron = hs.from_functions(
        ...     encode=lambda x: x,
        ...     initial_state=lambda x: torch.ones_like(x),
        ...     step=lambda z, x: 0.5 * (z + x / z),
        ...     decode=lambda z, x: z,
        ... )
        >>> class Right:
        ...     def correct(self, outputs, targets):
        ...         return ((outputs - targets).abs() < 1e-3).all(1)
        >>> x = torch.tensor([[4.0], [900.0]])
        >>> found = follow(heron, [(x, x.sqrt())], max_steps=12, judge=Right())
        >>> found.right.argmax(1) + 1  # the first step at which each is right
        array([3, 8])
    """
    chosen = judge_of(model, judge)
    max_steps = whole_number("max_steps", max_steps)
    unknown = [name for name in signals if name not in (*CHEAP, *COSTLY)]
    if unknown:
        raise InputError(f"unknown signal {unknown[0]!r}: it is one of {', '.join((*CHEAP, *COSTLY))}")
    if chosen.correct is None:
        raise InputError("nothing says what is right: give a judge with correct(outputs, targets)")
    iterated = as_model(model, where="the model")
    if iterated.stochastic:
        raise ContractError(f"{iterated.name}'s step draws random numbers: the same policy would stop elsewhere")
    recorder = _Recorder(iterated, chosen, tuple(signals), max_steps, seed)
    groups = groups_of(examples)
    with evaluating(model, device) as where, torch.no_grad():
        for number, (name, batches) in enumerate(groups.items()):
            for batch in batches_of(name, batches, where):
                recorder.add(batch, number)
                if on_examples is not None:
                    on_examples(name, batch.indices.stop)
    return recorder.finish(tuple(groups), hash_of(model))


class _Recorder:
    """Batch after batch, the tables of `Courses`."""

    def __init__(
        self, model: IteratedModel, judge: Judge, signals: tuple[Signal, ...], max_steps: int, seed: int
    ) -> None:
        self._model, self._judge, self._max_steps, self._seed = model, judge, max_steps, seed
        self._wanted, self._notes = signals, []
        self._signals: tuple[Signal, ...] | None = None
        self._reader: AnswerReader | None = None
        self._tables: list[tuple[_Table, int]] = []

    def add(self, batch: ExampleBatch, group: int) -> None:
        model = self._model
        context = model.encode(batch.inputs)
        own = model.initial_state(context, own_start(batch.rows))
        asked = self._judge.asked_of(batch.inputs)
        if self._signals is None:
            self._choose(own, context)
        assert self._signals is not None
        assert self._reader is not None
        watched = WatchedMap(model, self._reader, self._signals, max_steps=self._max_steps, seed=self._seed)
        whole = {"model": context, "asked": asked}
        problem = Problem.of(watched.step, watched.start(own, whole), whole)
        table = _Table(watched, problem, self._judge, batch)
        iterate(problem, max_steps=self._max_steps, monitor=table, check=True)
        self._tables.append((table, group))

    def _choose(self, own: Any, context: Any) -> None:
        """Which signals this model has, and how its outputs are read."""
        problem = Problem.of(self._model.step, own, context)
        bare = bare_context(context)
        tree = problem.layout.build(problem.state)
        outputs = self._model.decode(tree, bare)
        self._reader = AnswerReader.of(outputs, self._judge)
        chosen: list[Signal] = []
        for name in self._wanted:
            why = None
            if name in ("confidence", "entropy", "kl", "certificate") and self._reader.how != "argmax":
                why = "its answers are not the largest of some logits"
            elif name == "stable" and self._reader.how == "none":
                why = "nothing says what it answers; a judge with answers(outputs) does"
            elif name == "score" and self._model.score(tree, bare) is None:
                why = "it has none"
            if why is None:
                chosen.append(name)
            else:
                self._notes.append(f"no {name}: {why}")
        self._signals = tuple(chosen)

    def finish(self, difficulties: tuple[str, ...], model_hash: str | None) -> Courses:
        assert self._reader is not None, "batches_of gives one example at least"
        signals, chosen = np.concatenate([table.signals for table, _ in self._tables]), self._signals or ()
        return Courses(
            model=self._model.name,
            model_hash=model_hash,
            difficulties=difficulties,
            group=np.concatenate([np.full(len(table.right), group) for table, group in self._tables]),
            signals={name: signals[:, :, i] for i, name in enumerate(chosen)},
            right=np.concatenate([table.right for table, _ in self._tables]),
            failed_at=np.concatenate([table.failed_at for table, _ in self._tables]),
            products=np.concatenate([table.products for table, _ in self._tables]) if "certificate" in chosen else None,
            reads=self._reader.how,
            masked=self._judge.asked is not None,
            seed=self._seed,
            notes=tuple(self._notes),
        )


class _Table:
    """The monitor of one batch. Rows of which only rounding is left leave, and keep what they leave with."""

    def __init__(self, watched: WatchedMap, problem: Problem, judge: Judge, batch: ExampleBatch) -> None:
        self._watched, self._problem, self._judge, self._batch = watched, problem, judge, batch
        steps, rows = watched.max_steps, problem.rows
        self.signals = np.full((rows, steps, len(watched.signals)), np.nan, dtype=np.float32)
        self.right = np.zeros((rows, steps), dtype=bool)
        self.failed_at = np.zeros(rows, dtype=np.int64)
        self.products = np.zeros((rows, steps if "certificate" in watched.signals else 0), dtype=np.int64)
        model = problem.layout.build(problem.state)["model"]
        layout = watched.layout
        assert layout is not None
        self._rest = RestTest(model, layout.measured(), stochastic=bool(set(COSTLY) & set(watched.signals)))

    def observe(
        self, step: int, rows: Tensor, before: Sequence[Tensor], after: Sequence[Tensor], context: Sequence[Any]
    ) -> Release | None:
        """See `Monitor.observe`."""
        state = self._problem.layout.build(after)
        inner = self._problem.context_layout.build(context)["model"]
        layout = self._watched.layout
        assert layout is not None
        outputs = self._watched.model.decode(layout.build(list(state["model"])), inner)
        right = self._judge.judged("correct", outputs, rows_at(self._batch.targets, rows), len(rows))
        if right is None:
            raise InputError("examples need targets: without them nothing says what is right")
        failed = state["failed"]
        places, lost = rows.cpu().numpy(), failed.cpu().numpy()
        self.right[places, step - 1] = (right & ~failed).cpu().numpy()
        values = state["signals"].float().cpu().numpy()
        values[lost] = np.nan
        self.signals[places, step - 1] = values
        self.failed_at[places[lost]] = step
        if "products" in state:
            self.products[places, step - 1] = state["products"].cpu().numpy()
        release, resting = failed, self._rest.observe(step, state["residual"])
        if resting is not None:
            release = release | resting
        if not bool(release.any()):
            return None
        self._extend(places[(release & ~failed).cpu().numpy()], step)
        return Release(release)

    def _extend(self, places: np.ndarray, step: int) -> None:
        """What a row at rest would go on to show: the same, while the count of unchanged steps grows."""
        left = self._watched.max_steps - step
        if not len(places) or not left:
            return
        self.right[places, step:] = self.right[places, step - 1 : step]
        self.signals[places, step:] = self.signals[places, step - 1][:, None]
        if self.products.shape[1]:
            self.products[places, step:] = self.products[places, step - 1 : step]
        if "stable" in self._watched.signals:
            i = self._watched.signals.index("stable")
            self.signals[places, step:, i] += np.arange(1, left + 1, dtype=np.float32)

    def keep(self, index: Tensor) -> None:
        """See `Monitor.keep`."""
        self._rest.keep(index)
