"""How to iterate: values that say which method and with what settings; the methods themselves are in `forward`."""

from dataclasses import dataclass

from homeostat.checks import plain_numbers
from homeostat.engine.stop import check_count, check_range

_DAMPING = "above 0 and at most 1"


def _check_damping(value: float) -> None:
    check_range("damping", value, 1e-6, _DAMPING, high=1.0)


@dataclass(frozen=True)
class Picard:
    """Plain iteration, `z <- z + damping (f(z) - z)`. Converges where that map contracts, in any norm.

    Args:
        damping: share of the way that a step goes, above 0 and at most 1. Fixed points stay the same; a map that
            swings between two states can settle.

    Example:
        >>> Picard()
        Picard(damping=1.0)
    """

    damping: float = 1.0

    def __post_init__(self) -> None:
        plain_numbers(self)
        _check_damping(self.damping)


@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration (type II), per example, with a safeguard that resumes the plain iteration.

    Args:
        memory: number of former differences that a step is extrapolated from.
        damping: share of the extrapolated residual that a step adds, above 0 and at most 1.

    Source:
        D. G. Anderson, "Iterative procedures for nonlinear integral equations", J. ACM 12 (1965). The least-squares
        problem is solved by a truncated Gram-Schmidt process (Tang, Xu, He, Saad, Xi, arXiv 2403.14961).

    Example:
        >>> Anderson(memory=5)
        Anderson(memory=5, damping=1.0)
    """

    memory: int = 10
    damping: float = 1.0

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_count("memory", self.memory)
        _check_damping(self.damping)


@dataclass(frozen=True)
class Broyden:
    """Broyden's "good" method with limited memory that grows only as it is used, per example.

    Args:
        memory: most rank-one updates that are kept; when they are used up, an example starts again with none.

    Source:
        C. G. Broyden, "A class of methods for solving nonlinear simultaneous equations", Math. Comp. 19 (1965).

    Example:
        >>> Broyden()
        Broyden(memory=30)
    """

    memory: int = 30

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_count("memory", self.memory)


@dataclass(frozen=True)
class GMRES:
    """Generalised minimal residual, for the linear system of `Implicit`; per example.

    Args:
        restart: number of basis vectors after which it starts again from the solution so far. None: 20, and for a row
            whose residual such a cycle did not lower to a tenth twice as many in the next, up to 160.

    Source:
        Y. Saad, M. H. Schultz, "GMRES", SIAM J. Sci. Stat. Comput. 7 (1986).

    Example:
        >>> GMRES()
        GMRES(restart=None)
    """

    restart: int | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.restart is not None:
            check_count("restart", self.restart)


@dataclass(frozen=True)
class CG:
    """Conjugate gradients, for the linear system of `Implicit` where `I - J` is symmetric and positive definite.

    One Jacobian product a step, the fewest steps of all methods here, and of the past one direction alone. Gradient
    descent on a loss with a minimum has such a system: `I - J` is its step size times the Hessian. Momentum, proximal
    and projected steps have none. A row whose system turns out not to be symmetric, not to be definite, or singular is
    STALLED with the solution that it had; `Solution.adjoint.obstacle` says which, and so does the warning or error.
    Symmetry is looked at in the directions that the method takes, to a thousandth or to rounding: a system that is not
    symmetric elsewhere has the same solution. A step is an iteration; besides, there is one product before the first
    and one after the last, for the true residual. `Implicit(CG(), Stop(rtol=0, max_steps=5))` takes five,
    or fewer where nothing is left but rounding.

    Source:
        M. R. Hestenes, E. Stiefel, "Methods of conjugate gradients for solving linear systems", J. Res. NBS 49 (1952).

    Example:
        >>> CG()
        CG()
    """


@dataclass(frozen=True)
class NormalCG:
    """Conjugate gradients on the normal equations, for the linear system of `Implicit`; per example.

    Two Jacobian products a step, one transposed and one not. It converges where `I - J` is regular, whatever the
    spectral radius of `J`, and slowly where `I - J` is badly conditioned, because that condition is squared. The
    product that is not transposed needs a `step` that can be differentiated twice: fused attention cannot on some
    devices (`torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` does without it). `GMRES` has no need of that.

    Source:
        M. R. Hestenes, E. Stiefel, "Methods of conjugate gradients for solving linear systems", J. Res. NBS 49 (1952).

    Example:
        >>> NormalCG()
        NormalCG()
    """


Method = Picard | Anderson | Broyden
"""What solves `z = f(z)`."""

AdjointMethod = Picard | Anderson | CG | GMRES | NormalCG
"""What solves the linear system of `Implicit`."""
