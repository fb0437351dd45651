"""A model's iteration with the signals of its answers riding along in the state.

The watched map is an iterated map like any other, so that the engine's batches, streams and compaction run it as they
are, and what is recorded on calibration data is, number by number, what a deployed policy will see. The engine stops a
row when its only measured leaf, a counter, stands still: the map lets it stand once its conditions hold.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from homeostat.engine import Carry, Stop
from homeostat.engine.nest import Layout, flatten
from homeostat.engine.norms import out_of_bounds, residuals
from homeostat.errors import ContractError
from homeostat.models.contract import IteratedModel
from homeostat.models.starts import Noise
from homeostat.probes.courses.certificate import CertificateSignal
from homeostat.probes.courses.condition import Condition
from homeostat.probes.courses.signals import (
    AnswerReader,
    Signal,
    largest_divergence,
    largest_entropy,
    least_confidence,
    same,
)
from homeostat.probes.cycles import cosines


class WatchedMap:
    """`start` and `step` of the iteration with signals; `stop` is what the engine needs to run it.

    Args:
        model: the model.
        reader: how its outputs are read.
        signals: which ones to keep, `steps` excepted.
        max_steps: most steps of an example.
        conditions: an example stops after the first step at which all of them hold; without any, it takes all steps.
        seed: of the second start, for the signal `alignment`.
    """

    def __init__(
        self,
        model: IteratedModel,
        reader: AnswerReader,
        signals: Sequence[Signal],
        *,
        max_steps: int,
        conditions: Sequence[Condition] = (),
        seed: int = 0,
    ) -> None:
        self.model, self.reader, self.signals = model, reader, tuple(signals)
        self.max_steps, self.conditions, self.seed = max_steps, tuple(conditions), seed
        self.layout: Layout | None = None
        self._context_layout: Layout | None = None
        self._certificate = CertificateSignal(model) if "certificate" in self.signals else None
        self._compares = bool({"stable", "alignment", "certificate"} & set(self.signals))
        self._decodes = bool(set(self.signals) - {"residual", "score"})

    @property
    def stop(self) -> Stop:
        """The counter grows by one a step, or stands."""
        return Stop(rtol=0, atol=0.5, max_steps=self.max_steps)

    def start(self, own: Any, context: dict[str, Any]) -> dict[str, Any]:
        """The state before the first step.

        Args:
            own: the model's own start.
            context: `{"model": its context, "asked": (rows, ...) bool or None}`, as `step` will get it.
        """
        leaves, layout = flatten(own, "state")
        if self.layout is None:
            self.layout = layout
        elif self.layout != layout:
            raise ContractError("the structure of the state differs from that of the examples before")
        self._context_layout = flatten(context["model"], "context")[1]
        bare = bare_context(context)
        rows, device = len(leaves[0]), leaves[0].device
        tree = layout.build(leaves)
        outputs = self.model.decode(tree, bare["model"])
        answers = self.reader.answers(outputs)
        if bare["asked"] is not None and bare["asked"].shape[1:].numel() != answers.shape[1:].numel():
            raise ContractError(
                f"asked(inputs) has shape {tuple(bare['asked'].shape)}, the answers have {tuple(answers.shape)}"
            )
        if "score" in self.signals and self.model.score(tree, bare["model"]) is None:
            raise ContractError(f"{self.model.name} has no score, which the policy looks at")
        state: dict[str, Any] = {
            "model": _carried(leaves),
            "taken": torch.zeros(rows, dtype=torch.int64, device=device),
            "answers": answers if self._compares else answers.new_zeros((rows, 0)),
            "since": torch.zeros(rows, dtype=torch.int64, device=device),
            "signals": Carry(torch.full((rows, len(self.signals)), float("nan"), device=device)),
            "failed": torch.zeros(rows, dtype=torch.bool, device=device),
            "met": torch.zeros(rows, dtype=torch.bool, device=device),
            "residual": Carry(torch.full((rows,), float("nan"), device=device)),
            "pulse": torch.zeros(rows, device=device),
        }
        if "kl" in self.signals:
            state["beliefs"] = Carry(self.reader.beliefs(outputs))
        if "alignment" in self.signals:
            # The same noise for every example, so that an answer does not depend on its place among others.
            noise = Noise().seeded(self.seed, [0] * rows).like(own)
            state["second"] = _carried(flatten(noise, "state")[0])
        if self._certificate is not None:
            state |= self._certificate.start(own, layout, self.seed)
        return state

    def step(self, state: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
        """One step of the model, and a look at the answers."""
        layout = self.layout
        assert layout is not None, "start comes first"
        before, inner = list(state["model"]), context["model"]
        after = layout.read(self.model.step(layout.build(before), inner), before)
        measured = layout.measured()
        new = [after[i] for i in measured]
        _, sizes, relative = residuals([before[i] for i in measured], new)
        failed = out_of_bounds(new, sizes)
        if bool(failed.any()):  # what failed keeps its last state that can be read
            after = [torch.where(_wide(failed, x), old, x) for x, old in zip(after, before, strict=True)]
        found = {**state, "model": tuple(after), "taken": state["taken"] + 1, "failed": failed}
        found["residual"] = relative.to(torch.float32)
        if "second" in state:
            others = list(state["second"])
            found["second"] = tuple(layout.read(self.model.step(layout.build(others), inner), others))
        found |= self._look(found, before, context)
        over = failed | (found["taken"] >= self.max_steps)
        if self.conditions:
            met = ~failed
            for condition in self.conditions:
                met = met & condition.holds(self.column(found, condition.signal))
            found["met"], over = met, over | met
        found["pulse"] = state["pulse"] + (~over).to(torch.float32)
        return found

    def evaluations(self, state: Mapping[str, Any]) -> Tensor:
        """`(rows,)` int64: evaluations of the model's step so far, as `Courses.evaluations` counts them."""
        found = state["taken"] * (2 if "second" in state else 1)
        return found + state["products"] if "products" in state else found

    def column(self, state: Mapping[str, Any], signal: Signal) -> Tensor:
        """One signal of a state of this map, `(rows,)`."""
        return state["taken"] if signal == "steps" else state["signals"][:, self.signals.index(signal)]

    def _look(self, state: dict[str, Any], before: Sequence[Tensor], context: dict[str, Any]) -> dict[str, Any]:
        """Newest answers and signals."""
        assert self.layout is not None
        inner, asked = context["model"], context["asked"]
        tree = self.layout.build(list(state["model"]))
        # Looking costs time at every step: nothing is decoded or compared that no signal needs.
        outputs = self.model.decode(tree, inner) if self._decodes else None
        believes = {"confidence", "entropy", "kl"} & set(self.signals)
        beliefs = self.reader.beliefs(outputs) if believes else state["signals"]
        found: dict[str, Any] = {}
        answers = state["answers"]
        if self._compares:
            answers = self.reader.answers(outputs)
            kept = same(answers, state["answers"], asked) & (state["taken"] > 1)  # the start's answer is none
            found = {"answers": answers, "since": torch.where(kept, state["since"] + 1, 0)}
        if self._certificate is not None:
            assert self._context_layout is not None
            parts = self._context_layout.spec.flatten_up_to(inner)
            found |= self._certificate.follow(
                state, self.layout, before, state["model"], parts, self._context_layout, answers, asked
            )
        columns: list[Tensor] = []
        for signal in self.signals:
            match signal:
                case "residual":
                    value = state["residual"]
                case "stable":
                    value = found["since"]
                case "confidence":
                    value = least_confidence(beliefs, asked)
                case "entropy":
                    value = largest_entropy(beliefs, asked)
                case "kl":
                    value = largest_divergence(beliefs, state["beliefs"], asked)
                    found["beliefs"] = beliefs
                case "score":
                    value = self.model.score(tree, inner)
                case "alignment":
                    value = self._alignment(state, inner, answers, asked)
                case "certificate":
                    value = found.get("safe", state["safe"])
                case _:
                    raise AssertionError(f"{signal} is not looked at")
            assert value is not None, "chosen only where there is one"
            columns.append(value.to(torch.float32))
        found["signals"] = torch.stack(columns, 1) if columns else state["signals"]
        return found

    def _alignment(self, state: dict[str, Any], inner: Any, answers: Tensor, asked: Tensor | None) -> Tensor:
        """Cosine of the two runs over all measured leaves; -1 where they decode to different answers."""
        assert self.layout is not None
        measured = self.layout.measured()
        value = cosines([state["model"][i] for i in measured], [state["second"][i] for i in measured])
        if self.reader.how == "none":
            return value
        others = self.reader.answers(self.model.decode(self.layout.build(list(state["second"])), inner))
        return torch.where(same(answers, others, asked), value, -1.0)


def rows_of(context: Any) -> int:
    """Number of examples of a context; 0 where no part of it is per example."""
    leaves, layout = flatten(context, "context")
    return next((len(x) for x, kind in zip(leaves, layout.kinds, strict=True) if kind != "shared"), 0)


def bare_context(context: Any) -> Any:
    """A context as `step` gets it, without the marks of what is shared."""
    leaves, layout = flatten(context, "context")
    return layout.build(leaves)


def _carried(leaves: Sequence[Tensor]) -> tuple[Any, ...]:
    return tuple(Carry(leaf) if leaf.is_floating_point() else leaf for leaf in leaves)


def _wide(rows: Tensor, like: Tensor) -> Tensor:
    return rows.view(-1, *([1] * (like.ndim - 1)))
