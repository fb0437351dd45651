"""`homeostat check-model`: does somebody's model keep the contract?"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.cli.options import APP, OUT, Device, device_of
from homeostat.errors import ContractError, InputError
from homeostat.models.conformance import check_model
from homeostat.studies.bring_your_own import load_model


@APP.command("check-model")
def check_model_command(
    model: Annotated[str, typer.Argument(help="path/to/file.py:build. This runs the file.", metavar="FILE.py:build")],
    rows: Annotated[int, typer.Option(min=1, max=4096, help="Examples to check on, of the first batch.")] = 8,
    steps: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Of the longest run; its trained steps when not said.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the starts.")] = 0,
    device: Device = "cpu",
) -> None:
    """Check your own model against the contract. Exit code 0: all passed, 1: something is wrong, 2: bad input."""
    target = device_of(device)
    try:
        own = load_model(model, option="FILE.py:build")
    except ContractError as error:
        OUT.print(f"failed: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    with own.blame():
        inputs, targets = _first_batch(own.examples, rows)
        found = check_model(
            own.subject, inputs, targets, steps=steps, seed=seed, device=None if device == "cpu" else target
        )
    OUT.print(str(found), markup=False, highlight=False, soft_wrap=True)
    if not found.passed:
        raise typer.Exit(1)


def _first_batch(examples: Any, rows: int) -> tuple[Any, Any]:
    """The first rows of the first batch of the first difficulty."""
    batches = next(iter(examples.values()), ()) if isinstance(examples, Mapping) else examples
    batch = next(iter(batches), None)
    if batch is None:
        raise InputError("examples has no batch; a check needs one, (inputs, targets)")
    pair = tuple(batch) if isinstance(batch, Iterable) and not isinstance(batch, str | Tensor) else ()
    if len(pair) != 2:
        raise InputError(f"the first of the examples must be a batch (inputs, targets), not a {type(batch).__name__}")
    inputs, targets = pair

    def cut(leaf: Any) -> Any:
        return leaf[:rows] if isinstance(leaf, Tensor) and leaf.ndim else leaf

    with torch.no_grad():
        return pytree.tree_map(cut, inputs), pytree.tree_map(cut, targets)
