"""Who says what is right: the functions of a task, or of the user's own model, that an audit judges by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homeostat.errors import ContractError

_GENERIC_LEGEND = (("right", "wrong", "not asked"), ("#4477aa", "#ee7733", "#dddddd"))


@dataclass(frozen=True)
class Judge:
    """What can be said of outputs. Everything is optional; what is missing is not measured, and the audit says so.

    Attributes:
        correct: `(outputs, targets) -> (batch,)` bool, right in full.
        symbols: `(outputs, targets) -> (batch,)`, share of the symbols that are right.
        loss: `(outputs, targets) -> (batch,)`.
        answers: `outputs -> (batch, ...)` integers, the decoded answer; outputs that are integers or booleans
            themselves need none.
        asked: `inputs -> (batch, ...)` bool in the shape of the answers: where an answer is asked. Everywhere when it
            is None. Unlike targets, inputs are there when a model is used.
        cells: `(inputs, answer, target) -> (rows, columns)` codes of one example, for the gallery.
        legend: labels and colours of these codes.
    """

    correct: Callable[[Any, Any], Tensor] | None = None
    symbols: Callable[[Any, Any], Tensor] | None = None
    loss: Callable[[Any, Any], Tensor] | None = None
    answers: Callable[[Any], Tensor] | None = None
    asked: Callable[[Any], Tensor] | None = None
    cells: Callable[[Any, Tensor, Tensor], np.ndarray] | None = None
    legend: tuple[tuple[str, ...], tuple[str, ...]] = _GENERIC_LEGEND

    @classmethod
    def of(cls, source: Any) -> "Judge":
        """Whatever a task, or the object that a user's `build()` returned, has of these functions.

        Example:
            >>> from homeostat.tasks import PrefixSums
            >>> Judge.of(PrefixSums()).correct is not None
            True
            >>> Judge.of(object()).correct is None
            True
        """
        found: dict[str, Any] = {}
        for name in ("correct", "symbols", "loss", "answers", "asked", "cells"):
            function = getattr(source, name, None)
            if function is not None and not callable(function):
                raise ContractError(f"{name} must be a function, not {function!r}")
            found[name] = function
        legend = getattr(source, "legend", None)
        if legend is not None and found["cells"] is not None:
            found["legend"] = (tuple(legend.labels), tuple(legend.colours))
        return cls(**found)

    def decoded(self, outputs: Any) -> Tensor | None:
        """The answers as integers, `(batch, ...)`, or None where that is not known."""
        if self.answers is not None:
            return self.answers(outputs)
        if isinstance(outputs, Tensor) and not outputs.is_floating_point():
            return outputs
        return None

    def asked_of(self, inputs: Any) -> Tensor | None:
        """`(batch, ...)` bool: where an answer is asked; None is everywhere.

        Raises:
            ContractError: something else came back.
        """
        if self.asked is None:
            return None
        found = self.asked(inputs)
        if not isinstance(found, Tensor) or found.dtype != torch.bool:
            kind = str(found.dtype) if isinstance(found, Tensor) else type(found).__name__
            raise ContractError(f"asked(inputs) must return a bool tensor in the shape of the answers, not {kind}")
        return found

    def judged(self, name: str, outputs: Any, targets: Any, rows: int) -> Tensor | None:
        """`correct`, `symbols` or `loss` of a batch, checked to be one number an example.

        Raises:
            ContractError: another shape came back.
        """
        function = getattr(self, name)
        if function is None or targets is None:
            return None
        values = function(outputs, targets)
        if not isinstance(values, Tensor) or values.shape != (rows,):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ContractError(
                f"{name}(outputs, targets) must return a tensor of shape ({rows},), one entry an example, not {shape}"
            )
        if name == "correct":
            return values.bool()
        return values if values.is_floating_point() else values.float()

    def drawing(self, inputs: Any, answer: Tensor, target: Any) -> np.ndarray | None:
        """One example as codes into the legend, or None where it cannot be drawn."""
        if self.cells is not None:
            return np.asarray(self.cells(inputs, answer, target))
        if not isinstance(target, Tensor) or target.shape != answer.shape or answer.ndim not in (1, 2):
            return None
        codes = torch.where(answer == target, 0, 1).cpu().numpy()
        return _wrapped(codes) if codes.ndim == 1 else codes


def _wrapped(codes: np.ndarray, columns: int = 64) -> np.ndarray:
    """A long row folded into rows of `columns`; what is left over is "not asked"."""
    if len(codes) <= columns:
        return codes[None]
    padded = np.full(-(-len(codes) // columns) * columns, 2)
    padded[: len(codes)] = codes
    return padded.reshape(-1, columns)
