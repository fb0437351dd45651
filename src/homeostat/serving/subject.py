"""What is served: how an example is read from a request, and how its answer is written."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from homeostat.errors import InputError
from homeostat.models import Checkpoint
from homeostat.models.contract import IteratedModel
from homeostat.serving.refusal import Refusal
from homeostat.tasks import Puzzle, PuzzleTask


@dataclass(frozen=True, eq=False)
class Question:
    """One example of a request, ready to be solved."""

    inputs: Any
    """Batch first, one row, on the model's device."""
    puzzle: Puzzle | None = None


class Subject(ABC):
    """A model with the form in which its examples travel.

    Attributes:
        name: of the model.
        model: with the functions of the contract.
        source: what the model was made from, which is what a policy knows by its weights.
        judge: reads answers, for policies that look at them; None takes the source's own functions.
    """

    name: str
    model: IteratedModel
    source: Any
    judge: Any

    @abstractmethod
    def read(self, entry: Any, where: str, most: int) -> Question:
        """One entry of a request, `where` it stands in it, as an example of at most `most` numbers.

        Raises:
            Refusal: it is not an example of this model, or too large.
        """

    @abstractmethod
    def write(self, question: Question, outputs: Any) -> dict[str, Any]:
        """The answer as strict JSON has it; `outputs` are those of one row."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a client must know to ask."""


class PuzzleSubject(Subject):
    """A checkpoint of a task whose puzzles have a text form.

    Example:
        >>> from homeostat.models import load
        >>> from homeostat.tasks import get_task
        >>> subject = PuzzleSubject(load("mazes"), get_task("mazes"))
        >>> subject.read("####", "inputs[0]", 100)
        Traceback (most recent call last):
        homeostat.serving.refusal.Refusal: inputs[0]: the maze at line 1 has no start; put one S into it
    """

    def __init__(self, checkpoint: Checkpoint, task: PuzzleTask) -> None:
        self.name, self.model, self._task = checkpoint.config.name, checkpoint.model, task
        self.source, self.judge = checkpoint.model, task
        self._device = next(checkpoint.model.parameters()).device

    def read(self, entry: Any, where: str, most: int) -> Question:
        """See `Subject.read`."""
        if not isinstance(entry, str):
            raise Refusal("refused", f"{where} must be a puzzle as text, not {kind(entry)}")
        if len(entry) > 4 * most + 1024:  # a cell is one character, with spaces and comments around it
            raise Refusal("too large", f"{where} has {len(entry):,} characters; at most {most:,} cells are taken")
        try:
            # A lone surrogate is no text: parse says so, and names the byte.
            puzzles = self._task.parse(entry.encode("utf-8", "surrogatepass"), name=where)
        except InputError as error:
            raise Refusal("refused", str(error)) from None
        if len(puzzles) != 1:
            raise Refusal("refused", f"{where} holds {len(puzzles)} puzzles; give each an entry of its own")
        (puzzle,) = puzzles
        check_elements(puzzle.inputs.numel(), where, most)
        return Question(puzzle.inputs[None].to(self._device), puzzle)

    def write(self, question: Question, outputs: Tensor) -> dict[str, Any]:
        """See `Subject.write`: the answer as text, and whether it is right, found without the model."""
        assert question.puzzle is not None
        inputs = question.puzzle.inputs
        answer = self._task.answers(outputs)[0].cpu()
        return {
            "answer": self._task.text(inputs, answer).rstrip("\n"),
            "right": self._task.solves(inputs, answer),
        }

    def describe(self) -> dict[str, Any]:
        """See `Subject.describe`."""
        return {"task": self._task.name, "inputs": f"each a puzzle of {self._task.name} as text"}


def check_elements(count: int, where: str, most: int) -> None:
    """Refuse an example of more than `most` numbers."""
    if count > most:
        raise Refusal("too large", f"{where} has {count:,} numbers; at most {most:,} are taken")


def kind(value: Any) -> str:
    """A JSON value in words.

    Example:
        >>> kind([1, 2]), kind(None), kind(True)
        ('a list', 'null', 'true')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}
    return names[type(value)]


def plain(tensor: Tensor) -> Any:
    """A tensor as nested lists; what is not finite is null, since JSON has no such numbers.

    Example:
        >>> plain(torch.tensor([1.0, float("nan")]))
        [1.0, None]
    """
    values = tensor.detach().cpu()
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        return _nulled(values.tolist())
    return values.tolist()


def _nulled(values: Any) -> Any:
    if isinstance(values, list):
        return [_nulled(value) for value in values]
    return values if math.isfinite(values) else None
