"""Whether answers are safe from more steps: the test of a depth certificate, for some rows of a batch at one state."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.nest import select
from homeostat.engine.problem import Problem
from homeostat.probes.certificates.flip_distance import FlipDistance, Margins
from homeostat.probes.dynamics.jacobians import spectral_radii

Decode = Callable[[Sequence[Tensor], Sequence[Any]], Any]
"""From the leaves of a state and of a context to outputs."""


@dataclass(frozen=True)
class CertificateOptions:
    """How cautious a certificate is; see `certify`."""

    window: int = 8
    gap: float = 0.5
    decoder_factor: float = 2.0
    iterations: int = 64


@dataclass(frozen=True, eq=False)
class Considered:
    """What came of the rows that were looked at as far as the spectral radius, `(looked,)` each."""

    rows: Tensor
    """Their places in the batch."""
    safe: Tensor
    """bool: certified."""
    q: Tensor
    remaining: Tensor
    flip: Tensor


def consider(
    problem: Problem,
    leaves: Sequence[Tensor],
    context: Sequence[Any],
    chosen: Tensor,
    length: Tensor,
    rounding: Tensor,
    ratio: Tensor,
    directions: Sequence[Tensor],
    *,
    decode: Decode,
    margins: Callable[[Tensor], Margins],
    options: CertificateOptions,
) -> Considered | None:
    """Certify those of the `chosen` rows whose remaining path is too short to change the answer.

    Args:
        problem: the map; `leaves` and `context` are its batch as it is now.
        chosen: `(many,)` places in the batch.
        length, rounding, ratio: `(batch,)` float64: Euclidean length of the last step, what rounding may make of one,
            and the largest ratio of step lengths in the window.
        directions: first vectors for the spectral radius, `(batch, ...)`.
        margins: from places in the batch to the margins of their outputs.

    Returns:
        None where no row came as far as the spectral radius.
    """
    measured = problem.layout.measured()

    def at(rows: Tensor) -> tuple[list[Tensor], list[Any]]:
        return select(leaves, problem.layout, rows), select(context, problem.context_layout, rows)

    flip = None
    # The cheap upper bound first: most of the time it says no.
    for nearest in (True, False):
        if not len(chosen):
            return None
        states, parts = at(chosen)
        found = FlipDistance(lambda x, parts=parts: decode(x, parts), states, measured, margins(chosen))
        flip = (found.nearest() if nearest else found.bound()) / options.decoder_factor
        q = 1 - options.gap * (1 - ratio[chosen])
        short = remaining_path(length[chosen], rounding[chosen], q) < flip
        chosen, flip = chosen[short], flip[short]
    if not len(chosen):
        return None
    assert flip is not None, "set in the loop"
    states, parts = at(chosen)
    here = replace(problem, state=states, context=parts, rows=len(chosen))
    radius = spectral_radii(here, [d[chosen] for d in directions], options.iterations)
    q = 1 - options.gap * (1 - torch.maximum(ratio[chosen], radius))
    remaining = remaining_path(length[chosen], rounding[chosen], q)
    return Considered(chosen, remaining < flip, q, remaining, flip)  # a radius that is not finite certifies nothing


def remaining_path(length: Tensor, rounding: Tensor, q: Tensor) -> Tensor:
    """Length of the rest of the path: a step and what rounding adds to each later one. Infinite where q is 1 or more,
    or where nothing is known of it.
    """
    below = q < 1
    return torch.where(below, (length * q + rounding) / torch.where(below, 1 - q, 1), float("inf"))
