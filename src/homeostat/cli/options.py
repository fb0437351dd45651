"""What several commands share: the application, the two consoles, and how their options are read."""

import sys
from typing import Annotated

import torch
import typer
from rich.console import Console

from homeostat.errors import InputError
from homeostat.models import Checkpoint
from homeostat.tasks import Task, get_task

APP = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train, audit and use PyTorch models that think by iterating.",
)
OUT, ERR = Console(), Console(stderr=True)

_MOST_BYTES = 100_000_000
"""Longest input that is read: endless ones, such as devices, end here."""

Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, mps; cuda:1 for the second GPU.")]


def read_source(source: str) -> bytes:
    """A file as bytes, or standard input for "-"."""
    try:
        if source != "-":
            with open(source, "rb") as stream:
                data = stream.read(_MOST_BYTES + 1)
        elif sys.stdin is None:
            raise InputError("standard input is closed; name a file")
        else:
            data = sys.stdin.buffer.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise InputError(f"{source} has more than {_MOST_BYTES:,} bytes; hand it in in parts")
    return data


def device_of(name: str) -> torch.device:
    """A device that can be computed on."""
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # a device without data, such as meta, fails here
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def numbers_of(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers with commas between, sorted, each once."""
    try:
        numbers = tuple(int(part) for part in text.replace(" ", ",").split(",") if part)
    except ValueError:
        raise InputError(f"{option} takes whole numbers with commas between, such as 1,4,16, not {text!r}") from None
    if not numbers or min(numbers) < 1:
        raise InputError(f"{option} takes whole numbers of 1 or more, such as 1,4,16, not {text!r}")
    return tuple(sorted(set(numbers)))


def task_of(checkpoint: Checkpoint) -> Task:
    """The task that a checkpoint was trained for."""
    return get_task(checkpoint.config.task.name, **checkpoint.config.task.options)
