"""torchdeq's solvers by their names and signatures, and the statistics that they return; the work is the engine's.

What torchdeq iterates is a closure over a whole batch, and some of them couple its rows (a graph's nodes, the time
steps of a sampler). So no row leaves before all are within tolerance, which is torchdeq's own rule; `homeostat.solve`,
where the context travels as an argument, lets finished rows go.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homeostat.checks import plain_numbers
from homeostat.compat.torchdeq.together import Table, Together, solve_together
from homeostat.engine.batch_statistics import refuse_batch_statistics
from homeostat.engine.methods import Anderson, Broyden, Method, Picard
from homeostat.engine.norms import row_lengths
from homeostat.engine.problem import Problem
from homeostat.engine.stop import check_count, check_range
from homeostat.errors import InputError, warn_caller

SOLVERS = ("fixed_point_iter", "simple_fixed_point_iter", "anderson", "broyden")

_UNSET = -1.0  # torchdeq's mark of a figure that was not taken
_NOTHING_YET = 1e8  # and of one that no step has been taken for

_TAKEN_BY = {
    "tau": ("fixed_point_iter", "simple_fixed_point_iter", "anderson"),
    "return_final": ("fixed_point_iter", "anderson", "broyden"),
    "m": ("anderson",),
    "lam": (),
    "LBFGS_thres": ("broyden",),
    "ls": (),
}
"""Options of torchdeq's solvers, and the solvers that they mean something to here."""

_WITHOUT_EFFECT = {
    "lam": "lam has no effect: the least-squares problem is regularised relative to its own size",
    "ls": "ls=True has no effect: a safeguard takes the place of torchdeq's line search",
}


class SolverStat(dict[str, Tensor]):
    """Statistics of a solve under torchdeq's keys.

    | key | shape | |
    |---|---|---|
    | `abs_lowest` | `(B,)` | the lowest error, the Euclidean norm of f(z) - z over all tensors of an example |
    | `rel_lowest` | `(B,)` | the lowest error over the Euclidean norm of f(z) |
    | `abs_trace`, `rel_trace` | `(B, 1 + max_iter)` | the error of each evaluation; the first column, before any, is \
1e8, and after the last evaluation the lowest error is repeated |
    | `nstep` | `(B,)` float32 | the evaluation with the lowest error |
    | `sradius` | `(B,)` | spectral radius, with `sradius_mode` in evaluation; otherwise one 0, in training one -1 |

    What was not measured is -1.

    Example:
        >>> SolverStat()["nstep"]
        tensor([-1.])
    """

    def __init__(self, **known: Tensor) -> None:
        super().__init__(known)
        for key in ("abs_lowest", "rel_lowest", "abs_trace", "rel_trace", "nstep", "sradius"):
            if key not in known:
                self[key] = torch.tensor([[_UNSET]] if key.endswith("trace") else [_UNSET])


@dataclass(frozen=True)
class SolverOptions:
    """What a solver of torchdeq is told beside its function: checked when made.

    Args:
        solver: one of `SOLVERS`.
        max_iter: evaluations, for every solver alike.
        tol: error at which an example is finished.
        stop_mode: which error, `"abs"` or `"rel"`.
        more: `tau`, `return_final`, `m`, `LBFGS_thres`, `lam`, `ls`; one that means nothing to the solver is warned of.
    """

    solver: str
    max_iter: int
    tol: float
    stop_mode: str
    more: dict[str, Any]

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_count("max_iter", self.max_iter, 0)
        check_range("tol", self.tol, 0, "a number, 0 or more")
        if self.stop_mode not in ("abs", "rel"):
            raise InputError(f"the stop mode must be 'abs' or 'rel', not {self.stop_mode!r}")
        if self.solver not in SOLVERS:
            raise InputError(f"there is no solver {self.solver!r}; there are {', '.join(SOLVERS)}")
        for name, value in self.more.items():
            if name not in _TAKEN_BY:
                hint = " (Anderson's damping is called tau)" if name == "beta" else ""
                raise InputError(f"a solver has no option {name!r}{hint}; there are {', '.join(_TAKEN_BY)}")
            if self.solver in _TAKEN_BY[name] or (name == "ls" and not value):
                continue
            what = _WITHOUT_EFFECT.get(name, f"{name} has no effect on the solver {self.solver}")
            warn_caller(what, UserWarning)
        check_range("tau", self.tau, 1e-6, "a number above 0")

    @property
    def tau(self) -> float:
        """Share of the way that a step goes; of Broyden's method always 1."""
        return self.more.get("tau", 1.0) if self.solver in _TAKEN_BY["tau"] else 1.0

    @property
    def simple(self) -> bool:
        """Exactly `max_iter` steps, and nothing measured but the last."""
        return self.solver == "simple_fixed_point_iter"

    @property
    def final(self) -> bool:
        """Take all steps and return the last state."""
        return self.simple or bool(self.more.get("return_final", False))

    @property
    def method(self) -> Method:
        """The engine's method."""
        if self.solver == "anderson":
            return Anderson(memory=self.more.get("m", 6), damping=self.tau)
        if self.solver == "broyden":
            # torchdeq keeps as many updates as there are steps; the engine's memory grows as it is used.
            return Broyden(memory=self.more.get("LBFGS_thres") or max(self.max_iter, 1))
        return Picard()

    def solve(
        self,
        step: Callable[[Any], Any],
        state: Any,
        samples: Sequence[int] = (),
        behind: Callable[[], Table] | None = None,
    ) -> tuple[Any, list[Any], SolverStat]:
        """Iterate `step` from `state`.

        Args:
            step: `state -> state`.
            state: a tensor or a tuple of tensors, batch first.
            samples: evaluations after which the state is kept.
            behind: `state` is the value of one more evaluation, from 0, whose size `(rows,)` this gives: the statistics
                are to count it.

        Returns:
            The state, the states at the samples, and statistics.
        """
        if self.tau != 1 and self.solver != "anderson":
            step = damped(step, self.tau)  # torchdeq returns, and measures, the damped step
        if self.simple:
            return repeat(step, state, self.max_iter, samples, counted_before=behind is not None)
        found = solve_together(
            step,
            state,
            method=self.method,
            max_steps=self.max_iter,
            tol=0.0 if self.final else self.tol,
            relative=self.stop_mode == "rel",
            samples=samples,
            final=self.final,
        )
        return found.state, found.samples, statistics(found if behind is None else found.behind(behind()))


def damped(step: Callable[[Any], Any], tau: float) -> Callable[[Any], Any]:
    """`tau f(z) + (1 - tau) z`.

    Example:
        >>> damped(lambda z: z + 2, 0.5)(torch.tensor([1.0]))
        tensor([2.])
    """
    if tau == 1:
        return step

    def mixed(state: Any) -> Any:
        after = step(state)
        if isinstance(state, Tensor):
            return torch.lerp(state, after, tau)
        return tuple(torch.lerp(z, new, tau) for z, new in zip(state, after, strict=True))

    return mixed


def statistics(found: Together) -> SolverStat:
    """What was found on the way, under torchdeq's keys."""
    numbers = {
        "abs_lowest": found.lowest_absolute.clip(max=_NOTHING_YET),
        "rel_lowest": found.lowest_relative.clip(max=_NOTHING_YET),
        "abs_trace": found.trace(found.absolute, found.lowest_absolute, _NOTHING_YET),
        "rel_trace": found.trace(found.relative, found.lowest_relative, _NOTHING_YET),
        "nstep": found.at,
    }
    made = {key: torch.from_numpy(value.astype(np.float32)) for key, value in numbers.items()}
    return SolverStat(**{key: value.to(found.device) for key, value in made.items()})


def repeat(
    step: Callable[[Any], Any], state: Any, count: int, samples: Sequence[int] = (), counted_before: bool = False
) -> tuple[Any, list[Any], SolverStat]:
    """`count` plain steps, of which only the last is measured."""
    before, kept = state, {}
    with torch.no_grad():
        for number in range(1, count + 1):
            before, state = state, step(state) if number > 1 else _first(step, state)
            if number in samples:
                kept[number] = state
        info = solver_stat_from_final_step(before, state, count + counted_before)
    return state, [kept.get(mark, state) for mark in samples], info


def _first(step: Callable[[Any], Any], state: Any) -> Any:
    """One evaluation, held against the contract: a step that kept it once is not looked at again."""
    with refuse_batch_statistics():
        if isinstance(state, Tensor) and state.ndim and state.is_floating_point() and not state.is_inference():
            version, after = state._version, step(state)
            same = isinstance(after, Tensor) and (after.shape, after.dtype) == (state.shape, state.dtype)
            if same and after.device == state.device and state._version == version:
                return after
        problem = Problem.of(lambda z, _: step(z), state, None)
        return problem.layout.build(problem.apply(problem.state, [None]))


def solver_stat_from_final_step(z: Any, fz: Any, nstep: int = 0) -> SolverStat:
    """Statistics of one evaluation.

    Args:
        z: the state, a tensor or a list of tensors, batch first.
        fz: the map's value there.
        nstep: evaluations before.

    Example:
        >>> solver_stat_from_final_step(torch.zeros(2, 4), torch.ones(2, 4), 7)["abs_lowest"]
        tensor([2., 2.])
    """
    if isinstance(z, Tensor):
        change, size = row_lengths(fz - z), row_lengths(fz)
    else:
        change = torch.stack([row_lengths(new - old) for old, new in zip(z, fz, strict=True)]).norm(dim=0)
        size = torch.stack([row_lengths(new) for new in fz]).norm(dim=0)
    relative = change / (size + 1e-8)
    return SolverStat(
        abs_lowest=change,
        rel_lowest=relative,
        abs_trace=change[:, None],
        rel_trace=relative[:, None],
        nstep=torch.full_like(change, nstep, dtype=torch.float32),
    )


def _named(
    solver: str,
    func: Callable[[Any], Any],
    x0: Any,
    max_iter: int = 50,
    tol: float = 1e-3,
    stop_mode: str = "abs",
    indexing: Sequence[int] | None = None,
    **more: Any,
) -> tuple[Any, list[Any], SolverStat]:
    """A fixed point of `func` from `x0`: the state, the states after the evaluations `indexing`, and statistics."""
    return SolverOptions(solver, max_iter, tol, stop_mode, more).solve(func, x0, indexing or ())


fixed_point_iter = partial(_named, "fixed_point_iter")
simple_fixed_point_iter = partial(_named, "simple_fixed_point_iter")
anderson_solver = partial(_named, "anderson")
broyden_solver = partial(_named, "broyden")


def get_solver(key: str) -> Callable[..., tuple[Any, list[Any], SolverStat]]:
    """The solver of this name.

    Returns:
        `solver(func, x0, max_iter=50, tol=1e-3, stop_mode="abs", indexing=None, **more)`, which returns the state, the
        states after the evaluations `indexing`, and a `SolverStat`.

    Raises:
        InputError: another name.

    Example:
        >>> state, _, info = get_solver("anderson")(lambda z: 0.5 * z + 1, torch.zeros(2, 3), tol=1e-5)
        >>> state[0].round(decimals=3), bool((info["abs_lowest"] < 1e-5).all())
        (tensor([2., 2., 2.]), True)
    """
    if key not in SOLVERS:
        raise InputError(f"there is no solver {key!r}; there are {', '.join(SOLVERS)}")
    return partial(_named, key)
