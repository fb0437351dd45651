"""Breadth: several starts for each example, and one answer chosen among theirs.

Depth thinks longer from one start; breadth thinks from several. `Breadth` says how many and how to choose.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.checks import plain_numbers
from homeostat.engine import Shared, Status
from homeostat.engine.nest import flatten
from homeostat.engine.stop import check_count, check_range
from homeostat.errors import InputError
from homeostat.inference.stopped import Stopped
from homeostat.models.starts import Mixed, Noise, Perturbed, Start, stream_seed

Choose = Literal["majority", "residual", "score", "confidence", "agreement"]


@dataclass(frozen=True)
class Breadth:
    """Several starts, and how their answers become one.

    Args:
        starts: how many. The first one is always the model's own.
        choose: `"majority"`: the answer that most runs end with, of several such the one with the lowest residual;
            `"residual"`: that of the run with the lowest residual; `"score"`, `"confidence"`: the highest;
            `"agreement"`: the majority's, and it abstains unless `least_agreement` of the runs end with it.
        start: distribution of the other starts.
        least_agreement: share of the runs, for `"agreement"`.
        seed: of the starts. Every example starts from the same noise, so that an answer does not depend on its place.

    A run that was not finite is never chosen while there is another.

    Example:
        >>> Breadth(4, choose="residual")
        Breadth(starts=4, choose='residual')
    """

    starts: int
    choose: Choose = "majority"
    start: Start = field(default_factory=Noise, repr=False)
    least_agreement: float = field(default=1.0, repr=False)
    seed: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_count("starts", self.starts)
        if self.choose not in get_args(Choose):
            raise ValueError(f"choose must be one of {', '.join(get_args(Choose))}, not {self.choose!r}")
        if not isinstance(self.start, Noise | Mixed | Perturbed) and self.starts > 1:
            raise ValueError(f"start must be a distribution that draws, such as Noise(), not {self.start!r}")
        check_range("least_agreement", self.least_agreement, 0, "a share from 0 to 1", high=1)
        check_count("seed", self.seed, 0)

    def begin(self, own: Any, drawn: Any) -> Any:
        """States of all runs of some examples, run after run: `(starts * rows, ...)`.

        Args:
            own: the model's own start, `(rows, ...)`, with its marks.
            drawn: `(start) -> state`, the model's start from a distribution.
        """
        rows = len(flatten(own, "state")[0][0])
        states = [own]
        for run in range(1, self.starts):
            states.append(drawn(self.start.seeded(stream_seed(self.seed, run), [0] * rows)))
        parts = [flatten(state, "state") for state in states]
        leaves = [torch.cat(together) for together in zip(*(leaves for leaves, _ in parts), strict=True)]
        return parts[0][1].build(leaves, marks=True)

    def choose_runs(self, runs: Stopped, asked: Tensor | None) -> tuple[Tensor, Tensor]:
        """Which run of each example is its answer, and how many runs agree with it.

        Args:
            runs: `(starts * rows,)`, run after run.
            asked: `(rows, ...)` bool, where an answer is asked; None is everywhere.

        Returns:
            `(rows,)` int64 number of the run, and `(rows,)` float64 share of the runs that end with its answer.

        Raises:
            InputError: the model has no score, no confidence, or no answers, where these are to choose.
        """
        if self.choose in ("majority", "agreement") and not runs.answers[0].numel():
            raise InputError(f"choose={self.choose!r} compares decoded answers, and nothing says what these are")
        shape = (self.starts, len(runs.steps) // self.starts)
        answers = runs.answers.reshape(*shape, runs.answers[0].numel())
        failed, residual = (runs.status == int(Status.DIVERGED)).reshape(shape), runs.residual.reshape(shape)
        asked = None if asked is None else asked.flatten(1)
        votes = torch.zeros(failed.shape, dtype=torch.float64, device=failed.device)
        for other, lost in zip(answers, failed, strict=True):
            equal = answers == other
            votes += ((equal if asked is None else equal | ~asked).all(2) & ~lost).double() / self.starts
        votes = votes.masked_fill(failed, 0)
        lowest = torch.where(failed | residual.isnan(), float("inf"), residual.double())
        if self.choose == "residual":
            chosen = lowest.argmin(0)
        elif self.choose in ("score", "confidence"):
            values = (runs.score if self.choose == "score" else runs.confidence).reshape(self.starts, -1)
            if bool((values.isnan() & ~failed).any()):
                raise InputError(f"choose={self.choose!r}: the model has no {self.choose}")
            chosen = values.double().masked_fill(failed, -float("inf")).argmax(0)
        else:
            chosen = torch.where(votes == votes.amax(0), lowest, float("inf")).argmin(0)
        return chosen, votes.gather(0, chosen[None])[0]


def widen(context: Any, starts: int) -> Any:
    """A context, with its marks, once for each run: `(starts * rows, ...)`."""
    leaves, layout = flatten(context, "context")
    wide = [
        (None if x is None else Shared(x)) if kind == "shared" else x.repeat(starts, *([1] * (x.ndim - 1)))
        for x, kind in zip(leaves, layout.kinds, strict=True)
    ]
    return pytree.tree_unflatten(wide, layout.spec)
