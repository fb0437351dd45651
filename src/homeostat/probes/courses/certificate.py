"""The depth certificate as a signal: whether an answer is safe from all later steps, found while it is computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from homeostat.engine import Carry
from homeostat.engine.nest import Layout, flatten
from homeostat.engine.problem import Problem
from homeostat.models.contract import IteratedModel
from homeostat.models.starts import Noise
from homeostat.probes.certificates.consider import CertificateOptions, consider, remaining_path
from homeostat.probes.certificates.flip_distance import logit_margins
from homeostat.probes.path_lengths import rounding_length, row_length

_OPTIONS = CertificateOptions()


@dataclass(frozen=True)
class CertificateSignal:
    """Carries lengths and ratios of steps along, and certifies rows as `certify` does.

    A row that came as far as the spectral radius has cost `CertificateOptions.iterations` products with its Jacobian,
    each counted as one evaluation of `step`.
    """

    model: IteratedModel

    def start(self, own: Any, layout: Layout, seed: int) -> dict[str, Any]:
        """What rides along from the beginning."""
        leaves, _ = flatten(own, "state")
        rows, device = len(leaves[0]), leaves[0].device
        drawn, _ = flatten(Noise().seeded(seed + 1, [0] * rows).like(own), "state")
        return {
            "length": Carry(torch.zeros(rows, dtype=torch.float64, device=device)),
            "ratios": Carry(torch.full((rows, _OPTIONS.window), float("inf"), dtype=torch.float64, device=device)),
            "wait": torch.zeros(rows, dtype=torch.int64, device=device),
            "safe": torch.zeros(rows, dtype=torch.bool, device=device),
            "products": torch.zeros(rows, dtype=torch.int64, device=device),
            "directions": tuple(Carry(drawn[i]) for i in layout.measured()),
        }

    def follow(
        self,
        state: dict[str, Any],
        layout: Layout,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        context: Sequence[Any],
        context_layout: Layout,
        answers: Tensor,
        asked: Tensor | None,
    ) -> dict[str, Any]:
        """What rides along after a step.

        Args:
            state: that of the watched map; `taken` counts this step.
            before, after: all leaves of the model's state.
            context: leaves of the model's context.
            answers: after this step; asked: which of them are asked, None is all.
        """
        measured = layout.measured()
        new = [after[i] for i in measured]
        length = row_length([b - before[i] for i, b in zip(measured, new, strict=True)])
        rounding = rounding_length(new)
        ratio = torch.where(length <= rounding, 0, length / state["length"])
        shifted = torch.cat([state["ratios"][:, 1:], ratio[:, None]], dim=1)
        ratios = torch.where((state["taken"] > 1)[:, None], shifted, state["ratios"])
        largest = ratios.amax(1)
        remaining = remaining_path(length, rounding, 1 - _OPTIONS.gap * (1 - largest))
        may = ~state["safe"] & (state["wait"] <= state["taken"]) & remaining.isfinite() & ~state["failed"]
        found = {"length": length, "ratios": ratios}
        if not bool(may.any()):
            return found
        problem = Problem(self.model.step, list(before), layout, list(context), context_layout, len(answers))
        where = torch.ones_like(answers, dtype=torch.bool) if asked is None else asked.reshape(answers.shape)
        looked = consider(
            problem,
            list(after),
            problem.context,
            may.nonzero().squeeze(1),
            length,
            rounding,
            largest,
            list(state["directions"]),
            decode=lambda x, c: self.model.decode(layout.build(list(x)), context_layout.build(list(c))),
            margins=lambda places: logit_margins(where[places]),
            options=_OPTIONS,
        )
        if looked is None:
            return found
        safe, wait, products = (state[name].clone() for name in ("safe", "wait", "products"))
        safe[looked.rows[looked.safe]] = True
        wait[looked.rows[~looked.safe]] = state["taken"][looked.rows[~looked.safe]] + _OPTIONS.window
        products[looked.rows] += _OPTIONS.iterations
        return {**found, "safe": safe, "wait": wait, "products": products}
