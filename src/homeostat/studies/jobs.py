"""What a study computes: jobs, each deterministic, with a key, a folder and one result.

A job is data. Its key is a hash of that data, so that the same job asked for by two parts is one job, and a job whose
declaration changed is another. Its result is plain values, written as strict JSON, whole or not at all.
"""

import dataclasses
import hashlib
import json
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

import homeostat

FORMAT = 1
"""Of the results on disk; part of every key."""

_TELL_EVERY = 0.5
"""Seconds between two signs of progress."""


@dataclass(frozen=True)
class Place:
    """Where a job runs: its own folder, those of the jobs it needs, and the device."""

    root: Path
    device: str = "cpu"
    on_progress: Callable[[float, str], None] | None = None

    def folder(self, job: "Job") -> Path:
        """The folder of a job, this one or one that it needs."""
        return self.root / job.folder_name

    def teller(self) -> Callable[..., None]:
        """A function that passes on the share done and a note, not more often than anybody reads them."""
        last = -math.inf

        def tell(share: float, note: str = "") -> None:
            nonlocal last
            if self.on_progress is not None and (share >= 1 or time.monotonic() - last > _TELL_EVERY):
                last = time.monotonic()
                self.on_progress(share, note)

        return tell


class Job(BaseModel):
    """One thing to compute. A subclass says what it needs, how long that takes, and does it.

    Example:
        >>> class Square(Job):
        ...     number: int
        ...     @property
        ...     def label(self):
        ...         return f"square of {self.number}"
        ...     def run(self, place):
        ...         return {"square": self.number**2}
        >>> Square(number=3).key == Square(number=3).key != Square(number=4).key
        True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    @abstractmethod
    def label(self) -> str:
        """What people call it."""

    @abstractmethod
    def run(self, place: Place) -> dict[str, Any]:
        """Do it, in `place.folder(self)`, and return plain values. A job that was killed goes on or begins again."""

    @property
    def needs(self) -> "tuple[Job, ...]":
        """Jobs that must have been done before."""
        return ()

    @property
    def code(self) -> tuple[str, ...]:
        """Modules of `homeostat` that the result depends on, by their full names; what they import counts too."""
        return (type(self).__module__,) if type(self).__module__.startswith("homeostat.") else ()

    @property
    def seconds(self) -> float:
        """About how long it takes on one core of an ordinary machine."""
        return 1.0

    @property
    def kind(self) -> str:
        """The name of its class, which is part of its key."""
        return type(self).__name__

    def as_record(self) -> dict[str, Any]:
        """The declaration as plain data, without what is as it is by default: a field that comes to be later, with a
        default that changes nothing, leaves keys as they are. A changed default is a change of code.
        """
        return {"kind": self.kind, **_declared(self)}

    @cached_property
    def key(self) -> str:
        """A hash of the declaration, the version of the package and the format of results.

        What is None or empty does not count, so that a later option that is left out keeps the keys of what was
        computed.
        """
        record = {"format": FORMAT, "version": homeostat.__version__, "job": _given(self.as_record())}
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and self.key == other.key

    @property
    def folder_name(self) -> str:
        """The label as a name of a folder, with the first digits of the key."""
        plain = "".join(c if c.isalnum() else "-" for c in self.label.lower())
        return f"{'-'.join(part for part in plain.split('-') if part)[:80]}-{self.key[:10]}"


def _given(record: Any) -> Any:
    """A record without the entries that are None or empty."""
    if not isinstance(record, dict):
        return record
    return {name: _given(value) for name, value in record.items() if value is not None and value not in ({}, [])}


def _declared(value: Any) -> Any:
    if isinstance(value, BaseModel):
        found = {}
        for name, field in type(value).model_fields.items():
            own = getattr(value, name)
            # A kind is what tells two classes apart that may have no other field.
            if not field.exclude and (name == "kind" or own != field.get_default(call_default_factory=True)):
                found[name] = _declared(own)
        return found
    if isinstance(value, dict):
        return {str(key): _declared(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_declared(item) for item in value]
    return value


def with_needs(jobs: Iterable[Job]) -> list[Job]:
    """The jobs and all that they need, each once, what is needed first."""
    found: dict[Job, None] = {}

    def add(job: Job) -> None:
        if job not in found:
            for needed in job.needs:
                add(needed)
            found[job] = None

    for job in jobs:
        add(job)
    return list(found)


def plain(value: Any) -> Any:
    """Dataclasses, arrays and tuples as dicts, lists and numbers; what is not finite is None.

    Example:
        >>> plain({"share": float("nan"), "sizes": (1, 2)})
        {'share': None, 'sizes': [1, 2]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    raise TypeError(f"a result must be plain values, not {type(value).__name__}")
