"""torchdeq's interface on our engine: write `homeostat.compat.torchdeq` where a program imports `torchdeq`.

docs/torchdeq.md has the options one by one and every difference. Importing this does not need torchdeq.
"""

from homeostat.compat.torchdeq.core import get_deq, reset_deq
from homeostat.compat.torchdeq.dropout import (
    VariationalDropout,
    VariationalDropout1d,
    VariationalDropout2d,
    VariationalDropout3d,
    VariationalDropToken1d,
    VariationalDropToken2d,
    VariationalDropToken3d,
    reset_dropout,
)
from homeostat.compat.torchdeq.loss import fp_correction, jac_reg, power_method, register_weight_func
from homeostat.compat.torchdeq.norm import apply_norm, register_norm_module, remove_norm, reset_norm
from homeostat.compat.torchdeq.solver import (
    SolverStat,
    anderson_solver,
    broyden_solver,
    fixed_point_iter,
    get_solver,
    simple_fixed_point_iter,
    solver_stat_from_final_step,
)
from homeostat.compat.torchdeq.utils import add_deq_args, mem_gc, mixed_init

__all__ = [
    "SolverStat",
    "VariationalDropToken1d",
    "VariationalDropToken2d",
    "VariationalDropToken3d",
    "VariationalDropout",
    "VariationalDropout1d",
    "VariationalDropout2d",
    "VariationalDropout3d",
    "add_deq_args",
    "anderson_solver",
    "apply_norm",
    "broyden_solver",
    "fixed_point_iter",
    "fp_correction",
    "get_deq",
    "get_solver",
    "jac_reg",
    "mem_gc",
    "mixed_init",
    "power_method",
    "register_norm_module",
    "register_weight_func",
    "remove_norm",
    "reset_deq",
    "reset_dropout",
    "reset_norm",
    "simple_fixed_point_iter",
    "solver_stat_from_final_step",
]

_INSTEAD = {
    "register_deq": "give homeostat.solve, or hs.nn.Equilibrium, the gradient that you want",
    "register_solver": "homeostat.solve(..., method=...) has Picard, Anderson and Broyden",
    "register_norm": "parametrise the weight by torch.nn.utils.parametrize and use hs.nn.Equilibrium",
    "backward_factory": "get_deq(grad=..., tau=..., ift=...) makes every gradient that it made",
    "DEQBase": "get_deq makes the layers that there are",
    "DEQConfig": "pass a dict or a Namespace",
}


def __getattr__(name: str) -> object:
    if name in _INSTEAD:
        # An AttributeError would become "cannot import name", which does not say what to do instead.
        raise ImportError(f"homeostat.compat.torchdeq has no {name}: {_INSTEAD[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
