"""Where a run ends: its last state, what that is (a fixed point, a cycle, ...), and which rows failed on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.iterate import Release, iterate
from homeostat.engine.norms import out_of_bounds, residuals
from homeostat.engine.problem import Problem
from homeostat.probes.limits.limit_test import LimitTest
from homeostat.probes.results import LimitClass
from homeostat.probes.sweep import OnStep, RestTest


@dataclass(frozen=True, repr=False)
class End:
    """The last states of a batch, `(rows,)` each, on the device."""

    leaves: list[Tensor]
    """Failed rows hold their last finite state."""
    failed: Tensor
    residual: Tensor
    """float64, of the last step; infinite for failed rows."""
    limit: list[tuple[LimitClass, int | None]]
    period: Tensor
    """int64; 0 for rows that do not end in a cycle."""
    repeat: Tensor
    """float64, smallest residual over 2 to 16 steps: that of the period where there is one."""
    evaluations: int


def run_to_end(
    problem: Problem, steps: int, *, rtol: float, stochastic: bool = False, on_step: OnStep | None = None
) -> End:
    """Take `steps` steps, without gradients. Rows leave early only when nothing but rounding is left of them, or when
    they are not finite.
    """
    with torch.no_grad():
        ending = _Ending(problem, steps, stochastic, on_step)
        leaves, evaluations = iterate(problem, max_steps=steps, monitor=ending)
    limit = ending.limits.classes(ending.failed, ending.residual, rtol)
    return End(
        leaves=leaves,
        failed=ending.failed,
        residual=ending.residual,
        limit=limit,
        period=torch.tensor([period or 0 for _, period in limit], device=ending.failed.device),
        repeat=ending.limits.repeat,
        evaluations=evaluations,
    )


class _Ending:
    """The monitor: remembers the newest residual of every row, and lets go of rows that rest or fail."""

    def __init__(self, problem: Problem, steps: int, stochastic: bool, on_step: OnStep | None) -> None:
        self._on_step = on_step
        self._measured = problem.layout.measured()
        self._rest = RestTest(problem.state, self._measured, stochastic)
        device = problem.state[0].device
        self.limits = LimitTest(problem.rows, steps, device)
        self.failed = torch.zeros(problem.rows, dtype=torch.bool, device=device)
        self.residual = torch.full((problem.rows,), float("inf"), dtype=torch.float64, device=device)

    def observe(
        self, step: int, rows: Tensor, before: Sequence[Tensor], after: Sequence[Tensor], context: Sequence[Any]
    ) -> Release | None:
        """See `Monitor.observe`."""
        if self._on_step is not None:
            self._on_step(step)
        new = [after[i] for i in self._measured]
        changes, sizes, relative = residuals([before[i] for i in self._measured], new)
        failed = out_of_bounds(new, sizes)
        relative = relative.masked_fill(failed, float("inf"))
        self.residual[rows] = relative.double()
        self.limits.observe(step, rows, new, changes, sizes, relative)
        release, resting = failed, self._rest.observe(step, relative)
        if resting is not None:
            release = release | resting
        if not bool(release.any()):
            return None
        self.failed[rows[failed]] = True
        return Release(release, failed)

    def keep(self, index: Tensor) -> None:
        """See `Monitor.keep`."""
        self._rest.keep(index)
        self.limits.keep(index)
