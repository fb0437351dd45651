"""torchdeq's solvers, called so that they do as many evaluations as asked for, with their stopping test on.

They are called directly, without torchdeq's module around them, which would only add to their time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.cells import Cell, Step

try:
    from torchdeq import get_deq  # pyright: ignore[reportMissingImports]
    from torchdeq.solver import get_solver  # pyright: ignore[reportMissingImports]
except ImportError:
    get_deq = get_solver = None

MISSING = "torchdeq is not installed"
NAMES = {"Picard": "fixed_point_iter", "Anderson": "anderson", "Broyden": "broyden"}


def available() -> bool:
    return get_solver is not None


def solver(
    method: str, evaluations: int, *, tol: float = 1e-6, mode: str = "rel", **options: Any
) -> Callable[..., Any]:
    """`run(step, state, context)`, at most `evaluations` of the map; returns the state and torchdeq's statistics."""
    assert get_solver is not None
    found = get_solver(NAMES[method])
    # Broyden evaluates the start before its first counted step; the two others count every evaluation.
    budget = evaluations - 1 if method == "Broyden" else evaluations

    def run(step: Step, state: Tensor, context: Any) -> tuple[Tensor, Any]:
        with torch.no_grad():
            end, _, statistics = found(
                lambda z: step(z, context), state, max_iter=budget, tol=tol, stop_mode=mode, **options
            )
        return end, statistics

    return run


def overhead_run(method: str, cell: Cell, evaluations: int, memory: int | None) -> Callable[[], Any]:
    """A solve for the overhead table, with the memory that ours has."""
    options: dict[str, Any] = {}
    if method == "Anderson":
        options["m"] = memory
    if method == "Broyden":
        options["LBFGS_thres"] = memory
    run = solver(method, evaluations, **options)
    return lambda: run(cell.step, cell.state, cell.context)


def equilibrium(forward: int, backward: int, tol: float) -> Any:
    """A module with the implicit gradient by plain iteration, forward and back, in training mode."""
    assert get_deq is not None
    module = get_deq(
        core="sliced",
        ift=True,
        f_solver="fixed_point_iter",
        b_solver="fixed_point_iter",
        f_max_iter=forward,
        b_max_iter=backward,
        f_tol=tol,
        b_tol=tol,
        f_stop_mode="rel",
        b_stop_mode="rel",
    )
    return module.train()
