"""A policy bound to a model: the map that the engine runs, and how its final states are read."""

from typing import Any

import torch

from homeostat.engine import Status
from homeostat.engine.nest import flatten
from homeostat.errors import ContractError, InputError
from homeostat.inference.policy import Policy
from homeostat.inference.stopped import Stopped
from homeostat.models.contract import as_model
from homeostat.models.starts import own_start
from homeostat.probes.answers import judge_of
from homeostat.probes.courses.signals import AnswerReader
from homeostat.probes.courses.watched import WatchedMap, bare_context, rows_of


class Guided:
    """The policy on the model.

    Args:
        judge: reads answers where the policy was fitted with one; the model's own object when None.

    Raises:
        PolicyError: the policy was made for another model.
        ContractError: the model breaks the contract, or its step draws random numbers.
        InputError: the policy needs a judge that was not given.
    """

    def __init__(self, model: Any, policy: Policy, judge: Any = None) -> None:
        policy.check(model)
        self.model, self.policy = as_model(model), policy
        if self.model.stochastic:
            raise ContractError(
                f"{self.model.name}'s step draws random numbers: a policy would stop elsewhere each time"
            )
        self.judge = judge_of(model, judge)
        if policy.masked and self.judge.asked is None:
            raise InputError("this policy was fitted with a judge that has asked(inputs); give predict that judge=")
        if policy.reads == "judge" and self.judge.answers is None:
            raise InputError("this policy was fitted with a judge that has answers(outputs); give predict that judge=")
        self.reader = AnswerReader(policy.reads, self.judge)
        self.map = WatchedMap(
            self.model,
            self.reader,
            policy.signals,
            max_steps=policy.max_steps,
            conditions=policy.conditions,
            seed=policy.seed,
        )

    def context(self, inputs: Any) -> dict[str, Any]:
        """The context of the guided map for a batch of inputs."""
        asked = self.judge.asked_of(inputs) if self.policy.masked else None
        return {"model": self.model.encode(inputs), "asked": asked}

    def start(self, context: dict[str, Any]) -> dict[str, Any]:
        """Where the guided map starts, from the model's own start."""
        own = self.model.initial_state(context["model"], own_start(rows_of(context)))
        return self.map.start(own, context)

    def read(self, state: dict[str, Any], context: dict[str, Any]) -> Stopped:
        """What the final states of some examples say; both as the engine gives them, with their marks."""
        leaves, layout = flatten(state, "state")
        found, bare = layout.build(leaves), bare_context(context)
        inner = self.map.layout
        assert inner is not None, "something was started"
        failed, met = found["failed"], found["met"]
        status = torch.where(met, int(Status.STOPPED), int(Status.MAX_STEPS))
        status = torch.where(failed, int(Status.DIVERGED), status).to(torch.int8)
        answered = met & ~failed
        if self.policy.select is not None:
            condition = self.policy.select.condition
            answered = answered & condition.holds(self.map.column(found, condition.signal))
        residual = torch.where(failed, float("nan"), found["residual"])
        tree = inner.build(list(found["model"]))
        return Stopped.at(
            self.model,
            self.reader,
            tree,
            bare,
            found["taken"],
            self.map.evaluations(found),
            residual,
            status,
            ~answered,
        )
