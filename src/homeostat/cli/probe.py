"""`homeostat probe`: does a model end in the same place wherever it starts, and what do extra steps do to it?"""

from pathlib import Path
from typing import Annotated

import typer

from homeostat.cli.options import APP, ERR, OUT, Device, device_of, numbers_of, task_of
from homeostat.errors import InputError
from homeostat.files import make_folder, write_text
from homeostat.inference.puzzles import most_steps
from homeostat.models import load
from homeostat.studies.bring_your_own import load_model
from homeostat.studies.instances import instances_of, training_examples
from homeostat.studies.path_independence_probe import PARTS, Part, probe
from homeostat.studies.progress import make_progress


@APP.command("probe")
def probe_command(
    checkpoint: Annotated[str | None, typer.Argument(help="Folder of a checkpoint, or a shipped one by name.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Your own model instead: path/to/file.py:build. This runs the file.")
    ] = None,
    sizes: Annotated[str | None, typer.Option(help="Sizes of the test instances, such as 32,64.")] = None,
    count: Annotated[int, typer.Option(min=2, help="Test instances of each size.")] = 32,
    steps: Annotated[
        int | None, typer.Option(min=2, max=10_000_000, help="Steps of every run; by default what the size needs.")
    ] = None,
    only: Annotated[str | None, typer.Option(help=f"Some of: {', '.join(PARTS)}.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for probe.json.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of test instances and starts.")] = 0,
    device: Device = "cpu",
) -> None:
    """Probe a checkpoint, or your own model: does it end in one place from every start, and what do extra steps do?"""
    if (checkpoint is None) == (model is None):
        raise InputError("give either a checkpoint or --model path/to/file.py:build")
    parts = None if only is None else [part.strip() for part in only.split(",") if part.strip()]
    if parts is not None and (not parts or set(parts) - set(PARTS)):
        raise InputError(f"--only takes some of {', '.join(PARTS)} with commas between, not {only!r}")
    target = device_of(device)
    if out is not None:
        make_folder(out)
    total = len(PARTS if parts is None else set(parts))
    with make_progress(ERR) as progress:
        bar = progress.add_task("probe", total=total, note="")
        begun: list[Part] = []

        def tell(part: Part) -> None:
            begun.append(part)
            progress.update(bar, completed=len(begun) - 1, note=part)

        if model is not None:
            if sizes is not None:
                raise InputError("--sizes is for checkpoints; your own model brings its own examples")
            own = load_model(model)
            with own.blame():
                found = probe(
                    own.subject,
                    own.examples,
                    steps=steps or own.default_budgets()[-1],
                    training=own.training_examples,
                    training_is_whole=own.training_is_whole,
                    only=parts,
                    seed=seed,
                    device=None if device == "cpu" else target,
                    on_part=tell,
                )
        else:
            assert checkpoint is not None
            loaded = load(checkpoint, device=target)
            task = task_of(loaded)
            wanted = numbers_of(sizes, "--sizes") if sizes is not None else task.sizes
            groups = instances_of(task, dict.fromkeys(wanted, count), seed=seed)
            training, whole = None, False
            try:
                training, whole = training_examples(loaded.config.training, count)
            except InputError as error:  # the other parts, and extra steps on test instances, need none
                ERR.print(f"no training instances: {error}", highlight=False, markup=False)
            longest = max(group.side for group in groups)
            found = probe(
                loaded.model,
                {group.name: group for group in groups},
                steps=steps or most_steps(loaded.config, longest),
                judge=task,
                training=training,
                training_is_whole=whole,
                only=parts,
                name=loaded.config.name,
                seed=seed,
                on_part=tell,
            )
        progress.update(bar, completed=total, note="")
    if out is not None:
        write_text(out / "probe.json", found.to_json())
    OUT.print(repr(found), soft_wrap=True, highlight=False, markup=False)
    if out is not None:
        OUT.print(f"\nAll figures: {out / 'probe.json'}", soft_wrap=True, highlight=False, markup=False)
