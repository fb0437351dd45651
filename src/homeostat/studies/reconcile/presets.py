"""How large the study is: nets, counts and budgets, fixed before anything is run."""

from dataclasses import dataclass
from typing import Any

from homeostat.errors import InputError


@dataclass(frozen=True)
class Preset:
    """Everything that differs between `smoke`, `cpu` and `full`."""

    name: str
    seeds: int
    count: int
    """Instances of each kind that a net is measured on."""
    aligned: int
    """Instances for alignment."""
    multiples: tuple[float, ...]
    """Test budgets as multiples of N."""
    shrink: dict[str, Any] | None = None
    """Changes to every recipe, for the smallest preset."""


_MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0)

SMOKE = Preset("smoke", 1, 8, 4, (0.5, 1.0, 4.0), {"steps": 2, "batch": 2})
CPU = Preset("cpu", 5, 128, 32, _MULTIPLES)
FULL = Preset("full", 10, 1000, 256, _MULTIPLES)

PRESETS = {preset.name: preset for preset in (SMOKE, CPU, FULL)}


def get_preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        InputError: an unknown name.

    Example:
        >>> get_preset("cpu").seeds
        5
    """
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
