"""How far a state must move before its decoded answer can change, to first order.

A margin is a number of the outputs that stays above 0 as long as the answer stays: for logits, the best one of a
position minus another one. With m_i the margins at a state and J_i their gradients by the state, margin i cannot
reach 0 before the state has moved by m_i / |J_i|. All of them at once: with the rows of J divided by their margins,
no margin can reach 0 before the state has moved by 1 / |J|, the spectral norm being at least the norm of any row.
For a decoder of two classes that reads each position from its own part of the state, this is exactly the smallest
m_i / |J_i|; where margins share parts of the state, it is less than that, never more.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from homeostat.errors import ContractError
from homeostat.nn.jacobian import row_dot, unit_rows

_ITERATIONS = 12
"""Of the power iteration for the norm; the first ones find most of it, and the safety factor covers the rest."""

Decode = Callable[[Sequence[Tensor]], Any]
"""From the leaves of a state to outputs."""

Margins = Callable[[Any], Tensor]
"""From outputs to `(rows, ...)` differentiable numbers, all above 0 as long as the answer stays."""


def logit_margins(asked: Tensor) -> Margins:
    """Best logit minus each other one, `(rows, classes, *positions)`; infinite for the best one itself and where
    nothing is asked.

    Args:
        asked: `(rows, *positions)` bool.

    Example:
        >>> logit_margins(torch.ones(1, dtype=torch.bool))(torch.tensor([[3.0, 1.0, 2.5]]))
        tensor([[   inf, 2.0000, 0.5000]])
    """

    def margins(logits: Tensor) -> Tensor:
        best = logits.argmax(1, keepdim=True)
        itself = torch.zeros_like(logits, dtype=torch.bool).scatter(1, best, True)
        return (logits.gather(1, best) - logits).masked_fill(itself | ~asked[:, None], float("inf"))

    return margins


class FlipDistance:
    """The margins of some examples at one state, recorded for products with their Jacobian.

    Args:
        decode: from all leaves to outputs.
        leaves: of the state.
        measured: positions of the leaves that the distance is taken over.
        margins: of the outputs.

    Raises:
        ContractError: margins of another shape, or a decoder that holds no gradient.
    """

    def __init__(self, decode: Decode, leaves: Sequence[Tensor], measured: Sequence[int], margins: Margins) -> None:
        leaves = list(leaves)
        with torch.enable_grad():
            for i in measured:
                leaves[i] = leaves[i].detach().requires_grad_()
            found = margins(decode(leaves))
            rows = len(leaves[0])
            if not isinstance(found, Tensor) or found.ndim == 0 or len(found) != rows:
                raise ContractError(f"margins(outputs) must return a tensor with {rows} rows, one an example")
            found = found.reshape(rows, -1)
            counted = torch.isfinite(found)
            sizes = torch.where(counted, found.detach(), 1)
            positive = sizes > 0
            self._scaled = torch.where(counted, found, 0) / torch.where(positive, sizes, 1)
        self._inputs = [leaves[i] for i in measured]
        if not self._scaled.requires_grad:
            raise ContractError(
                "the margins do not depend on the state by a gradient; without one, nothing bounds them"
            )
        # A row whose outputs are not finite has no margin either.
        broken = (~counted & ~found.detach().isposinf()).any(1)
        self._open = positive.all(1) & ~broken & counted.any(1)
        self._smallest = torch.where(counted, sizes, float("inf")).argmin(1)

    def nearest(self) -> Tensor:
        """`(rows,)` float64: what the smallest margin alone allows, which is an upper bound on `bound()`. 0 where a
        margin is not above 0.
        """
        chosen = torch.zeros_like(self._scaled).scatter(1, self._smallest[:, None], 1.0)
        return self._distance(self._length(self._pull(chosen)))

    def bound(self) -> Tensor:
        """`(rows,)` float64: what all margins together allow."""
        # One draw for all rows, so that no row's result depends on how many there are.
        draw = torch.Generator().manual_seed(0)
        signs = 2.0 * torch.randint(0, 2, (1, self._scaled.shape[1]), generator=draw) - 1
        first = signs.to(self._scaled.device, self._scaled.dtype).expand_as(self._scaled)
        vector = unit_rows([first])[0][0]
        largest = torch.zeros(len(first), dtype=torch.float64, device=first.device)
        with torch.enable_grad():
            at = torch.zeros_like(self._scaled).requires_grad_()
            pulled = torch.autograd.grad(self._scaled, self._inputs, at, create_graph=True, allow_unused=True)
        for _ in range(_ITERATIONS):
            back, length = unit_rows(self._pull(vector))
            largest = torch.maximum(largest, length.double())
            pairs = [(p, b) for p, b in zip(pulled, back, strict=True) if p is not None and p.requires_grad]
            if not pairs:
                break
            outputs, chosen = zip(*pairs, strict=True)
            image = torch.autograd.grad(outputs, at, chosen, retain_graph=True)[0]
            vector = unit_rows([image])[0][0]
        return torch.minimum(self._distance(largest), self.nearest())

    def _pull(self, vector: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(self._scaled, self._inputs, vector, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(self._inputs, found, strict=True)]

    def _length(self, leaves: list[Tensor]) -> Tensor:
        return row_dot(leaves, leaves).sqrt().double()

    def _distance(self, steepness: Tensor) -> Tensor:
        """A decoder that does not look at the state lets it go anywhere."""
        return torch.where(self._open, 1 / steepness, 0)
