"""`gradient_bias`: how far each cheap gradient is from that of the fixed point, on the user's own model."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from homeostat.engine import (
    Broyden,
    Gradient,
    Implicit,
    Neumann,
    OneStep,
    Phantom,
    Shine,
    Solution,
    Status,
    Stop,
    Unrolled,
    solve,
)
from homeostat.engine.gradients import default_method
from homeostat.engine.methods import Method
from homeostat.engine.nest import flatten
from homeostat.engine.stop import check_option
from homeostat.errors import ContractError, ConvergenceWarning, InputError
from homeostat.models.contract import IteratedModel, as_model
from homeostat.models.starts import Own
from homeostat.probes.estimates import mean
from homeostat.probes.examples import Examples, groups_of, pairs_of
from homeostat.probes.results import Estimate

DEFAULT_GRADIENTS: tuple[Gradient, ...] = (
    OneStep(),
    Neumann(terms=5),
    Phantom(steps=5, damping=0.5),
    Unrolled(last=5),
    Implicit(stop=Stop(rtol=1e-2)),
    Implicit(),
)
"""What is measured when nothing is named. The last one shows what the tolerance of the forward solve costs alone."""

_TIGHTEST, _UNITS, _REFERENCE_STEPS = 1e-10, 64, 5000
"""The reference's tolerance: 1e-10, or so many units in the last place of the state's dtype if that is more."""

_ALL = "all"


@dataclass(frozen=True)
class BiasRow:
    """One gradient on one group of parameters."""

    gradient: str
    group: str
    parameters: int
    """Numbers in the group."""
    relative_error: Estimate
    """||g - r|| / ||r|| over the group's numbers, g this gradient and r the reference; the mean over batches."""
    cosine: Estimate
    """<g, r> / (||g|| ||r||), the mean over batches. 1 is the same direction; NaN where either is zero."""
    evaluations: float
    """Evaluations of `step` and Jacobian products an example took; backpropagation through recorded steps is not
    counted, but is in `seconds`."""
    seconds: float
    """A batch, forward and backward, encoder and decoder included."""
    unconverged: int
    """Examples whose forward or adjoint solve did not converge within the gradient's own tolerances."""


@dataclass(frozen=True)
class Reference:
    """The gradient that the others are compared with: `Implicit`, solved tightly. A residual r leaves it an error of
    about r / (1 - spectral radius), so that smaller differences than that mean nothing.
    """

    rtol: float
    forward_unconverged: int
    adjoint_unconverged: int
    forward_residual: float
    """The largest over all examples."""
    adjoint_residual: float
    evaluations: float
    seconds: float

    @property
    def converged(self) -> bool:
        """Whether every example's forward and adjoint solve is within tolerance."""
        return self.forward_unconverged == self.adjoint_unconverged == 0


@dataclass(frozen=True, repr=False)
class GradientBias:
    """How far cheap gradients are from the implicit one; print it for a table."""

    model: str
    rows: tuple[BiasRow, ...]
    """For each gradient all parameters together (`"all"`), then group by group."""
    reference: Reference
    method: str
    stop: str
    batches: int
    examples: int
    dtype: str

    def at(self, gradient: str, group: str = _ALL) -> BiasRow:
        """The row of this gradient and group."""
        for row in self.rows:
            if (row.gradient, row.group) == (gradient, group):
                return row
        raise KeyError(f"no row {gradient!r}, {group!r}; there are {[(r.gradient, r.group) for r in self.rows]}")

    def __repr__(self) -> str:
        return _table(self)


def gradient_bias(
    model: Any,
    examples: Examples | Mapping[str, Examples],
    loss: Callable[[Any, Any], Tensor] | None = None,
    *,
    gradients: Sequence[Gradient] | Mapping[str, Gradient] | None = None,
    method: Method | None = None,
    stop: Stop = Stop(),  # noqa: B008 - options are frozen values
    reference: Stop | None = None,
    parameters: nn.Module | Mapping[str, Tensor] | None = None,
    group: Callable[[str], str] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> GradientBias:
    """Measure how far each cheap gradient is from the implicit one, on your own model, data and loss.

    For each batch the gradient of the mean loss is taken once with every candidate, forward and backward as in
    training, from the model's own start, and once tightly solved, as the reference. So an error is that of the
    gradient together with that of the tolerance it was solved to. What is compared is a batch's gradient as a whole;
    errors and cosines are averaged over batches, with a bootstrap interval over batches where there are several.
    The model is in evaluation mode meanwhile, so that all differentiate the same map; its `.grad` is not touched.

    Args:
        model: anything with the functions of the contract (see `from_functions`).
        examples: batches `(inputs, targets)`, or several such iterables by name, which are taken together.
        loss: `(outputs, targets)` to `(batch,)` or to a mean; None: the model's own `loss`.
        gradients: what to compare, by name if you like; None: `DEFAULT_GRADIENTS`. `Shine` runs on Broyden's method.
        method, stop: the forward solve of the candidates, as in training. Without a method they have that of `solve`:
            Anderson's, and plain steps for `Unrolled`.
        reference: the forward and adjoint stop of the reference; None: 1e-10, or what the dtype can reach.
        parameters: whose gradients; needed where the model is not a module itself.
        group: from a parameter's name to its group's; None: what stands before the first dot. `group=str` shows each
            parameter by itself.
        seed: of the start, where it is drawn, and of the bootstrap.
        device: where to run; that of the parameters when None.

    Raises:
        InputError: no examples, no parameters, or two gradients of one name.
        ContractError: a model that breaks the contract, or whose step draws random numbers.

    Example:
        >>> import homeostat as hs
        >>> rate = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
        >>> gain = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        >>> model = hs.from_functions(
        ...     encode=lambda x: gain * x,
        ...     initial_state=torch.zeros_like,
        ...     step=lambda z, x: rate * z + x,  # the gradient of one step misses the factor 1 / (1 - 0.8)
        ...     decode=lambda z, x: z,
        ... )
        >>> x = torch.ones(4, 3, dtype=torch.float64)
        >>> bias = hs.gradient_bias(
        ...     model, [(x, x)], lambda z, y: (z - y).square().mean(1), parameters={"rate": rate, "gain": gain}
        ... )
        >>> row = bias.at("OneStep()", "gain")
        >>> round(row.relative_error.value, 3), round(row.cosine.value, 3)
        (0.8, 1.0)
        >>> bias.reference.converged
        True
    """
    iterated = as_model(model, where="the model")
    if iterated.stochastic:
        raise ContractError(f"{iterated.name}'s step draws random numbers: it has no fixed point to differentiate")
    for stops in (stop, reference):
        if isinstance(stops, Stop) and (isinstance(stops.rtol, Tensor) or isinstance(stops.max_steps, Tensor)):
            raise InputError("stop and reference take plain numbers, since batches may differ in size")
    loss = getattr(model, "loss", None) if loss is None else loss
    if not callable(loss):
        raise InputError("there is no loss: give loss(outputs, targets), or a model that has one")
    chosen = _parameters(model if parameters is None else parameters)
    options = _named(DEFAULT_GRADIENTS if gradients is None else gradients)
    groups = _grouped(chosen, group)
    if device is None:
        device = next(iter(chosen.values())).device
    run = _Runner(iterated, loss, list(chosen.values()), method, seed, torch.device(device))

    found: dict[str, list[_Taken]] = {name: [] for name in options}
    truth: list[_Taken] = []
    errors: dict[tuple[str, str], list[float]] = {}
    cosines: dict[tuple[str, str], list[float]] = {}
    count, dtype, tight = 0, torch.float32, reference
    with _evaluating(model, parameters):
        for key, batches in groups_of(examples).items():
            for inputs, targets in pairs_of(key, batches):
                batch = run.batch(inputs, targets, count)
                if batch.rows == 0:
                    continue
                count, dtype = count + batch.rows, batch.dtype
                if tight is None:
                    tight = Stop(max(_TIGHTEST, _UNITS * torch.finfo(dtype).eps), max_steps=_REFERENCE_STEPS)
                truth.append(run.take(batch, Implicit(stop=tight), tight))
                for name, gradient in options.items():
                    taken = run.take(batch, gradient, stop)
                    for title, places in groups.items():
                        error, cosine = _compare(taken.gradients, truth[-1].gradients, places)
                        errors.setdefault((name, title), []).append(error)
                        cosines.setdefault((name, title), []).append(cosine)
                    found[name].append(replace(taken, gradients=[]))
                truth[-1] = replace(truth[-1], gradients=[])
    if tight is None or not truth:
        raise InputError("there are no examples to take gradients of")

    rows = [
        BiasRow(
            gradient=name,
            group=title,
            parameters=sum(list(chosen.values())[i].numel() for i in places),
            relative_error=_mean(errors[name, title], seed),
            cosine=_mean(cosines[name, title], seed),
            evaluations=sum(t.evaluations for t in found[name]) / count,
            seconds=sum(t.seconds for t in found[name]) / len(truth),
            unconverged=sum(t.unconverged for t in found[name]),
        )
        for name in options
        for title, places in groups.items()
    ]
    return GradientBias(
        model=iterated.name,
        rows=tuple(rows),
        reference=Reference(
            rtol=float(tight.rtol),
            forward_unconverged=sum(t.forward_unconverged for t in truth),
            adjoint_unconverged=sum(t.adjoint_unconverged for t in truth),
            forward_residual=max(t.forward_residual for t in truth),
            adjoint_residual=max(t.adjoint_residual for t in truth),
            evaluations=sum(t.evaluations for t in truth) / count,
            seconds=sum(t.seconds for t in truth) / len(truth),
        ),
        method=repr(method or default_method(Implicit())),
        stop=repr(stop),
        batches=len(truth),
        examples=count,
        dtype=str(dtype).removeprefix("torch."),
    )


def _parameters(source: Any) -> dict[str, Tensor]:
    if isinstance(source, nn.Module):
        source = dict(source.named_parameters())
    if not isinstance(source, Mapping):
        raise InputError("the model is no module: pass parameters=your_module, or a dict of tensors by name")
    chosen = {name: tensor for name, tensor in source.items() if tensor.requires_grad}
    if not chosen:
        raise InputError("there is no parameter that requires a gradient")
    return chosen


def _named(gradients: Sequence[Gradient] | Mapping[str, Gradient]) -> dict[str, Gradient]:
    pairs = list(gradients.items()) if isinstance(gradients, Mapping) else [(_label(g), g) for g in gradients]
    named: dict[str, Gradient] = {}
    for name, gradient in pairs:
        check_option("a gradient", gradient, Gradient, "hs.OneStep()")
        if name in named:
            raise InputError(f"two gradients are called {name}: give them names, as a dictionary")
        named[name] = gradient
    if not named:
        raise InputError("there is no gradient to measure")
    return named


def _label(gradient: Any) -> str:
    """The repr in short: a stop by its tolerance, and nothing that is switched off."""
    if not isinstance(gradient, Gradient):
        return repr(gradient)
    parts = []
    for field in fields(gradient):
        value = getattr(gradient, field.name)
        if isinstance(value, Stop):
            parts.append(f"rtol={value.rtol:g}")
        elif value not in (None, False) and not (isinstance(gradient, Implicit) and value == field.default):
            parts.append(f"{field.name}={value}")
    return f"{type(gradient).__name__}({', '.join(parts)})"


def _grouped(parameters: Mapping[str, Tensor], group: Callable[[str], str] | None) -> dict[str, list[int]]:
    """Places of the parameters in each group; all of them first."""
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(parameters):
        groups.setdefault(name.split(".")[0] if group is None else group(name), []).append(place)
    if len(groups) == 1:
        return {_ALL: list(range(len(parameters)))}
    return {_ALL: list(range(len(parameters))), **groups}


@contextmanager
def _evaluating(*candidates: Any) -> Iterator[None]:
    modules = [m for c in candidates if isinstance(c, nn.Module) for m in c.modules()]
    modes = [(module, module.training) for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class _Batch:
    inputs: Any
    targets: Any
    indices: range
    rows: int
    dtype: torch.dtype


@dataclass(frozen=True)
class _Taken:
    """The gradient of one batch, and how it was come by."""

    gradients: list[Tensor]
    evaluations: int
    seconds: float
    forward_unconverged: int
    adjoint_unconverged: int
    unconverged: int
    forward_residual: float
    adjoint_residual: float


@dataclass(frozen=True)
class _Runner:
    model: IteratedModel
    loss: Callable[[Any, Any], Tensor]
    parameters: list[Tensor]
    method: Method | None
    seed: int
    device: torch.device

    def batch(self, inputs: Any, targets: Any, first: int) -> _Batch:
        """A batch on the device, and what its state is like."""

        def move(tree: Any) -> Any:
            return pytree.tree_map(lambda x: x.to(self.device) if isinstance(x, Tensor) else x, tree)

        inputs, targets = move(inputs), move(targets)
        leaves = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.ndim]
        if not leaves:
            raise ContractError("inputs must be a tensor or a nest of tensors, batch first")
        rows = len(leaves[0])
        batch = _Batch(inputs, targets, range(first, first + rows), rows, torch.float32)
        if rows == 0:
            return batch
        with torch.no_grad():
            state, layout = flatten(self._start(self.model.encode(inputs), batch), "state")
        coarsest = max((state[i].dtype for i in layout.measured()), key=lambda dtype: torch.finfo(dtype).eps)
        return replace(batch, dtype=coarsest)

    def take(self, batch: _Batch, gradient: Gradient, stop: Stop) -> _Taken:
        """The gradient of the batch's mean loss."""
        method = Broyden() if isinstance(gradient, Shine) and not isinstance(self.method, Broyden) else self.method
        began = self._now()
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the result says how many
            context = self.model.encode(batch.inputs)
            solution = solve(
                self.model.step, self._start(context, batch), context, method=method, stop=stop, gradient=gradient
            )
            value = self.loss(self.model.decode(solution.state, context), batch.targets)
            if value.shape not in ((), (batch.rows,)):
                raise ContractError(f"loss must return ({batch.rows},) or a mean, not {tuple(value.shape)}")
            value = value.mean()
            found: Sequence[Tensor | None] = [None] * len(self.parameters)
            if value.requires_grad:
                found = torch.autograd.grad(value, self.parameters, allow_unused=True)
        grads = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found, strict=True)]
        return self._taken(grads, solution, gradient, self._now() - began)

    def _taken(self, gradients: list[Tensor], solution: Solution, gradient: Gradient, seconds: float) -> _Taken:
        forward = solution.status != Status.CONVERGED
        evaluations = solution.row_evaluations
        adjoint, adjoint_residual = torch.zeros_like(forward), float("nan")
        if solution.adjoint is not None:
            evaluations += solution.adjoint.row_evaluations
            if isinstance(gradient, Implicit):  # a truncated series does not mean to converge
                adjoint_residual = _largest(solution.adjoint.residual)
                adjoint = solution.adjoint.status != Status.CONVERGED
        return _Taken(
            gradients=gradients,
            evaluations=evaluations,
            seconds=seconds,
            forward_unconverged=int(forward.sum()),
            adjoint_unconverged=int(adjoint.sum()),
            unconverged=int((forward | adjoint).sum()),
            forward_residual=_largest(solution.residual),
            adjoint_residual=adjoint_residual,
        )

    def _start(self, context: Any, batch: _Batch) -> Any:
        return self.model.initial_state(context, Own().seeded(self.seed, batch.indices))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _mean(values: list[float], seed: int) -> Estimate:
    if all(math.isfinite(value) for value in values):
        return mean(values, seed=seed)
    return Estimate(sum(values) / len(values), float("nan"), float("nan"), len(values))


def _largest(residuals: Tensor) -> float:
    known = residuals[~residuals.isnan()]
    return float(known.max()) if len(known) else float("nan")


def _compare(found: Sequence[Tensor], truth: Sequence[Tensor], places: Sequence[int]) -> tuple[float, float]:
    """Relative error and cosine over some of the parameters, in float64."""
    g, r = (torch.cat([x[i].detach().double().flatten() for i in places]) for x in (found, truth))
    length, size = float(r.norm()), float(g.norm())
    distance = float((g - r).norm())
    error = distance / length if length else (0.0 if distance == 0 else float("inf"))
    cosine = float(g @ r) / (length * size) if length and size else float("nan")
    return error, cosine


def _table(bias: GradientBias) -> str:
    """All rows, below how they were come by."""
    reference = bias.reference
    grouped = any(row.group != _ALL for row in bias.rows)
    heads = ["gradient", "group", "relative error", "cosine", "evaluations", "seconds", "unconverged"]
    lines = [
        [
            row.gradient if row.group == _ALL else "",
            row.group,
            _figure(row.relative_error),
            _figure(row.cosine),
            # What belongs to the gradient as a whole stands once.
            *(
                [f"{row.evaluations:.1f}", f"{row.seconds:.4f}", f"{row.unconverged} of {bias.examples}"]
                if row.group == _ALL
                else ["", "", ""]
            ),
        ]
        for row in bias.rows
    ]
    if not grouped:
        heads, lines = [heads[0], *heads[2:]], [[line[0], *line[2:]] for line in lines]
    widths = [max(len(line[i]) for line in [heads, *lines]) for i in range(len(heads))]
    names = 2 if grouped else 1

    def row(cells: list[str]) -> str:
        padded = [c.ljust(w) if i < names else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(padded).rstrip()

    sizes = f"{bias.examples} examples in {bias.batches} batch{'es' if bias.batches > 1 else ''}, {bias.dtype}"
    failed = reference.forward_unconverged, reference.adjoint_unconverged
    state = (
        "converged"
        if reference.converged
        else f"NOT CONVERGED (forward {failed[0]}, adjoint {failed[1]} of {bias.examples} examples)"
    )
    text = [
        f"{bias.model}: gradients against the implicit one ({sizes}); {bias.method}, {bias.stop}",
        f"reference: {state} at rtol {reference.rtol:.1e}, largest residual {reference.forward_residual:.1e} forward, "
        f"{reference.adjoint_residual:.1e} adjoint; {reference.evaluations:.1f} evaluations, {reference.seconds:.4f} s",
        row(heads),
        *(row(line) for line in lines),
        "Evaluations an example, seconds a batch."
        + (" Mean over batches [95 % interval]." if bias.batches > 1 else " One batch: no interval."),
    ]
    if not reference.converged:
        text.append("Where the reference has not converged, an error is a difference between two wrong gradients.")
    return "\n".join(text)


def _figure(estimate: Estimate) -> str:
    if estimate.count < 2:
        return f"{estimate.value:.2g}" if abs(estimate.value) < 0.1 else f"{estimate.value:.3f}"
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"
