"""Do the examples of a batch hear of one another? Some of them are evaluated without the others, and compared.

A step that normalises over the batch, nodes of a graph as rows, a shared tensor that is not marked: the value looks
right as long as nobody leaves, and the gradient, or the first row that leaves, is wrong without a word.

A half of the rows is evaluated without the other half. Where that gives other values, the batch is evaluated with its
other rows replaced by copies of one example: what then changes heard of them, and kernels that round differently for
fewer rows are told apart from that. A dependence of one row on one other is found where the first is in the half and
the second is not. At the first use of a step about log2 of the number of rows halves are taken, such that every row is
without every other one in one of them, so that no pair is missed. After that it is one random half, with probability
1/4, both ways 1/2; k independent pairs are missed with probability (3/4)^k.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.engine.closures import HINT
from homeostat.engine.forward.looks import forget, is_new
from homeostat.engine.nest import select
from homeostat.engine.norms import noise_floor, row_lengths, row_rms
from homeostat.engine.problem import Problem
from homeostat.errors import ContractError

Rows = NDArray[np.int64]

# Kernels for fewer rows round differently: up to the first nobody looks twice, beyond the second it is no rounding.
_SUSPICIOUS, _CERTAIN = 64, 1e4
# The same kernels on the same number of rows: rounding of what does not depend on the others is the same.
_SAME = 4

_draws = itertools.count()


def check_rows(
    problem: Problem,
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    context: Sequence[Any],
    *,
    noise: bool = False,
) -> None:
    """Take a step again with some of its rows alone: at its first use in several choices, after that in one.

    Args:
        problem: the map.
        before, after: leaves of z and f(z) of the rows that are in the batch.
        context: leaves of the context of these rows.
        noise: whether a step that gives other values each time is nobody's business: of its rows nothing is said then.

    Raises:
        ContractError: rows depend on one another.
    """
    rows = np.arange(len(after[0]))
    if len(rows) < 2:
        return
    try:
        with _same_numbers_as_before():
            for half in halves(rows, thorough=is_new(problem.step, "values")):
                _check_half(problem, list(before), list(after), list(context), half, noise)
    except ContractError:
        forget(problem.step)
        raise


@contextmanager
def _same_numbers_as_before() -> Iterator[None]:
    """A step that draws random numbers draws the same ones after this as without it."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def halves(rows: Rows, *, thorough: bool) -> list[Rows]:
    """Which rows are evaluated together, in any order.

    Args:
        rows: two or more.
        thorough: for every row and every other, one that has the first and not the second; otherwise a random one.

    Example:
        >>> sorted(sorted(half.tolist()) for half in halves(np.arange(3), thorough=True))
        [[0, 1], [0, 2], [1, 2]]
    """
    draw = np.random.default_rng(next(_draws))
    rows = draw.permutation(rows)
    if not thorough:
        return [rows[: len(rows) // 2]]
    # Words of equal weight: of any two, each has a one where the other has none.
    length = next(n for n in itertools.count(2) if math.comb(n, n // 2) >= len(rows))
    words = itertools.islice(itertools.combinations(range(length), (length + 1) // 2), len(rows))
    table = np.zeros((length, len(rows)), bool)
    for column, word in enumerate(words):
        table[list(word), column] = True
    return [rows[chosen] for chosen in table if chosen.any()]


def _check_half(
    problem: Problem, before: list[Tensor], after: list[Tensor], context: list[Any], half: Rows, noise: bool
) -> None:
    index = torch.from_numpy(half).to(before[0].device)
    state, wanted = (select(leaves, problem.layout, index) for leaves in (before, after))
    alone = _evaluate(problem, state, select(context, problem.context_layout, index))
    if _are_near(problem, alone, wanted):
        return
    excess = _distance(problem, alone, wanted, state)
    most, row = float(excess.max()), int(half[int(excess.argmax())])
    if most <= _SUSPICIOUS:
        return
    # And it is looked at once more whether the step leaves alone what it is given: that would explain it as well.
    reference, again = (_evaluate(problem, before, context, compare=True) for _ in range(2))
    if float(_distance(problem, reference, again, before).max()) > _SAME:
        if noise:
            return
        raise ContractError(f"step gives another answer each time it is called. {HINT}")
    other = _who(problem, before, context, half, row, reference)
    if other is not None:
        raise ContractError(f"step gives row {row} another answer when row {other} is another one. {HINT}")
    if most > _CERTAIN:
        size, whole = len(half), len(after[0])
        raise ContractError(f"step gives row {row} another answer among {size} rows than among {whole}. {HINT}")


def _who(
    problem: Problem, before: list[Tensor], context: list[Any], half: Rows, row: int, reference: list[Tensor]
) -> int | None:
    """One of the rows outside of the half that `row` hears of; None where it hears of none."""
    count = len(before[0])

    def hears(of: Rows) -> bool:
        changed = np.arange(count)
        changed[of] = half[0]
        index = torch.from_numpy(changed).to(before[0].device)
        state = select(before, problem.layout, index)
        for i in problem.layout.measured():  # or copies of the same would go unnoticed
            nudge = torch.zeros(count, dtype=torch.bool, device=index.device).index_fill_(0, index.new_tensor(of), True)
            moved = state[i] + (0.01 * row_rms(state[i]) + 0.01).to(state[i].dtype).view(-1, *[1] * (state[i].ndim - 1))
            state[i] = torch.where(nudge.view(-1, *[1] * (state[i].ndim - 1)), moved, state[i])
        found = _evaluate(problem, state, select(context, problem.context_layout, index))
        return float(_distance(problem, found, reference, before)[row]) > _SAME

    others = np.setdiff1d(np.arange(count), half)
    if not hears(others):
        return None
    while len(others) > 1:
        first, second = np.array_split(others, 2)
        others = first if hears(first) else second
    return int(others[0])


def _evaluate(problem: Problem, state: list[Tensor], context: list[Any], *, compare: bool = False) -> list[Tensor]:
    with torch.no_grad():
        try:
            return problem.bind(context, compare=compare)(state)
        except (RuntimeError, IndexError, ValueError) as error:  # it could be taken with all rows
            raise ContractError(f"step cannot be taken with {len(state[0])} of its rows ({error}). {HINT}") from error


def _are_near(problem: Problem, found: list[Tensor], wanted: list[Tensor]) -> bool:
    """Whether no row differs by more than what is suspicious, found in few operations; False where that is not sure."""
    with torch.no_grad():
        for i in problem.layout.measured():
            old = wanted[i].detach()
            room = noise_floor([old], _SUSPICIOUS) * row_lengths(old)
            if not bool((row_lengths(found[i].detach() - old) <= room).all()):
                return False
    return True


def _distance(problem: Problem, found: list[Tensor], wanted: list[Tensor], scale: list[Tensor]) -> Tensor:
    """`(rows,)`: root mean square of the difference in units in the last place, the largest over the leaves.

    0 in rows that are not finite: of them nothing can be said.
    """
    with torch.no_grad():
        excess = []
        for i in problem.layout.measured():
            new, old, size = found[i].detach(), wanted[i].detach(), scale[i].detach()
            unit = noise_floor([old], 1) * torch.maximum(row_rms(old), row_rms(size))
            change = row_rms(new - old)
            change = torch.where((change == 0) | ~torch.isfinite(unit), 0.0, change / unit)
            excess.append(change.to(torch.float64).nan_to_num(nan=math.inf))
        return torch.stack(excess).amax(0)


def check_products(pull: Callable[[Sequence[Tensor]], list[Tensor]], inputs: Sequence[Tensor]) -> None:
    """Look at every pair of rows by products with the Jacobian: rows with equal values hide from a look at values.

    Args:
        pull: `J^T u` over all rows.
        inputs: measured leaves of the state.

    Raises:
        ContractError: rows depend on one another.
    """
    rows = len(inputs[0])
    if rows < 2:
        return
    draw = np.random.default_rng(next(_draws))
    for half in halves(np.arange(rows), thorough=True):
        place = torch.from_numpy(half).to(inputs[0].device)
        given = []
        for x in inputs:
            values = torch.from_numpy(draw.standard_normal((len(half), *x.shape[1:]))).to(x.device, x.dtype)
            given.append(torch.zeros_like(x).index_copy_(0, place, values))
        check_silence(pull(given), given, place)


def check_silence(found: Sequence[Tensor], given: Sequence[Tensor], place: Tensor) -> None:
    """Make sure that a Jacobian product of some rows is 0 in all others.

    Args:
        found: the product, over all rows that were recorded.
        given: what it was taken of: 0 outside of `place`.
        place: which of the recorded rows are not 0.

    Raises:
        ContractError: rows depend on one another.
    """
    for product, vector in zip(found, given, strict=True):
        others = row_rms(product.index_fill(0, place, 0))
        size = torch.maximum(row_rms(product).max(), row_rms(vector).max())
        heard = others > noise_floor([product], _SUSPICIOUS) * size
        if bool(heard.any()):
            row = int(others.nan_to_num(nan=0).argmax())
            raise ContractError(f"a gradient of other rows reaches row {row} of those that were recorded. {HINT}")
