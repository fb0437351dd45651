"""`TrainingMonitor`: looks at a model every so many training steps, and leaves everything as it was."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from homeostat.errors import ConvergenceWarning, InputError, warn_caller
from homeostat.models.contract import as_model
from homeostat.probes import estimates
from homeostat.probes.callbacks.observation import Observation, Reading
from homeostat.probes.examples import Examples, batches_of, evaluating, groups_of, positive, rows_at, whole_number
from homeostat.probes.limits.classify import classify_limits
from homeostat.probes.limits.result import LimitClasses
from homeostat.probes.results import Estimate
from homeostat.probes.starts.align import align_starts
from homeostat.probes.starts.result import StartAlignments
from homeostat.probes.starts.states import check_names

Log = Callable[[dict[str, float], int], Any]


class TrainingMonitor:
    """Logs, every so many training steps, what the model does at twice its horizon.

    That is: the residual, what the examples end in (fixed point, cycle, drift, nothing yet, divergence), and asymptotic
    alignment from another start beside its null. It always uses the same few examples. The training goes on as if
    nobody had looked: modes, gradients and the states of all random number generators are as they were, and no weight
    differs by a bit. Nothing that goes wrong in a look ends the training: examples whose state is not finite are a
    share, `failed`; a probe that cannot be made at all is `failed = 1`, with a warning that says why.

    A look costs about four runs of twice the horizon over its examples.

    Args:
        model: anything with the functions of the contract (see `from_functions`), made from the module that is trained.
        examples: batches `(inputs, targets)`, or several such by the name of their difficulty. Targets are not used.
        every: training steps between looks.
        log: `log(numbers, step)`, such as `lambda numbers, step: wandb.log(numbers, step=step)`; None: only `history`.
        steps: budget of a run; None: twice the model's `trained_steps`.
        start: the other start, see `align_starts`; `swapped` is asymptotic alignment as it was published.
        count: examples of each difficulty, the first ones.
        rtol: relative residual at which a state counts as fixed.
        modules: modules that the model uses without being one (`from_functions`): to be put into evaluation mode.
        prefix: of the names of the numbers.

    Raises:
        InputError: options that make no sense, no examples, or no budget to be found.
        ContractError: a model without the functions of the contract.

    Example:
        >>> import homeostat as hs
        >>> cell = nn.Linear(4, 4)
        >>> model = hs.from_functions(
        ...     encode=lambda x: x,
        ...     initial_state=torch.zeros_like,
        ...     step=lambda z, x: torch.tanh(0.5 * cell(z) + x),
        ...     decode=lambda z, x: z,
        ...     trained_steps=20,
        ... )
        >>> numbers = {}
        >>> batches = [(torch.randn(8, 4), None)]
        >>> monitor = TrainingMonitor(
        ...     model, batches, every=100, log=lambda found, step: numbers.update(found), modules=cell
        ... )
        >>> for step in range(1, 101):  # forward, backward and optimiser would stand here
        ...     seen = monitor.observe(step)
        >>> numbers["homeostat/alignment"] > 0.999, numbers["homeostat/limit/fixed_point"]
        (True, 1.0)
    """

    def __init__(
        self,
        model: Any,
        examples: Examples | Mapping[str, Examples],
        *,
        every: int,
        log: Log | None = None,
        steps: int | None = None,
        start: str = "swapped",
        count: int = 32,
        rtol: float = 1e-3,
        modules: nn.Module | Sequence[nn.Module] = (),
        prefix: str = "homeostat",
    ) -> None:
        self.model = model
        self.every, count = whole_number("every", every), whole_number("count", count)
        horizon = as_model(model, where="the model").trained_steps
        if steps is None and horizon is None:
            raise InputError("the model does not say its trained_steps: give steps, the budget of a run")
        self.steps = 2 * horizon if steps is None and horizon is not None else whole_number("steps", steps)
        (self.start,) = check_names([start])
        self.rtol, self.prefix = positive("rtol", rtol), prefix
        if log is not None and not callable(log):
            raise InputError(f"log must be a function of numbers and step, not {log!r}")
        self.log = log
        self.modules = [modules] if isinstance(modules, nn.Module) else list(modules)
        self.examples = {name: _first(name, batches, count) for name, batches in groups_of(examples).items()}
        self.history: list[Observation] = []
        """What was seen, look by look."""
        self._warned: set[str] = set()

    def observe(self, step: int, *, now: bool = False) -> Observation | None:
        """Look and log if it is time to: call this after every training step.

        Args:
            step: training steps so far. 0 is a time to look, and so is every multiple of `every`.
            now: look in any case.

        Returns:
            What was seen; None where it was not time.
        """
        if step % self.every and not now:
            return None
        began = time.perf_counter()
        with undisturbed(self.model, self.modules):
            try:
                seen = self._look(step)
            except Exception as error:  # a look must not end a training that has nothing to do with it
                seen = Observation(step, self.steps, self.start, error=f"{type(error).__name__}: {error}")
        seen = replace(seen, seconds=time.perf_counter() - began)
        if seen.error and seen.error not in self._warned:
            self._warned.add(seen.error)
            warn_caller(f"the monitor could not look at the model: {seen.error}", ConvergenceWarning)
        self.history.append(seen)
        if self.log is not None:
            self.log(seen.scalars(self.prefix), step)
        return seen

    def _look(self, step: int) -> Observation:
        tensors = [tensor for module in (self.model, *self.modules) for tensor in _parameters(module)]
        device = tensors[0].device if tensors else None
        options: dict[str, Any] = {"steps": self.steps, "rtol": self.rtol, "device": device}
        limits = classify_limits(self.model, self.examples, checks=(), **options)
        starts = align_starts(self.model, self.examples, starts=[self.start], **options)
        return Observation(
            at=step,
            steps=self.steps,
            start=self.start,
            readings={name: _reading(name, self.start, limits, starts) for name in self.examples},
            evaluations=limits.evaluations + starts.evaluations,
        )


def _first(name: str, batches: Examples, count: int) -> list[tuple[Any, Any]]:
    """The first examples of a difficulty, as batches, kept for the whole training."""
    kept: list[tuple[Any, Any]] = []
    for batch in batches_of(name, batches, torch.device("cpu")):
        rows = torch.arange(min(batch.rows, count))
        kept.append((rows_at(batch.inputs, rows), None))
        count -= len(rows)
        if count == 0:
            break
    return kept


def _reading(name: str, start: str, limits: LimitClasses, starts: StartAlignments) -> Reading:
    aligned = starts.of(name, start)
    mine = [example for example in limits.examples if example.difficulty == name]
    finite = np.array([example.residual for example in mine if np.isfinite(example.residual)])
    return Reading(
        alignment=_known(aligned.cosine),
        null=_known(aligned.null),
        residual_median=float(np.median(finite)) if len(finite) else None,
        residual_high=float(np.quantile(finite, 0.9)) if len(finite) else None,
        shares=limits.of(name).shares,
        failed=estimates.share(np.arange(aligned.count) < aligned.failed),
    )


def _known(estimate: Estimate) -> Estimate | None:
    return None if np.isnan(estimate.value) else estimate


@contextmanager
def undisturbed(model: Any, modules: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Modes and random number generators (PyTorch's, NumPy's, Python's) are as they were afterwards; no gradients.

    Example:
        >>> before = torch.get_rng_state()
        >>> with undisturbed(nn.Dropout()):
        ...     _ = torch.randn(3)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    found = (model, *modules)
    tensors = [tensor for module in found for tensor in _parameters(module)]
    devices = sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - other people's state
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad(), ExitStack() as stack:
            for module in found:
                stack.enter_context(evaluating(module))
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _parameters(module: Any) -> list[Tensor]:
    return list(module.parameters()) if isinstance(module, nn.Module) else []
