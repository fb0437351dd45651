"""Answers for inputs that nobody has judged: with the steps each took, its residual and its status."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from homeostat.engine import Picard, Solution, Status, Stop, solve
from homeostat.errors import ContractError
from homeostat.models import Checkpoint, CheckpointConfig, load
from homeostat.models.contract import as_model
from homeostat.models.starts import Own
from homeostat.tasks import Puzzle, PuzzleTask, stack

_RTOL = 1e-3
"""The residual at which an audit calls an example settled."""

_BATCH = 256


@dataclass(frozen=True, repr=False)
class Prediction:
    """Outputs of one batch and how the iteration went, by example.

    Attributes:
        outputs: what the model's `decode` gives.
        steps: `(batch,)` int64.
        residual: `(batch,)`, relative residual of the last step, RMS(f(z) - z) / RMS(f(z)).
        status: `(batch,)` int8 of `Status`. Anything but CONVERGED is an answer read while the state was still moving.
    """

    outputs: Any
    steps: Tensor
    residual: Tensor
    status: Tensor

    def __repr__(self) -> str:
        return repr(Solution(None, self.steps, self.residual, self.status, int(self.steps.sum()))).replace(
            "Solution", "Prediction", 1
        )


@dataclass(frozen=True)
class Answer:
    """The answer to one puzzle."""

    puzzle: Puzzle
    answer: Tensor
    """`(*space)` int64."""
    steps: int
    residual: float
    status: Status
    right: bool
    """Whether the answer is right, checked without the model. CONVERGED alone does not say so."""


def most_steps(config: CheckpointConfig, side: int) -> int:
    """Most steps of a prediction for an input whose longest side is `side` positions: twice the trained horizon at
    least, so that what training has seen can settle.
    """
    return max(2 * config.trained_steps, round(config.predict_steps * side))


def predict(model: Any, inputs: Any, *, stop: Stop) -> Prediction:
    """Run one batch of inputs until each example stops, and decode.

    Args:
        model: anything with the functions of the contract.
        inputs: one batch, as the model's `encode` takes it.
        stop: tolerance and most steps.

    Raises:
        ContractError: a model that breaks the contract.

    Example:
        >>> import torch, homeostat as hs
        >>> heron = hs.from_functions(
        ...     encode=lambda x: x,
        ...     initial_state=lambda x: torch.ones_like(x),
        ...     step=lambda z, x: 0.5 * (z + x / z),
        ...     decode=lambda z, x: z,
        ... )
        >>> found = hs.predict(heron, torch.tensor([[4.0], [9.0]]), stop=hs.Stop(rtol=1e-5, max_steps=20))
        >>> found.outputs.T, found.steps
        (tensor([[2., 3.]]), tensor([5, 6]))
    """
    iterated = as_model(model)
    with torch.no_grad():
        context = iterated.encode(inputs)
        start = iterated.initial_state(context, Own())
        solution = solve(iterated.step, start, context, method=Picard(), stop=stop)
        outputs = iterated.decode(solution.state, context)
    return Prediction(outputs, solution.steps, solution.residual, solution.status)


def answer_puzzles(
    checkpoint: Checkpoint | str | os.PathLike[str],
    task: PuzzleTask,
    puzzles: Sequence[Puzzle],
    *,
    rtol: float = _RTOL,
    max_steps: int | None = None,
) -> list[Answer]:
    """Answer puzzles of any shapes, in their order.

    Args:
        checkpoint: a loaded checkpoint, its folder, or the name of a shipped one.
        task: the task that the puzzles belong to.
        rtol: relative residual at which an example stops.
        max_steps: most steps; None takes what the checkpoint says for the size of each puzzle.

    Example:
        >>> from homeostat.tasks import get_task
        >>> maze = b"#######\\n#S    #\\n# ### #\\n#G#   #\\n#######"
        >>> task = get_task("mazes")
        >>> answer = answer_puzzles("mazes", task, task.parse(maze, name="stdin"))[0]
        >>> print(task.text(answer.puzzle.inputs, answer.answer))
        #######
        #S    #
        #*### #
        #G#   #
        #######
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load(checkpoint)
    config, model = checkpoint.config, checkpoint.model
    if config.task.name != task.name:
        raise ContractError(f"{config.name} was trained for {config.task.name}, the puzzles are {task.name}")
    device = next(model.parameters()).device
    shapes: dict[tuple[int, ...], list[int]] = {}
    for place, puzzle in enumerate(puzzles):
        shapes.setdefault(tuple(puzzle.inputs.shape), []).append(place)
    found: dict[int, Answer] = {}
    for shape, places in shapes.items():
        limit = max_steps
        if limit is None:
            limit = most_steps(config, max(shape[1:]))
        for first in range(0, len(places), _BATCH):
            chunk = places[first : first + _BATCH]
            inputs = stack([puzzles[place] for place in chunk]).to(device)
            prediction = predict(model, inputs, stop=Stop(rtol=rtol, max_steps=limit))
            answers = task.answers(prediction.outputs).cpu()
            for row, place in enumerate(chunk):
                found[place] = Answer(
                    right=task.solves(puzzles[place].inputs, answers[row]),
                    puzzle=puzzles[place],
                    answer=answers[row],
                    steps=int(prediction.steps[row]),
                    residual=float(prediction.residual[row]),
                    status=Status(int(prediction.status[row])),
                )
    return [found[place] for place in range(len(puzzles))]
