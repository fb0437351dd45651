"""torchdeq's options by their names, each checked, and none taken that is not known."""

import difflib
import itertools
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from homeostat.checks import plain_numbers
from homeostat.compat.torchdeq.solver import SOLVERS
from homeostat.engine.stop import check_count, check_range
from homeostat.errors import InputError, warn_caller

CORES = ("sliced", "indexing")

_READ_ELSEWHERE = {
    "norm_type": "apply_norm",
    "norm_no_scale": "apply_norm",
    "norm_clip": "apply_norm",
    "norm_clip_value": "apply_norm",
    "norm_target_norm": "apply_norm",
    "sn_n_power_iters": "apply_norm",
    "gamma": "fp_correction",
    "jac_loss_weight": "your loss",
    "jac_loss_freq": "your loss",
    "jac_incremental": "your loss",
    "sradius_mode": "the call of the layer",
}
"""What `add_deq_args` adds for others than the layer."""


@dataclass(frozen=True)
class Options:
    """The options of a layer; see docs/torchdeq.md for what each does here.

    Raises:
        InputError, ValueError: a value that makes no sense, saying which would.

    Example:
        >>> Options(f_solver="anderson", f_tol=1e-4).f_solver
        'anderson'
        >>> Options(f_stop_mode="relative")
        Traceback (most recent call last):
        homeostat.errors.InputError: f_stop_mode must be 'abs' or 'rel', not 'relative'
    """

    core: str = "sliced"
    f_solver: str = "fixed_point_iter"
    b_solver: str = "fixed_point_iter"
    no_stat: bool | None = None
    f_max_iter: int = 40
    b_max_iter: int = 40
    f_tol: float = 1e-3
    b_tol: float = 1e-6
    f_stop_mode: str = "abs"
    b_stop_mode: str = "abs"
    eval_factor: float = 1.0
    eval_f_max_iter: int = 0
    ift: bool = False
    hook_ift: bool = False
    grad: int | Sequence[int] = 1
    tau: float = 1.0
    sup_gap: int = -1
    sup_loc: Sequence[int] | None = None
    n_states: int = 1
    indexing: Sequence[int] | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        self._one_of("core", CORES)
        for name in ("f_solver", "b_solver"):
            self._one_of(name, SOLVERS)
        for name in ("f_stop_mode", "b_stop_mode"):
            self._one_of(name, ("abs", "rel"))
        for name, least in (("f_max_iter", 0), ("b_max_iter", 1), ("eval_f_max_iter", 0), ("n_states", 1)):
            check_count(name, getattr(self, name), least)
        for name in ("f_tol", "b_tol"):
            check_range(name, getattr(self, name), 0, "a number, 0 or more")
        for name in ("tau", "eval_factor"):
            check_range(name, getattr(self, name), 1e-6, "a number above 0")
        for name in ("ift", "hook_ift"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.no_stat and self.f_solver != "simple_fixed_point_iter":
            raise InputError(
                "no_stat=True means f_solver='simple_fixed_point_iter', which measures nothing on the way; "
                f"{self.f_solver} needs its errors to stop"
            )
        for name in ("grad", "sup_loc", "indexing"):  # lists of a parser become tuples, so that nobody changes them
            value = getattr(self, name)
            many = () if value is None else (value,) if isinstance(value, int) else tuple(value)
            object.__setattr__(self, name, tuple(check_count(name, number) for number in many))
        if not self.grads:
            raise InputError("grad must be a number of steps, 1 or more, or a list of them, not an empty list")
        if self.sup_gap > max(self.grads):
            raise InputError(
                f"sup_gap={self.sup_gap} is more than the {max(self.grads)} steps of grad: no state would be returned"
            )
        self.sampled(self.f_max_iter)

    def _one_of(self, name: str, known: Sequence[str]) -> None:
        if getattr(self, name) not in known:
            raise InputError(f"{name} must be {' or '.join(map(repr, known))}, not {getattr(self, name)!r}")

    @property
    def grads(self) -> tuple[int, ...]:
        """Steps of the phantom gradient, one number or one for each sampled state."""
        assert isinstance(self.grad, tuple)
        return self.grad

    @property
    def implicit(self) -> bool:
        """`ift` and `hook_ift` are the same here: the graph of one evaluation is all that either keeps."""
        return self.ift or self.hook_ift

    @property
    def evaluation_steps(self) -> int:
        """Most evaluations in evaluation mode."""
        return self.eval_f_max_iter or math.floor(self.f_max_iter * self.eval_factor)

    def sampled(self, max_iter: int) -> list[int]:
        """Evaluations after which a state is returned, by `n_states` or else `indexing`; the last is at the end.

        Raises:
            InputError: `indexing` that does not rise to `f_max_iter`, or another number of `grad`.

        Example:
            >>> Options(n_states=3, core="indexing").sampled(40), Options(indexing=[10, 20]).sampled(40)
            ([14, 27, 40], [10, 20, 40])
        """
        if self.n_states > 1:
            count = min(self.n_states, max(max_iter, 1)) if self.core == "indexing" else self.n_states
            gap = max_iter // count
            end = max_iter if self.core == "indexing" else count * gap
            marks = [end - (count - 1 - k) * gap for k in range(count)]
        else:
            marks = [*(self.indexing or ()), max_iter]
        if any(late < early for early, late in itertools.pairwise(marks)):
            raise InputError(f"indexing must rise, up to f_max_iter={max_iter} at most, not {marks[:-1]}")
        if len(self.grads) not in (1, len(marks)):
            raise InputError(
                f"grad has {len(self.grads)} numbers for {len(marks)} returned states; give one number, or one for each"
            )
        return marks


def read_options(args: Any, given: Mapping[str, Any], core: str | None = None) -> Options:
    """The options in `args` and in keywords, which go before.

    A mapping holds options of the layer and of its surroundings (`add_deq_args`) and nothing else. A namespace, or
    another object with attributes, is a whole program's: what is not an option is left alone, with a warning where it
    looks like a misspelt one.

    Raises:
        InputError: an unknown option.

    Example:
        >>> read_options({"f_max_iter": 20}, {"f_tol": 1e-5}).f_max_iter
        20
        >>> read_options(None, {"f_maxiter": 20})
        Traceback (most recent call last):
        homeostat.errors.InputError: there is no option 'f_maxiter': did you mean 'f_max_iter'?
    """
    known = {field.name for field in fields(Options)}
    whole = args is not None and not isinstance(args, Mapping)
    found: dict[str, Any] = {}
    if isinstance(args, Mapping):
        found = dict(args)
    elif whole:
        try:
            found = dict(vars(args))
        except TypeError:
            raise InputError(f"args must be a Namespace or a dict of options, not {args!r}") from None
    for name in [*found, *given]:
        if name in known or name in _READ_ELSEWHERE:
            continue
        near = difflib.get_close_matches(name, known, 1, 0.85 if name in given or not whole else 0.9)
        hint = f"there is no option {name!r}: did you mean {near[0]!r}?" if near else ""
        if name in given or not whole:
            others = "" if not isinstance(args, Mapping) else "; a program's other options may stay in a Namespace"
            raise InputError(hint or f"there is no option {name!r}; there are {', '.join(sorted(known))}{others}")
        if near and "_" in name and isinstance(args, Namespace):
            warn_caller(hint, UserWarning)
    values = {name: value for name, value in {**found, **given}.items() if name in known}
    if core is not None:
        values["core"] = core
    return Options(**values)
