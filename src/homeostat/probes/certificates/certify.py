"""`certify`: from which step on an answer is safe from whatever the remaining steps do.

With d the length of the last step and q an upper bound of all later ratios of successive step lengths, the rest of
the path is no longer than d q + d q^2 + ... = d q / (1 - q). If the state must move further than that for a margin of
the decoded answer to reach 0, the answer cannot change any more. With q of 1 or more there is no certificate.

What it rests on. (1) That q bounds *all later* ratios. It is an estimate: r, the larger of the largest ratio over the
last steps and of the spectral radius of the step's Jacobian at the state, moved part of the way to 1. The ratios see
the directions in which the state moves, the radius those in which it may move later, a slow drift hidden behind a fast
transient among them. Both are taken here and now; a map that expands somewhere further along can break it. (2) That
the decoder does not become steeper than `decoder_factor` times what it is at the state (exact for linear decoders).
So whether certified answers change later within the budget is watched and reported; it should be never.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.iterate import Release, iterate
from homeostat.engine.nest import flatten
from homeostat.engine.norms import out_of_bounds, residuals
from homeostat.engine.problem import Problem
from homeostat.errors import ContractError, InputError
from homeostat.models.contract import IteratedModel, as_model
from homeostat.models.starts import Noise, Own
from homeostat.probes.answers import asked, judge_of, logits_of, same_answers
from homeostat.probes.certificates.consider import CertificateOptions, consider, remaining_path
from homeostat.probes.certificates.flip_distance import Margins, logit_margins
from homeostat.probes.certificates.result import CertificateRow, Certificates, ExampleCertificate, Refusal, summarise
from homeostat.probes.examples import (
    ExampleBatch,
    Examples,
    batches_of,
    evaluating,
    groups_of,
    positive,
    rows_at,
    whole_number,
)
from homeostat.probes.judge import Judge
from homeostat.probes.path_lengths import rounding_length, row_length
from homeostat.probes.sweep import RestTest

_REFUSALS: tuple[Refusal, ...] = ("too few steps", "no contraction", "margin too small", "slow direction")


@dataclass(frozen=True)
class _Options:
    judge: Judge
    steps: int
    certificate: CertificateOptions
    margins: Margins | None
    seed: int


def certify(
    model: Any,
    examples: Examples | Mapping[str, Examples],
    *,
    steps: int,
    judge: Any = None,
    window: int = 8,
    gap: float = 0.5,
    decoder_factor: float = 2.0,
    iterations: int = 64,
    margins: Margins | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Certificates:
    """Say for each example from which step on its answer is safe, and watch whether it keeps it.

    An example is certified at the first step at which d q / (1 - q), with what rounding may add, is below
    `flip / decoder_factor`: d the Euclidean length of the last step over all measured leaves, flip the distance that
    the state must move before a margin reaches 0 to first order (see `probes/certificates/flip_distance.py`), and
    q = 1 - gap (1 - r), r being the larger of the largest ratio of step lengths over the last `window` steps and of
    the spectral radius of the Jacobian at the state. The radius is looked at where the rest would do, and after a
    refusal by it again `window` steps later.

    A certificate says that an answer stays, not that it is right.

    Args:
        model: anything with the functions of the contract. Its step must not draw random numbers.
        examples: batches `(inputs, targets)`, or several such iterables by the name of their difficulty. Of targets
            only `IGNORE` is read, where nothing is asked, unless a judge says what is right.
        steps: budget: answers are watched up to here.
        judge: decodes answers (see `Judge`); the model's own object when None.
        window: ratios that r is the largest of.
        gap: share of the way from r to 1 that is left: 1 takes r as it is, smaller is more cautious.
        decoder_factor: how much steeper than at the state the decoder may become on the remaining path.
        iterations: Jacobian products for the spectral radius.
        margins: from outputs to `(rows, ...)` numbers that are all above 0 as long as the answer stays,
            differentiable. None: outputs are logits with classes along dimension 1 and the largest one is the answer.
        seed: of the start, where it is drawn, and of the first directions for the radius.
        device: where to run; that of the model's parameters when None.

    Raises:
        InputError: no examples, impossible options, or answers that are not the largest of some logits while no
            `margins` were given.
        ContractError: a model that breaks the contract, or that draws random numbers.

    Example:
        >>> import homeostat as hs
        >>> model = hs.from_functions(
        ...     encode=lambda x: x,
        ...     initial_state=lambda x: torch.zeros_like(x),
        ...     step=lambda z, x: 0.5 * z + x,  # ends at 2 x
        ...     decode=lambda z, x: z,
        ... )
        >>> class Largest:
        ...     def answers(self, outputs):
        ...         return outputs.argmax(1)
        >>> x = torch.tensor([[1.0, 0.9], [1.0, 0.99], [1.0, 1.0]])  # the last one is a tie
        >>> found = certify(model, [(x, None)], steps=50, judge=Largest())
        >>> [example.certified_at for example in found.rows[0].examples], found.rows[0].changed_later
        ([9, 11, None], 0)
    """
    options = _Options(
        judge_of(model, judge),
        whole_number("steps", steps),
        CertificateOptions(
            whole_number("window", window),
            _share(gap),
            positive("decoder_factor", decoder_factor),
            whole_number("iterations", iterations, least=8),
        ),
        margins,
        whole_number("seed", seed, least=0, most=2**63 - 2),
    )
    iterated = as_model(model, where="the model")
    if iterated.stochastic:
        raise ContractError(f"{iterated.name}'s step draws random numbers: nothing bounds its remaining path")
    rows: list[CertificateRow] = []
    with evaluating(model, device) as where:
        for name, batches in groups_of(examples).items():
            found = [one for batch in batches_of(name, batches, where) for one in _certified(iterated, batch, options)]
            rows.append(summarise(name, [e for e, _ in found], [c for _, c in found], options.steps))
    return Certificates(
        iterated.name, options.steps, window, float(gap), float(decoder_factor), iterations, tuple(rows),
    )  # fmt: skip


def _share(gap: Any) -> float:
    if not 0 < positive("gap", gap) <= 1:
        raise InputError(f"gap must be above 0 and at most 1, not {gap!r}")
    return float(gap)


def _certified(
    model: IteratedModel, batch: ExampleBatch, options: _Options
) -> Iterator[tuple[ExampleCertificate, bool | None]]:
    """Example by example its certificate, and whether its last answer is right."""
    with torch.no_grad():
        context = model.encode(batch.inputs)
        own = model.initial_state(context, Own().seeded(options.seed, batch.indices))
        problem = Problem.of(model.step, own, context)
        watch = _Watch(model, problem, batch, own, options)
        leaves, _ = iterate(problem, max_steps=options.steps, monitor=watch)
        outputs = model.decode(problem.layout.build(leaves), problem.context_layout.build(problem.context))
        right = options.judge.judged("correct", outputs, batch.targets, batch.rows)
    if right is not None:
        right = right & ~watch.failed
    table = torch.stack([watch.certified_at, watch.changed_at, watch.last_change, watch.refusal]).tolist()
    figures = torch.stack([watch.bound, watch.remaining, watch.distance]).tolist()
    for row, index in enumerate(batch.indices):
        at, changed, last, refusal = (column[row] for column in table)
        q, remaining, distance = (column[row] if at else None for column in figures)
        failed = bool(watch.failed[row])
        yield (
            ExampleCertificate(
                index=index,
                certified_at=at or None,
                contraction=q,
                remaining=remaining,
                flip_distance=distance,
                last_change=last,
                changed_at=changed or None,
                refusal=None if at else "failed" if failed else _REFUSALS[refusal],
                failed=failed,
            ),
            None if right is None else bool(right[row]),
        )


class _Watch:
    """The monitor: step lengths and their ratios, the answers, and who is certified."""

    def __init__(
        self, model: IteratedModel, problem: Problem, batch: ExampleBatch, own: Any, options: _Options
    ) -> None:
        self._model, self._problem, self._options, self._targets = model, problem, options, batch.targets
        self._measured = problem.layout.measured()
        self._rest = RestTest(problem.state, self._measured, stochastic=False)
        drawn, _ = flatten(Noise().seeded(options.seed + 1, batch.indices).like(own), "state")
        self._directions = [drawn[i] for i in self._measured]
        rows, device = problem.rows, problem.state[0].device

        def whole() -> Tensor:
            return torch.zeros(rows, dtype=torch.int64, device=device)

        def real() -> Tensor:
            return torch.zeros(rows, dtype=torch.float64, device=device)

        self.certified_at, self.changed_at, self.last_change, self.refusal = whole(), whole(), whole(), whole()
        self.bound, self.remaining, self.distance = real(), real(), real()
        self.failed = torch.zeros(rows, dtype=torch.bool, device=device)
        self._wait_until = whole()
        self._length = real()
        self._ratios = torch.full((rows, options.certificate.window), float("inf"), dtype=torch.float64, device=device)
        self._answers: Tensor | None = None

    def observe(
        self, step: int, rows: Tensor, before: Sequence[Tensor], after: Sequence[Tensor], context: Sequence[Any]
    ) -> Release | None:
        """See `Monitor.observe`."""
        old, new = [before[i] for i in self._measured], [after[i] for i in self._measured]
        _, sizes, relative = residuals(old, new)
        failed = out_of_bounds(new, sizes)
        length, rounding = self._measure(step, rows, old, new)
        self._read_answers(step, rows, after, context, failed)
        largest = self._ratios[rows].amax(1)
        q = 1 - self._options.certificate.gap * (1 - largest)
        remaining = remaining_path(length, rounding, q)
        self.refusal[rows] = torch.where(largest.isinf(), 0, torch.where(remaining.isinf(), 1, 2))
        may = (self.certified_at[rows] == 0) & (self._wait_until[rows] <= step) & remaining.isfinite() & ~failed
        if bool(may.any()):
            self._consider(step, may.nonzero().squeeze(1), rows, after, context, length, rounding, largest)
        release, resting = failed, self._rest.observe(step, relative)
        if resting is not None:
            release = release | (resting & (self.certified_at[rows] > 0))
        if not bool(release.any()):
            return None
        self.failed[rows[failed]] = True
        return Release(release, failed)

    def _measure(self, step: int, rows: Tensor, old: list[Tensor], new: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Length of this step, and what rounding may make of one; the ratio goes to the others of the window."""
        length = row_length([b - a for a, b in zip(old, new, strict=True)])
        rounding = rounding_length(new)
        if step > 1:
            former = self._length[rows]
            # Of a step within rounding all that can be said is that nothing is left to contract.
            ratio = torch.where(length <= rounding, 0, length / former)
            self._ratios[rows] = torch.cat([self._ratios[rows, 1:], ratio[:, None]], dim=1)
        self._length[rows] = length
        return length, rounding

    def _read_answers(
        self, step: int, rows: Tensor, after: Sequence[Tensor], context: Sequence[Any], failed: Tensor
    ) -> None:
        """Notes the answers that changed, of certified examples too."""
        outputs = self._decode(after, context)
        answers = self._options.judge.decoded(outputs)
        if answers is None:
            raise InputError(f"nothing says what {self._model.name} answers; a judge with answers(outputs) does")
        if step == 1 and self._options.margins is None and logits_of(outputs, self._options.judge) is None:
            raise InputError(
                f"the answers of {self._model.name} are not the largest of logits along dimension 1 of its outputs; "
                "say with margins= what must stay above 0 for them to stay"
            )
        if self._answers is None:
            self._answers = answers.clone()
        else:
            where = asked(rows_at(self._targets, rows), answers)
            changed = ~same_answers(answers, self._answers[rows], where) | failed
            self.last_change[rows] = torch.where(changed, step, self.last_change[rows])
            late = changed & (self.certified_at[rows] > 0) & (self.changed_at[rows] == 0)
            self.changed_at[rows] = torch.where(late, step, self.changed_at[rows])
        self._answers[rows] = answers

    def _consider(
        self,
        step: int,
        chosen: Tensor,
        rows: Tensor,
        after: Sequence[Tensor],
        context: Sequence[Any],
        length: Tensor,
        rounding: Tensor,
        ratio: Tensor,
    ) -> None:
        """Certify those of the `chosen` whose remaining path is too short to change the answer."""
        given = self._options.margins

        def margins(places: Tensor) -> Margins:
            if given is not None:
                return given
            assert self._answers is not None, "read before"
            there = rows[places]
            return logit_margins(asked(rows_at(self._targets, there), self._answers[there]))

        found = consider(
            self._problem, after, context, chosen, length, rounding, ratio, [d[rows] for d in self._directions],
            decode=self._decode, margins=margins, options=self._options.certificate,
        )  # fmt: skip
        if found is None:
            return
        there, others = rows[found.rows[found.safe]], rows[found.rows[~found.safe]]
        self.certified_at[there] = step
        for store, values in (
            (self.bound, found.q),
            (self.remaining, found.remaining),
            (self.distance, found.flip),
        ):
            store[there] = values[found.safe]
        self._wait_until[others] = step + self._options.certificate.window
        self.refusal[others] = 3

    def _decode(self, leaves: Sequence[Tensor], context: Sequence[Any]) -> Any:
        return self._model.decode(self._problem.layout.build(leaves), self._problem.context_layout.build(context))

    def keep(self, index: Tensor) -> None:
        """See `Monitor.keep`."""
        self._rest.keep(index)
