"""Measure a model: path independence and what goes with it, the probes one after the other, and the verdict."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from homeostat.errors import InputError
from homeostat.models.contract import as_model
from homeostat.probes import (
    Attack,
    Certificates,
    Dynamics,
    ExtraSteps,
    LimitClasses,
    StartAlignments,
    Trust,
    align_starts,
    attack,
    certify,
    classify_limits,
    compare_trust,
    extra_steps,
    measure_dynamics,
)
from homeostat.probes.examples import Examples, groups_of, pairs_of
from homeostat.probes.extra_steps.measure import default_steps
from homeostat.probes.saving import plain
from homeostat.studies.instances import Instances
from homeostat.studies.probe_verdict import PathVerdict, decide

FORMAT = 1

Part = Literal["alignment", "attack", "limits", "dynamics", "certificate", "trust", "extra-steps"]
PARTS: tuple[Part, ...] = ("alignment", "attack", "limits", "dynamics", "certificate", "trust", "extra-steps")
"""What can be measured, in the order in which it is."""

_PROBES: dict[Part, Callable[..., Any]] = {
    "alignment": align_starts,
    "attack": attack,
    "limits": classify_limits,
    "dynamics": measure_dynamics,
    "certificate": certify,
    "trust": compare_trust,
}


@dataclass(frozen=True, repr=False)
class PathIndependence:
    """What the probes found; None is what was not asked for, or not measured for the reason in `missing`."""

    model: str
    steps: int
    seed: int
    verdict: PathVerdict
    alignment: StartAlignments | None
    attack: Attack | None
    limits: LimitClasses | None
    dynamics: Dynamics | None
    certificate: Certificates | None
    trust: Trust | None
    extra_steps: ExtraSteps | None
    missing: dict[str, str]

    def __repr__(self) -> str:
        tables = [repr(found) for part in PARTS if (found := getattr(self, _field(part))) is not None]
        lines = [f"{part} not measured: {why}" for part, why in self.missing.items()]
        verdict = self.verdict.text[0].upper() + self.verdict.text[1:] + "."
        asked = self.alignment is not None or self.attack is not None or "alignment" in self.missing
        return "\n\n".join([*tables, *lines, *([verdict] if asked else [])])

    def to_json(self) -> str:
        """Strict JSON: `{"format": 1, "probe": {...}}`, fields as they are called here; what is not finite is null."""
        return json.dumps({"format": FORMAT, "probe": plain(dataclasses.asdict(self))}, allow_nan=False) + "\n"


def probe(
    model: Any,
    examples: Examples | Mapping[str, Examples],
    *,
    steps: int,
    judge: Any = None,
    training: Examples | Mapping[str, Examples] | None = None,
    training_is_whole: bool = False,
    only: Sequence[str] | None = None,
    name: str | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    on_part: Callable[[Part], None] | None = None,
) -> PathIndependence:
    """Run the probes of path independence, each with its own defaults.

    Args:
        model: anything with the functions of the contract.
        examples: batches `(inputs, targets)`, or several such iterables by the name of their difficulty. What can be
            gone through only once is kept.
        steps: budget of every run.
        judge: what says what is right (see `Judge`); the model's own object when None.
        training: what the model was trained on, in the form of the examples: for `extra-steps`, which otherwise says
            nothing of training data.
        training_is_whole: that is all that it was trained on.
        only: the parts to measure, of `PARTS`; all of them when None.
        name: what to call the model.
        seed: of starts, noise and bootstraps.
        device: where to run; that of the model's parameters when None.
        on_part: told each part before it begins.

    Raises:
        InputError: an unknown part, or one that was asked for by name and cannot be measured. Of the others it is
            said in `missing` why they could not.
        ContractError: a model that breaks the contract.

    Example:
        >>> import homeostat as hs
        >>> model = hs.from_functions(
        ...     encode=lambda x: x,
        ...     initial_state=lambda x: torch.zeros_like(x),
        ...     step=lambda z, x: 0.5 * z + x,
        ...     decode=lambda z, x: z,
        ... )
        >>> x = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
        >>> probe(model, [(x, None)], steps=60, only=["alignment"]).verdict.text
        'path-independent on all examples: runs from every start end in the same place, starts of an adversary were \
not tried'
    """
    parts = [_part(part) for part in (PARTS if only is None else only)]
    groups = {key: _kept(key, batches) for key, batches in groups_of(examples).items()}
    found: dict[Part, Any] = dict.fromkeys(PARTS)
    missing: dict[str, str] = {}
    for part in PARTS:
        if part not in parts:
            continue
        if on_part is not None:
            on_part(part)
        try:
            if part == "extra-steps":
                found[part] = _beyond(model, training, groups, steps, judge, training_is_whole, seed, device)
                continue
            options: dict[str, Any] = {} if part == "limits" else {"judge": judge}
            found[part] = _PROBES[part](model, groups, steps=steps, seed=seed, device=device, **options)
        except InputError as error:
            if only is not None:
                raise
            missing[part] = str(error)
    called = name or next((x.model for x in found.values() if x is not None), type(model).__name__)
    if name is not None:
        found = {part: None if x is None else dataclasses.replace(x, model=name) for part, x in found.items()}
    verdict = decide(found["alignment"], found["attack"])
    results = {_field(part): x for part, x in found.items()}
    return PathIndependence(called, steps, seed, verdict, missing=missing, **results)


def _beyond(
    model: Any,
    training: Any,
    held_out: Any,
    most: int,
    judge: Any,
    whole: bool,
    seed: int,
    device: str | torch.device | None,
) -> ExtraSteps:
    """`extra_steps` with budgets up to those of the other probes, and to twice the horizon at least."""
    horizon = as_model(model).trained_steps
    budgets = None
    if horizon is not None:
        budgets = [n for n in default_steps(horizon) if n <= max(most, 2 * horizon)]
    return extra_steps(
        model,
        training,
        held_out,
        steps=budgets,
        judge=judge,
        training_is_whole=whole and training is not None,
        seed=seed,
        device=device,
    )


def _field(part: str) -> str:
    """What holds the part in a `PathIndependence`."""
    return part.replace("-", "_")


def _part(name: str) -> Part:
    if name not in PARTS:
        raise InputError(f"there is no probe {name!r}; there are {', '.join(PARTS)}")
    return name  # type: ignore[return-value]


def _kept(key: str, batches: Any) -> Any:
    """Batches that can be gone through again and again."""
    return batches if isinstance(batches, Instances | list | tuple) else list(pairs_of(key, batches))
