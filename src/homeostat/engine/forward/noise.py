"""Does a step that came to no fixed point draw new random numbers each time it is called?"""

import torch
from torch import Tensor

from homeostat.engine.forward.run import Run
from homeostat.engine.norms import noise_floor, row_rms
from homeostat.engine.problem import Problem
from homeostat.engine.solution import Status
from homeostat.engine.stop import Stop
from homeostat.errors import ConvergenceWarning, warn_caller

# Two values of one map differ by so many units in the last place at most.
_UNITS = 256


def random_numbers(device: torch.device) -> list[Tensor]:
    """Where PyTorch's generators are: they move when somebody draws.

    Example:
        >>> before = random_numbers(torch.device("cpu"))
        >>> _ = torch.rand(1)
        >>> torch.equal(before[0], random_numbers(torch.device("cpu"))[0])
        False
    """
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def name_noise(problem: Problem, stop: Stop, found: Run, before: list[Tensor]) -> None:
    """Warn where no row came to an end and the step draws new numbers at every evaluation.

    Where rows leave, they are compared with one another, and noise shows there.

    Args:
        problem: what was iterated.
        stop: with a tolerance, or there was nothing to come to.
        found: how it ended.
        before: what `random_numbers` were before that.
    """
    if not stop.tests or not problem.rows or not bool((found.status == Status.MAX_STEPS).all()):
        return
    device = problem.state[0].device
    numbers = random_numbers(device)
    if all(torch.equal(new, old) for new, old in zip(numbers, before, strict=True)):
        return
    state = [x.detach() for x in found.leaves]
    try:
        with torch.no_grad():
            step = problem.bind(problem.context, compare=False)
            first, second = step(state), step(state)
    except Exception:  # the solve went without this
        return
    finally:  # what comes after draws the same numbers as without this
        torch.set_rng_state(numbers[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(numbers[1], device)
    for i in problem.layout.measured():
        size = torch.maximum(row_rms(first[i]), row_rms(state[i]))
        if bool((row_rms(second[i] - first[i]) > noise_floor([first[i]], _UNITS) * size).all()):
            warn_caller(
                "step draws new random numbers each time it is called, and no row came to a fixed point: noise, also "
                "that of dropout in training mode, must be the same at each step. Draw it once and pass it in the "
                "context (hs.nn.VariationalDropout makes masks)",
                ConvergenceWarning,
            )
            return
