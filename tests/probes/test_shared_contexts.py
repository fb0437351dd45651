"""`step`, `decode` and `score` are given a context without marks by every probe: a model may read what is `Shared`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import homeostat as hs
from homeostat.probes import align_starts, attack, certify, compare_trust


class Gained:
    """Reads its shared gain in all three."""

    trained_steps = 4

    def encode(self, x):
        return {"x": x, "gain": hs.Shared(0.5)}

    def initial_state(self, context):
        return torch.zeros_like(context["x"])

    def step(self, state, context):
        return context["gain"] * state + context["x"]

    def decode(self, state, context):
        return 2 * context["gain"] * state

    def score(self, state, context):
        return context["gain"] * state.abs().amax(1)

    def answers(self, outputs):
        return outputs.argmax(1)

    def correct(self, outputs, targets):
        return outputs.argmax(1) == targets

    def loss(self, outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")


PROBES: dict[str, Callable[[Any, Any], Any]] = {
    "audit": lambda model, examples: hs.audit(model, examples, steps=[2, 8]),
    "align_starts": lambda model, examples: align_starts(model, examples, steps=8),
    "attack": lambda model, examples: attack(model, examples, steps=8, objective="answer"),
    "certify": lambda model, examples: certify(model, examples, steps=8),
    "compare_trust": lambda model, examples: compare_trust(model, examples, steps=8),
}


@pytest.mark.parametrize("probe", PROBES)
def test_probes_unwrap_what_is_shared(probe: str) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(6, 3)
    targets = inputs.argmax(1)
    targets[0] = (targets[0] + 1) % 3  # something to tell right from wrong by
    PROBES[probe](Gained(), [(inputs, targets)])
