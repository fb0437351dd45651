"""Checks of single calls: what each function takes and returns."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from homeostat.checks import is_number, is_whole
from homeostat.engine.nest import count_rows, flatten
from homeostat.errors import ContractError
from homeostat.models.conformance.case import Case, Untested, Wrong, examples, said
from homeostat.models.conformance.differences import copied, named_leaves
from homeostat.models.starts import Noise, Zeros


def attributes(case: Case) -> str:
    """`trained_steps`, `unit_cost`, `stochastic` and `name` make sense."""
    model = case.subject
    trained, cost = getattr(model, "trained_steps", None), getattr(model, "unit_cost", 1.0)
    if trained is not None and (not is_whole(trained) or trained < 1):
        raise Wrong(
            f"trained_steps is {trained!r}; it must be None or a whole number above 0, the most steps in training"
        )
    if not is_number(cost) or not 0 < cost < float("inf"):
        raise Wrong(
            f"unit_cost is {cost!r}; it must be a number above 0, the cost of a step in cell evaluations or FLOPs"
        )
    for name, kind in (("stochastic", bool), ("name", str)):
        value = getattr(model, name, kind())
        if not isinstance(value, kind):
            raise Wrong(f"{name} is {value!r}; it must be a {kind.__name__}")
    if trained is None:
        return "trained_steps is not said, so that an audit gives no verdict"
    return f"trained_steps {trained}, unit_cost {cost:g}"


def evaluation_mode(case: Case) -> str:
    """No batch norm or dropout is left in training mode where nothing can put it into evaluation mode."""
    if isinstance(case.subject, nn.Module):
        return "an nn.Module, which every probe puts into evaluation mode"
    for name, module in _modules_of(case):
        for path, part in module.named_modules():
            if part.training and isinstance(part, _BatchNorm | _DropoutNd):
                where = f"{name}.{path}" if path else name
                raise Wrong(
                    f"{where} ({type(part).__name__}) is in training mode, and the model is no nn.Module, so that no "
                    "probe can change that: answers then depend on the batch, or on chance. Call .eval() in build(), "
                    "or make the model an nn.Module"
                )
    return "nothing is in training mode that would matter"


def _modules_of(case: Case) -> list[tuple[str, nn.Module]]:
    """Modules that a plain object, or the functions of one, can be seen to hold."""
    found = [(name, value) for name, value in vars(case.subject).items()] if hasattr(case.subject, "__dict__") else []
    functions = dict(vars(case.model).get("_functions", {}))
    for name, function in functions.items():
        code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None) or ()
        held = [getattr(function, "__self__", None), function]
        named = list(zip(code.co_freevars, cells, strict=True)) if code is not None else []
        found += [(name, value) for value in held]
        for variable, cell in named:
            try:
                found.append((variable, cell.cell_contents))
            except ValueError:  # a variable that is not set yet
                continue
    return [(name, value) for name, value in found if isinstance(value, nn.Module)]


def encode(case: Case) -> str:
    """Inputs are read, and what comes of them can be taken apart."""
    case.context = case.model.encode(copied(case.inputs))  # what it does to them has a check of its own
    leaves, layout = flatten(case.context, "context")
    shared = sum(kind == "shared" for kind in layout.kinds)
    return f"{len(leaves) - shared} leaves per example, {shared} shared"


def initial_state(case: Case) -> str:
    """The start is a nest of tensors, one row an example, finite."""
    case.need("encode")
    state = case.start(case.context, range(case.rows))
    leaves, layout = flatten(state, "state")
    context, context_layout = flatten(case.context, "context")
    for name, leaf in zip(layout.names, leaves, strict=True):
        if len(leaf) != case.rows:
            raise Wrong(
                f"initial_state: {name} has {len(leaf)} rows for {examples(case.rows)}; its first dimension must be "
                "the batch"
            )
        if leaf.is_floating_point() and not bool(leaf.isfinite().all()):
            raise Wrong(f"initial_state: {name} is not finite before the first step")
    count_rows(leaves, layout, context, context_layout)
    case.state = state
    measured = [f"{layout.names[i]} {tuple(leaves[i].shape)}" for i in layout.measured()]
    return ", ".join(measured)


def starts(case: Case) -> str:
    """Zeros and noise come in the structure of the model's own start, and noise by the seed that is asked for."""
    case.need("encode", "initial_state")
    own, layout = flatten(case.state, "state")
    for start in (Zeros(), Noise()):
        name = f"initial_state(context, {type(start).__name__}())"
        other, other_layout = flatten(case.start(case.context, range(case.rows), start), "state")
        if other_layout.names != layout.names or other_layout.kinds != layout.kinds:
            raise Wrong(f"{name} has another structure than the model's own start; use start.like(own_start)")
        for leaf, mine, at in zip(other, own, layout.names, strict=True):
            if leaf.shape != mine.shape or leaf.dtype != mine.dtype or leaf.device != mine.device:
                raise Wrong(
                    f"{name}: {at} is {leaf.dtype} {tuple(leaf.shape)}, of the model's own start {mine.dtype} "
                    f"{tuple(mine.shape)}; use start.like(own_start)"
                )
        again, _ = flatten(case.start(case.context, range(case.rows), start), "state")
        if any(not torch.equal(a, b) for a, b in zip(other, again, strict=True)):
            raise Wrong(f"{name} is another one each time: draw by start.seed, or use start.like(own_start)")
        if isinstance(start, Noise) and all(torch.equal(other[i], own[i]) for i in layout.measured()):
            return "the same for every start: other starts cannot be compared"
    return "zeros and noise fit"


def step(case: Case) -> str:
    """A step gives back the structure, shapes, dtypes and device that it was given, step after step."""
    case.need("encode", "initial_state", "step")
    state = case.state
    for number in range(1, 4):
        try:
            state = case.step(state, case.context)
        except ContractError as error:
            right = "a step must return the structure, shapes, dtypes and device of its state"
            raise Wrong(f"{error} (step {number}); {right}") from None
    case.later = state
    return "structure, shapes, dtypes and device are kept"


def finite(case: Case) -> str:
    """The state stays finite for as many steps as the model was trained with, and for eight at least."""
    case.need("encode", "initial_state", "step")
    state = case.state
    for number in range(1, case.steps + 1):
        state = case.step(state, case.context)
        for name, leaf in named_leaves(state, "state").items():
            bad = ~leaf.isfinite().flatten(1).all(1) if leaf.ndim > 1 else ~leaf.isfinite()
            if bool(bad.any()):
                raise Wrong(
                    f"step: {name} is not finite after step {number} of {case.steps}, for {int(bad.sum())} of "
                    f"{examples(case.rows)}, the first of them example {int(bad.nonzero()[0, 0])}; such examples count "
                    "as failed everywhere"
                )
    return f"finite for {case.steps} steps"


def decode(case: Case) -> str:
    """An answer can be read before the first step and after any other, one row an example."""
    case.need("encode", "initial_state", "decode")
    shapes = []
    for when, state in (("before the first step", case.state), ("after three steps", case.later)):
        if state is None:
            continue
        try:
            outputs = case.read("decode", state, case.context)
        except Exception as error:
            raise Wrong(
                f"decode fails {when}: {said(error)}; an answer must be readable after any step, and before"
            ) from error
        leaves = named_leaves(outputs, "outputs")
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves.values()):
            raise Wrong(f"decode returns {type(outputs).__name__} {when}; it must return a tensor or a nest of tensors")
        for name, leaf in leaves.items():
            if leaf.ndim == 0 or len(leaf) != case.rows:
                raise Wrong(
                    f"decode: {name} has shape {tuple(leaf.shape)} {when}; its first dimension must be the batch, "
                    f"{case.rows}"
                )
            if leaf.is_floating_point() and bool(leaf.isnan().any()):
                raise Wrong(f"decode: {name} has NaN {when}, from a state that is finite")
        shapes.append({name: (tuple(leaf.shape), leaf.dtype) for name, leaf in leaves.items()})
    if shapes[0] != shapes[-1]:
        raise Wrong(f"decode returns {_described(shapes[0])} before the first step and {_described(shapes[-1])} after "
                    "three; it must return the same shapes and dtypes after any step")  # fmt: skip
    return _described(shapes[0])


def score(case: Case) -> str:
    """The model's own halting signal is one finite number an example."""
    case.need("encode", "initial_state", "score")
    state = case.state if case.later is None else case.later
    found = case.read("score", state, case.context)
    if found is None:
        raise Untested("the model has no score")
    if not isinstance(found, Tensor) or found.shape != (case.rows,):
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise Wrong(f"score returns {what}; it must be ({case.rows},), one number an example, larger where it is surer")
    if not found.is_floating_point() or not bool(found.isfinite().all()):
        raise Wrong(
            f"score returns {found.dtype} that {'is not finite' if found.is_floating_point() else 'is no float'}"
        )
    return f"{found.dtype} ({case.rows},)".removeprefix("torch.")


def judge(case: Case) -> str:
    """What says what is right returns one entry an example."""
    case.need("encode", "initial_state", "decode")
    state = case.state if case.later is None else case.later
    outputs = case.read("decode", state, case.context)
    seen = []
    for name in ("correct", "symbols", "loss"):
        function = getattr(case.judge, name, None)
        if function is None or case.targets is None:
            continue
        seen.append(name)
        found = function(outputs, case.targets)
        if not isinstance(found, Tensor) or found.shape != (case.rows,):
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise Wrong(f"{name}(outputs, targets) returns {what}; it must be ({case.rows},), one entry an example")
        numbers = found.double()
        if name != "loss" and not bool(((numbers >= 0) & (numbers <= 1)).all()):
            raise Wrong(f"{name}(outputs, targets) returns {_first_beyond(numbers)}; it must be "
                        f"{'True or False' if name == 'correct' else 'a share from 0 to 1'}")  # fmt: skip
        if name == "loss" and bool(found.isnan().any()):
            raise Wrong("loss(outputs, targets) returns NaN for outputs that have none")
    answers = getattr(case.judge, "answers", None)
    if answers is not None:
        seen.append("answers")
        found = answers(outputs)
        if not isinstance(found, Tensor) or found.is_floating_point() or found.ndim == 0 or len(found) != case.rows:
            what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise Wrong(
                f"answers(outputs) returns {what}; it must be whole numbers, first dimension the batch, {case.rows}"
            )
    if not seen:
        raise Untested("there are no targets, or nothing says what is right: correct, symbols, loss, answers")
    return ", ".join(seen)


def _first_beyond(numbers: Tensor) -> Any:
    return float(numbers[~((numbers >= 0) & (numbers <= 1))][0])


def _described(shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> str:
    return ", ".join(f"{name} {str(dtype).removeprefix('torch.')} {shape}" for name, (shape, dtype) in shapes.items())
