"""How large the study is, fixed before anything is run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """What differs between `smoke`, `cpu` and `full`."""

    name: str
    theory_draws: int
    """Random problems for each statement of the theory."""


SMOKE = Preset(name="smoke", theory_draws=24)
CPU = Preset(name="cpu", theory_draws=1000)
