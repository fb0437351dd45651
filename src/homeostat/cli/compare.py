"""`homeostat compare`: several models on the same inputs, at equal cost."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.cli.options import APP, ERR, OUT, Device, device_of, numbers_of, task_of
from homeostat.errors import InputError
from homeostat.files import make_folder
from homeostat.inference.puzzles import most_steps
from homeostat.models import Checkpoint, load
from homeostat.probes import compare
from homeostat.probes.examples import groups_of, pairs_of
from homeostat.studies.bring_your_own import OwnModel, load_examples, load_model
from homeostat.studies.instances import Instances, instances_of
from homeostat.studies.progress import make_progress


class CostsName(StrEnum):
    """What the cost of an example is counted in."""

    evaluations = "evaluations"
    seconds = "seconds"


@APP.command("compare")
def compare_command(
    models: Annotated[
        list[str], typer.Argument(help="Two or more: folders or names of checkpoints, or path/to/file.py:build.")
    ],
    examples: Annotated[
        str | None, typer.Option(help="path/to/file.py:function giving batches (inputs, targets). This runs the file.")
    ] = None,
    sizes: Annotated[str | None, typer.Option(help="Sizes of the task's test instances, such as 32,64,128.")] = None,
    count: Annotated[int | None, typer.Option(min=2, help="Test instances of each size; 200 by default.")] = None,
    costs: Annotated[CostsName, typer.Option(help="Compare at equal evaluations, or at equal seconds as measured.")] = (
        CostsName.evaluations
    ),
    most: Annotated[float | None, typer.Option(help="Largest cost an example; by default what the sizes need.")] = None,
    calibration: Annotated[float, typer.Option(help="Share of the examples that budgets are chosen on.")] = 0.5,
    out: Annotated[Path | None, typer.Option(help="Folder for comparison.html and comparison.json.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of test instances, split and bootstrap.")] = 0,
    device: Device = "cpu",
) -> None:
    """Compare models on the same inputs at equal cost: accuracy by cost, differences, and each at its best."""
    if len(models) < 2:
        raise InputError("a comparison takes two or more models")
    if len(set(models)) < len(models):
        twice = next(model for model in models if models.count(model) > 1)
        raise InputError(f"{twice} is given twice; every model once")
    if examples is not None and (sizes is not None or count is not None):
        raise InputError("--sizes and --count are for the test instances of a task; --examples brings its own")
    target = device_of(device)
    if out is not None:
        make_folder(out)
    short = [Path(model).name for model in models]
    names = short if len(set(short)) == len(short) else models
    entered = [_Entered.of(name, source, target) for name, source in zip(names, models, strict=True)]
    batches = load_examples(examples) if examples is not None else _examples(entered, sizes, count, seed)
    if most is None and costs is CostsName.evaluations:
        most = _needed(entered, batches)
    with ExitStack() as stack, make_progress(ERR) as progress:
        for one in entered:
            stack.enter_context(one.blame())
        bar = progress.add_task("compare", total=None, note="")
        found = compare(
            {one.name: one.subject for one in entered},
            batches,
            judge=next((task_of(one.checkpoint) for one in entered if one.checkpoint is not None), None),
            costs=costs.value,
            most=most,
            calibration=calibration,
            seed=seed,
            device=None if device == "cpu" else target,
            on_examples=lambda name, model, done: progress.update(bar, note=f"{name}, {model}: {done} examples"),
        )
    if out is not None:
        found.save(out)
    OUT.print(repr(found), soft_wrap=True, highlight=False, markup=False)
    if out is not None:
        OUT.print(f"\nReport: {out / 'comparison.html'}", soft_wrap=True, highlight=False, markup=False)


@dataclass(frozen=True)
class _Entered:
    """A model as the user named it."""

    name: str
    subject: Any
    checkpoint: Checkpoint | None = None
    own: OwnModel | None = None

    @classmethod
    def of(cls, name: str, source: str, device: torch.device) -> "_Entered":
        if ".py:" in source:
            own = load_model(source, option="compare", needs_examples=False)
            return cls(name, own.subject, own=own)
        loaded = load(source, device=device)
        return cls(name, loaded.model, checkpoint=loaded)

    @contextmanager
    def blame(self) -> Iterator[None]:
        if self.own is None:
            yield
            return
        with self.own.blame():
            yield


def _examples(entered: list[_Entered], sizes: str | None, count: int | None, seed: int) -> Any:
    """Test instances of the task that the checkpoints share, or the examples that all own models bring."""
    checkpoints = [one for one in entered if one.checkpoint is not None]
    if not checkpoints:
        if sizes is not None or count is not None:
            raise InputError("--sizes and --count are for checkpoints; your own models bring their own examples")
        return _same_examples(entered)
    first = checkpoints[0]
    assert first.checkpoint is not None
    for other in checkpoints[1:]:
        assert other.checkpoint is not None
        ours, theirs = first.checkpoint.config.task, other.checkpoint.config.task
        if ours != theirs:
            raise InputError(
                f"{first.name} was trained for {_task_words(ours)}, {other.name} for {_task_words(theirs)}; models of "
                "different tasks cannot be compared"
            )
    task = task_of(first.checkpoint)
    wanted = numbers_of(sizes, "--sizes") if sizes is not None else task.sizes
    return {group.name: group for group in instances_of(task, dict.fromkeys(wanted, count or 200), seed=seed)}


def _task_words(task: Any) -> str:
    options = ", ".join(f"{name}={value}" for name, value in task.options.items())
    return f"{task.name} ({options})" if options else task.name


def _same_examples(entered: list[_Entered]) -> Any:
    """The examples that every model brings, which must be the same ones."""
    found: list[dict[str, list[tuple[Any, Any]]]] = []
    for one in entered:
        assert one.own is not None
        if one.own.examples is None:
            raise InputError(f"{one.name} brings no examples; give --examples path/to/file.py:function")
        groups = groups_of(one.own.examples)
        found.append({name: list(pairs_of(name, batches)) for name, batches in groups.items()})
    first = entered[0].name
    for one, groups in zip(entered[1:], found[1:], strict=True):
        for name in dict.fromkeys([*found[0], *groups]):
            counts = [_count(side.get(name, [])) for side in (found[0], groups)]
            if counts[0] != counts[1]:
                raise InputError(
                    f"{first} brings {counts[0]} examples of {name!r}, {one.name} {counts[1]}; give all models the "
                    "same ones with --examples path/to/file.py:function"
                )
            if not _equal(found[0][name], groups[name]):
                raise InputError(
                    f"{first} and {one.name} bring different examples of {name!r}; give all models the same ones with "
                    "--examples path/to/file.py:function"
                )
    return found[0]


def _count(batches: list[tuple[Any, Any]]) -> int:
    leaves = [[leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)] for inputs, _ in batches]
    return sum(len(found[0]) for found in leaves if found and found[0].ndim)


def _equal(ours: Any, theirs: Any) -> bool:
    first, structure = pytree.tree_flatten(ours)
    second, other = pytree.tree_flatten(theirs)
    return structure == other and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or bool(a == b)
        for a, b in zip(first, second, strict=True)
    )


def _needed(entered: list[_Entered], batches: Any) -> float | None:
    """What the largest size needs, by the checkpoints' own word; None where there is no such word."""
    groups = list(batches.values()) if isinstance(batches, dict) else []
    if any(one.checkpoint is None for one in entered) or not all(isinstance(group, Instances) for group in groups):
        return None
    side = max((group.side for group in groups), default=1)
    return max(
        most_steps(one.checkpoint.config, side) * one.checkpoint.model.unit_cost
        for one in entered
        if one.checkpoint is not None
    )
