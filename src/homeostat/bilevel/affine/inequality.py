"""A statement of the theory with both of its sides, so that anyone can see whether it holds, and by how much."""

from dataclasses import dataclass

from torch import Tensor

ROUNDING = 1e-12
"""What counts as rounding: this share of `scale`."""


@dataclass(frozen=True, eq=False, repr=False)
class Inequality:
    """`left >= right`, row by row."""

    name: str
    statement: str
    left: Tensor
    """`(rows,)`."""
    right: Tensor
    """`(rows,)`."""
    scale: Tensor
    """`(rows,)`, the size of the numbers that the sides were computed from."""
    tolerance: float = ROUNDING

    @property
    def slack(self) -> Tensor:
        """`(rows,)`, left - right."""
        return self.left - self.right

    @property
    def relative_slack(self) -> Tensor:
        """`(rows,)`, the slack in units of `scale`: what `tolerance` is compared with."""
        return self.slack / self.scale

    @property
    def holds(self) -> Tensor:
        """`(rows,)` whether the slack is at least `-tolerance * scale`; never where something is not finite."""
        return self.slack >= -self.tolerance * self.scale

    def __repr__(self) -> str:
        return (
            f"{self.name}: {self.statement}\n"
            f"  holds in {int(self.holds.sum())} of {len(self.left)} rows; least slack "
            f"{float(self.relative_slack.min()):.2g} of the scale, where {-self.tolerance:.0e} is rounding"
        )
