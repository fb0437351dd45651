"""`homeostat train`: a model of the package, by recipe."""

from pathlib import Path
from typing import Annotated

import typer
from lightning_fabric import Fabric
from pydantic import ValidationError

from homeostat.cli.options import APP, ERR, OUT, Device, device_of, read_source
from homeostat.errors import InputError
from homeostat.studies.progress import make_progress
from homeostat.tasks import TASKS, Task, get_task
from homeostat.training import RECIPES, REFERENCE, Recipe, TrainingEvent, get_recipe, train


@APP.command("train")
def train_command(
    task: Annotated[str, typer.Argument(help=f"Task to train on: {', '.join(TASKS)}.")],
    recipe: Annotated[
        str | None,
        typer.Option(help=f"Recipe by name ({', '.join(RECIPES)}) or a JSON file; the task's reference by default."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/RECIPE-SEED by default.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; the recipe's own by default.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Global batch; the recipe's own by default.")] = None,
    device: Device = "cpu",
    devices: Annotated[int, typer.Option(min=1, help="Processes or GPUs.")] = 1,
    strategy: Annotated[str, typer.Option(help="As Lightning Fabric names it: auto, ddp, …")] = "auto",
    precision: Annotated[str, typer.Option(help="As Lightning Fabric names it: 32-true, bf16-mixed, …")] = "32-true",
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Training steps between two checkpoints.")] = 100,
) -> None:
    """Train a model. The same command again goes on where a killed one stopped."""
    target = get_task(task)
    named = recipe or REFERENCE.get(target.name)
    if named is None:
        raise InputError(f"{target.name} has no recipe of its own; name a JSON file with --recipe (see docs/tasks.md)")
    chosen = _recipe(named, target)
    changes = {key: value for key, value in (("steps", steps), ("batch", batch)) if value is not None}
    chosen = chosen.changed(**changes)
    folder = out or Path("runs") / f"{chosen.name}-{seed}"
    place = device_of(device)
    if place.index is not None and devices > 1:
        raise InputError(f"--device {device} is one device, --devices asks for {devices}; leave out its number")
    try:
        fabric = Fabric(
            accelerator=place.type,
            devices=[place.index] if place.type == "cuda" and place.index is not None else devices,
            strategy=strategy,
            precision=precision,  # type: ignore[arg-type]
        )
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"Fabric refuses these options: {error}") from error
    with make_progress(ERR) as progress:
        bar = progress.add_task(f"train {chosen.name}", total=chosen.steps, note="", visible=fabric.is_global_zero)

        def tell(event: TrainingEvent) -> None:
            progress.update(bar, completed=event.step, note=f"loss {event.loss:.4f}")

        checkpoint = train(chosen, folder, seed=seed, fabric=fabric, checkpoint_every=checkpoint_every, on_step=tell)
        progress.update(bar, completed=chosen.steps)
    if fabric.is_global_zero:
        record = checkpoint.config.training
        OUT.print(
            f"{checkpoint} in {folder}: loss {record['final_loss']:.4f} (mean of the last 50 steps), "
            f"seed {seed}, {record['seconds']:.0f} s of training",
            soft_wrap=True,
        )


def _recipe(source: str, task: Task) -> Recipe:
    if source in RECIPES or not Path(source).suffix:
        recipe = get_recipe(source)
    else:
        try:
            recipe = Recipe.model_validate_json(read_source(source))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{source}: {where + ': ' if where else ''}{first['msg']}") from error
    if recipe.task.name != task.name:
        raise InputError(f"recipe {recipe.name} is for {recipe.task.name}, not for {task.name}")
    return recipe
