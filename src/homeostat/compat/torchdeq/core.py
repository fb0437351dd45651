"""torchdeq's layer, `z_out, info = deq(f, z0)`, on our engine."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.compat.torchdeq.dropout import reset_dropout
from homeostat.compat.torchdeq.gradients import Gradient, Implicit, Phantom
from homeostat.compat.torchdeq.norm import reset_norm
from homeostat.compat.torchdeq.options import read_options
from homeostat.compat.torchdeq.solver import SolverOptions, SolverStat
from homeostat.errors import ContractError, InputError
from homeostat.nn.jacobian import spectral_radius

Writer = Callable[[SolverStat], Any]


class DEQ(nn.Module):
    """A layer that finds the fixed point of a function that it is given with every call. Make it by `get_deq`.

    It holds its options and nothing else: it can be pickled, copied, and called as often as wanted before one
    `backward()`.
    """

    core = "sliced"

    def __init__(self, args: Any = None, **options: Any) -> None:
        super().__init__()
        self.options = read_options(args, options, self.core)

    def forward(
        self,
        func: Callable[..., Any],
        z_init: Any,
        solver_kwargs: dict[str, Any] | None = None,
        sradius_mode: bool = False,
        backward_writer: Writer | None = None,
        writer: Writer | None = None,
    ) -> tuple[list[Any], SolverStat]:
        """Solve `z = func(z)`, and tie the gradient to it.

        Args:
            func: one tensor to one tensor, or several, given one by one, to as many; batch first.
            z_init: where to start, a tensor or a list of tensors.
            solver_kwargs: for this call, `f_max_iter` and options of the solver: `tau`, `return_final`, `m`,
                `LBFGS_thres`.
            sradius_mode: in evaluation, put the spectral radius of each example's Jacobian into `info["sradius"]`.
            backward_writer: called with the statistics of every solve that `backward()` makes; `writer` is another
                name for it.

        Returns:
            A list of states, in training one for each that `n_states`, `indexing`, `sup_gap` and `sup_loc` ask for,
            otherwise one; each a tensor, or a list of tensors. And the statistics of the forward solve.

        Raises:
            InputError: an unknown option in `solver_kwargs`.
            ContractError: a function that changes a shape, a dtype or the number of its tensors.
        """
        step, state = _checked(func, z_init)
        given = dict(solver_kwargs or {})
        limit = given.pop("f_max_iter", None)
        backward_writer = backward_writer or writer
        if not self.training:
            states, info = self._evaluate(step, state, limit, given, sradius_mode, backward_writer)
        else:
            states, info = self._train(step, state, limit, given, backward_writer)
        return [z if isinstance(z, Tensor) else list(z) for z in states], info

    def _train(
        self, step: "Step", state: Any, limit: int | None, given: dict[str, Any], writer: Writer | None
    ) -> tuple[list[Any], SolverStat]:
        """A solve for each sampled state, each from what the gradient before it gave: torchdeq's `sliced`."""
        states, info = [], SolverStat()
        before = 0
        for mark, gradient in self._gradients(limit):
            solved, _, info = self._solver(mark - before, given).solve(step, state)
            before = mark
            states += gradient.states(step, solved, writer)
            state = states[-1]
        return states, info

    def _evaluate(
        self,
        step: "Step",
        state: Any,
        limit: int | None,
        given: dict[str, Any],
        sradius_mode: bool,
        writer: Writer | None,
    ) -> tuple[list[Any], SolverStat]:
        limited = self._solver(self.options.evaluation_steps if limit is None else limit, given)
        state, _, info = limited.solve(step, state)
        info["sradius"] = torch.zeros(1, device=info["nstep"].device)
        if sradius_mode:
            info["sradius"] = spectral_radius(lambda z, _: step(z), state)
        if torch.is_grad_enabled():
            _, gradient = self._gradients(limit)[-1]
            state = gradient.tied(step, state, writer)
        return [state], info

    def _solver(self, limit: int, given: dict[str, Any]) -> SolverOptions:
        o = self.options
        return SolverOptions(o.f_solver, limit, o.f_tol, o.f_stop_mode, given)

    def _gradients(self, limit: int | None) -> list[tuple[int, Gradient]]:
        """The evaluations after which a state is returned, each with its gradient."""
        o = self.options
        marks = o.sampled(o.f_max_iter if limit is None else limit)
        grads = o.grads if len(o.grads) > 1 else o.grads * len(marks)
        assert isinstance(o.sup_loc, tuple)
        found: list[Gradient] = [Phantom(steps, o.tau, o.sup_gap, o.sup_loc) for steps in grads]
        if o.implicit:
            found[-1] = Implicit(SolverOptions(o.b_solver, o.b_max_iter, o.b_tol, o.b_stop_mode, {}))
        return list(zip(marks, found, strict=True))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in vars(self.options).items())


class DEQSliced(DEQ):
    """Every returned state is where the next solve starts, behind the steps of its gradient."""


class DEQIndexing(DEQ):
    """All returned states are from one solve, and the steps of their gradients stand beside it."""

    core = "indexing"

    def _train(
        self, step: "Step", state: Any, limit: int | None, given: dict[str, Any], writer: Writer | None
    ) -> tuple[list[Any], SolverStat]:
        gradients = self._gradients(limit)
        marks = [mark for mark, _ in gradients]
        _, samples, info = self._solver(marks[-1], given).solve(step, state, marks)
        states: list[Any] = []
        for sample, (_, gradient) in zip(samples, gradients, strict=True):
            states += gradient.states(step, sample, writer)
        return states, info


Step = Callable[[Any], Any]
"""`state -> state`, a tensor or a tuple of tensors."""


def _checked(func: Callable[..., Any], z_init: Any) -> tuple[Step, Any]:
    """The function on a tensor or a tuple of tensors, and the start as one of these."""
    if not callable(func):
        raise InputError(f"func must be a function or a module, not {func!r}")
    if isinstance(z_init, Tensor):
        return func, z_init
    if not isinstance(z_init, Sequence) or not z_init or not all(isinstance(z, Tensor) for z in z_init):
        raise ContractError(f"z_init must be a tensor or a list of tensors, batch first, not {type(z_init).__name__}")

    def step(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        after = func(*state)
        return (after,) if isinstance(after, Tensor) else tuple(after)

    return step, tuple(z_init)


_CORES: dict[str, type[DEQ]] = {"sliced": DEQSliced, "indexing": DEQIndexing}


def get_deq(args: Any = None, **options: Any) -> DEQ:
    """A layer from torchdeq's options, `z_out, info = deq(f, z0)`.

    Args:
        args: a dict of options, an `argparse.Namespace` as `add_deq_args` fills it, or None.
        options: options by name, which go before those in `args`.

    Raises:
        InputError: an unknown option (in a Namespace other names are the program's own), or a value that makes no
            sense.

    Example:
        >>> deq = get_deq(f_solver="anderson", f_tol=1e-5, ift=True)
        >>> x = torch.ones(4, 3, requires_grad=True)
        >>> z_out, info = deq(lambda z: 0.5 * z + x, torch.zeros(4, 3))
        >>> z_out[-1].sum().backward()
        >>> z_out[-1][0].detach().round(decimals=3), x.grad[0].round(decimals=3)
        (tensor([2., 2., 2.]), tensor([2., 2., 2.]))
        >>> get_deq(f_slover="anderson")
        Traceback (most recent call last):
        homeostat.errors.InputError: there is no option 'f_slover': did you mean 'f_solver'?
    """
    return _CORES[read_options(args, options).core](args, **options)


def reset_deq(model: nn.Module) -> None:
    """Compute normalised weights anew, and forget the masks of dropouts: once before each solve.

    Example:
        >>> reset_deq(nn.Linear(2, 2))  # nothing to reset
    """
    reset_norm(model)
    reset_dropout(model)
