"""Progress bars with a time to go, on one look for every stage."""

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class _Progress(Progress):
    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        if exc_type is not None:  # what went wrong is all that should be left to read
            self.live.transient = True
        super().__exit__(exc_type, exc_val, exc_tb)

    def stop(self) -> None:
        self.live.stop()
        if not self.console.is_interactive and not self.live.transient:
            self.console.print()  # ends the line of the last bar; where nothing was shown it would be an empty one


def make_progress(console: Console) -> Progress:
    """Bars for stages that run at the same time; shown on `console`, which is standard error in the command line."""
    return _Progress(
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("[dim]elapsed[/]"),
        TimeElapsedColumn(),
        TextColumn("[dim]to go[/]"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}[/]"),
        console=console,
    )
