"""When a solve has arrived, said to both libraries so that they stop at the same residual."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import homeostat as hs


@dataclass(frozen=True)
class Criterion:
    """Absolute: the Euclidean norm of f(z) - z, as torchdeq has it by default. Relative: that norm over that of f(z).

    Our absolute tolerance is for a root mean square, so the root of the unknowns is taken out of it.
    """

    kind: Literal["absolute", "relative"]
    tolerance: float

    def ours(self, unknowns: int, max_steps: int) -> hs.Stop:
        if self.kind == "relative":
            return hs.Stop(rtol=self.tolerance, max_steps=max_steps)
        return hs.Stop(rtol=0, atol=self.tolerance / math.sqrt(unknowns), max_steps=max_steps)

    @property
    def theirs(self) -> dict[str, Any]:
        return {"tol": self.tolerance, "mode": self.kind[:3]}

    @property
    def lowest(self) -> str:
        """The name of the smallest such residual in torchdeq's statistics."""
        return f"{self.kind[:3]}_lowest"

    def __str__(self) -> str:
        return f"{self.tolerance:.0e}, {self.kind}"


CRITERIA = (Criterion("absolute", 1e-6), Criterion("relative", 1e-6))
