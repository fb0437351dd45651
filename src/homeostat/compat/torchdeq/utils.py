"""torchdeq's helpers, under the name of the module that its examples import them from."""

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from homeostat.compat.torchdeq.options import CORES
from homeostat.compat.torchdeq.solver import SOLVERS


def add_deq_args(parser: ArgumentParser) -> None:
    """Give a parser torchdeq's options, with torchdeq's names and defaults.

    Example:
        >>> parser = ArgumentParser()
        >>> add_deq_args(parser)
        >>> args = parser.parse_args(["--f_solver", "anderson", "--ift"])
        >>> args.f_solver, args.ift, args.f_max_iter
        ('anderson', True, 40)
    """

    def add(group: Any, name: str, what: str, **options: Any) -> None:
        group.add_argument(f"--{name}", help=what, **options)

    solving = parser.add_argument_group("fixed point")
    for side, default, tol in (("f", "forward", 1e-3), ("b", "backward", 1e-6)):
        add(solving, f"{side}_solver", f"{default} solver", default="fixed_point_iter", choices=SOLVERS)
        add(solving, f"{side}_max_iter", f"most evaluations, {default}", default=40, type=int)
        add(solving, f"{side}_tol", f"error at which the {default} solve stops", default=tol, type=float)
        add(solving, f"{side}_stop_mode", f"which error, {default}", default="abs", choices=("abs", "rel"))
    add(solving, "eval_factor", "evaluation may take this times f_max_iter", default=1.0, type=float)
    add(solving, "eval_f_max_iter", "most evaluations in evaluation mode; 0: by eval_factor", default=0, type=int)

    norm = parser.add_argument_group("normalisation of weights")
    kinds = ("none", "weight_norm", "spectral_norm")
    add(norm, "norm_type", "which", default="weight_norm", choices=kinds)
    add(norm, "norm_no_scale", "a fixed target norm, not a learnt one", action="store_true")
    add(norm, "norm_clip", "bound the factor by norm_clip_value", action="store_true")
    add(norm, "norm_clip_value", "largest factor", default=1.0, type=float)
    add(norm, "norm_target_norm", "target norm where it is not learnt", default=1.0, type=float)
    add(norm, "sn_n_power_iters", "power iterations of spectral_norm at each reset", default=1, type=int)

    training = parser.add_argument_group("gradient")
    add(training, "core", "how returned states and solves go together", default="sliced", choices=CORES)
    add(training, "ift", "the implicit gradient", action="store_true")
    add(training, "hook_ift", "the same", action="store_true")
    add(training, "n_states", "returned states, evenly spread", default=1, type=int)
    add(training, "indexing", "return the states after these evaluations", default=[], type=int, nargs="+")
    add(training, "gamma", "weight of earlier states in fp_correction", default=0.8, type=float)
    add(training, "grad", "steps of the phantom gradient", default=[1], type=int, nargs="+")
    add(training, "tau", "share of the way that each of them goes", default=1.0, type=float)
    add(training, "sup_gap", "return every so many of them too", default=-1, type=int)
    add(training, "sup_loc", "return these of them too", default=[], type=int, nargs="+")

    penalty = parser.add_argument_group("penalty on the Jacobian, read by the training loop")
    add(penalty, "jac_loss_weight", "weight", default=0.0, type=float)
    add(penalty, "jac_loss_freq", "how often", default=0.0, type=float)
    add(penalty, "jac_incremental", "steps after which the weight grows", default=0, type=int)

    watching = parser.add_argument_group("monitoring, read by the training loop")
    add(watching, "sradius_mode", "spectral radius in evaluation", action="store_true")


def mixed_init(z_shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """A start of which each entry is standard normal noise or zero, by even chance; see `Mixed(by="element")`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> (mixed_init((100, 100)) == 0).float().mean().round(decimals=1)
        tensor(0.5000)
    """
    noise = torch.randn(*z_shape, device=device)
    return noise * torch.empty_like(noise).bernoulli_(0.5)


def mem_gc(func: Any, in_args: Sequence[Any] | None = None) -> Any:
    """Call a function without keeping what its backward pass needs; that is computed again there.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> mem_gc(lambda x: x.exp(), (x,)).sum().backward()
        >>> x.grad.round(decimals=2)
        tensor([2.7200, 2.7200])
    """
    return checkpoint(func, *(in_args or ()), use_reentrant=False)
