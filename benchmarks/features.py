"""What the engine at hand can do: the benchmark is written against the announced interface and says what is missing."""

import inspect
import shutil
from functools import cache

import torch

import homeostat as hs


@cache
def why_not_compiled() -> str:
    """Empty where `compile=True` can be measured."""
    if "compile" not in inspect.signature(hs.solve).parameters:
        return "solve has no compile option in this version"
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return "no C++ compiler"
    return ""


@cache
def why_not(method: str) -> str:
    """Empty where a method is more than plain iteration; told by whether it does better where it can."""
    options = {"Anderson": hs.Anderson(), "Broyden": hs.Broyden()}
    if method not in options:
        return ""
    rates = torch.linspace(0, 0.9, 16, dtype=torch.float64)[None]
    start, source = torch.zeros_like(rates), torch.ones_like(rates)

    def steps(with_method: hs.Picard | hs.Anderson | hs.Broyden) -> int:
        with torch.no_grad():
            found = hs.solve(lambda z, c: rates * z + c, start, source, method=with_method, stop=hs.Stop(rtol=1e-8))
        return int(found.steps.max())

    return "" if steps(options[method]) < steps(hs.Picard()) else f"{method} is plain iteration in this version"
