"""`homeostat tasks`: what there is."""

from rich.table import Table
from rich.text import Text

from homeostat.cli.options import APP, OUT
from homeostat.models import load, shipped
from homeostat.tasks import TASKS
from homeostat.training import RECIPES, REFERENCE


@APP.command()
def tasks() -> None:
    """List tasks, their recipes and the checkpoints that come with the package."""
    models = {name: load(name).config.task.name for name in shipped()}
    for name, task in TASKS.items():
        recipes = [
            f"{r.name}{' (reference)' if REFERENCE.get(name) == r.name else ''}"
            for r in RECIPES.values()
            if r.task.name == name
        ]
        there = [model for model, of in models.items() if of == name]
        OUT.print(Text.assemble((name, "bold"), f": {task.summary}"))
        table = Table.grid(padding=(0, 2))
        table.add_row("  sizes", f"{', '.join(map(str, task.sizes))} {task.size_name}")
        table.add_row("  recipes", ", ".join(recipes) or "none")
        table.add_row("  shipped checkpoints", ", ".join(there) or "none")
        OUT.print(table)
