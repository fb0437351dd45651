"""What examples say that have stopped: answers, how they were reached, and how sure the model is."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.engine import Status
from homeostat.models.contract import IteratedModel
from homeostat.probes.courses.signals import AnswerReader, least_confidence


@dataclass(frozen=True, eq=False)
class Stopped:
    """Examples that have stopped, one entry a row.

    Attributes:
        outputs: what the model's `decode` gives.
        answers: `(rows, ...)` int64, or `(rows, 0)` where outputs have no decoded form.
        steps: int64. evaluations: int64, of the model's step: more than `steps` where a signal costs more.
        residual: float32, RMS(f(z) - z) / RMS(f(z)) of the last step, the largest over the leaves.
        status: int8 of `Status`: with a policy STOPPED where its conditions were met, MAX_STEPS where they were not,
            DIVERGED where the state was not finite; outputs are those of the last state that was.
        confidence: float32, softmax probability of the least sure asked position; NaN where outputs are no logits.
        score: float32, the model's own; NaN where it has none.
        abstained: bool.
    """

    outputs: Any
    answers: Tensor
    steps: Tensor
    evaluations: Tensor
    residual: Tensor
    status: Tensor
    confidence: Tensor
    score: Tensor
    abstained: Tensor

    def rows(self, places: Tensor) -> "Stopped":
        """Some of the examples."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return Stopped(**{name: pytree.tree_map(lambda x: x[places], tree) for name, tree in columns.items()})

    @classmethod
    def at(
        cls,
        model: IteratedModel,
        reader: AnswerReader,
        state: Any,
        context: dict[str, Any],
        steps: Tensor,
        evaluations: Tensor,
        residual: Tensor,
        status: Tensor,
        abstained: Tensor,
    ) -> "Stopped":
        """Read final states; `state` and `context` (the model's, and which answers are asked) are bare of marks."""
        outputs = model.decode(state, context["model"])
        unknown = torch.full(steps.shape, float("nan"), device=steps.device)
        confidence = unknown
        if reader.how == "argmax":
            confidence = least_confidence(reader.beliefs(outputs), context["asked"]).float()
            confidence = confidence.masked_fill(status == int(Status.DIVERGED), float("nan"))
        score = model.score(state, context["model"])
        return cls(
            outputs,
            reader.answers(outputs),
            steps,
            evaluations,
            residual.float(),
            status,
            confidence,
            unknown if score is None else score.float(),
            abstained,
        )
