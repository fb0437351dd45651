"""Answers to people's puzzles, each checked without the model."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from homeostat.engine import Status, Stop
from homeostat.errors import ContractError
from homeostat.inference.policy import Policy
from homeostat.inference.predict import Prediction, predict
from homeostat.models import Checkpoint, CheckpointConfig, load
from homeostat.tasks import Puzzle, PuzzleTask, stack

_RTOL = 1e-3
"""The residual at which an audit calls an example settled."""

_BATCH = 256


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
    confidence: float
    """Softmax probability of the least sure position where an answer is asked."""
    abstained: bool
    """Whether the policy would not give this answer; without a policy, whether it did not converge."""


def most_steps(config: CheckpointConfig, side: int) -> int:
    """Most steps of a prediction for an input whose longest side is `side` positions: twice the trained horizon at
    least, so that what training has seen can settle.
    """
    return max(2 * config.trained_steps, round(config.predict_steps * side))


def answer_puzzles(
    checkpoint: Checkpoint | str | os.PathLike[str],
    task: PuzzleTask,
    puzzles: Sequence[Puzzle],
    *,
    rtol: float = _RTOL,
    max_steps: int | None = None,
    policy: Policy | None = None,
) -> list[Answer]:
    """Answer puzzles of any shapes, in their order.

    Args:
        checkpoint: a loaded checkpoint, its folder, or the name of a shipped one.
        task: the task that the puzzles belong to.
        rtol: relative residual at which an example stops.
        max_steps: most steps; None takes what the checkpoint says for the size of each puzzle.
        policy: says when to stop, in place of these two.

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
        limit = most_steps(config, max(shape[1:])) if max_steps is None else max_steps
        for first in range(0, len(places), _BATCH):
            chunk = places[first : first + _BATCH]
            inputs = stack([puzzles[place] for place in chunk]).to(device)
            if policy is None:
                prediction = predict(model, inputs, stop=Stop(rtol=rtol, max_steps=limit), judge=task)
            else:
                prediction = predict(model, inputs, policy=policy, judge=task)
            answers = task.answers(prediction.outputs).cpu()
            for row, place in enumerate(chunk):
                found[place] = _answer(task, puzzles[place], answers[row], prediction, row)
    return [found[place] for place in range(len(puzzles))]


def _answer(task: PuzzleTask, puzzle: Puzzle, answer: Tensor, prediction: Prediction, row: int) -> Answer:
    return Answer(
        right=task.solves(puzzle.inputs, answer),
        puzzle=puzzle,
        answer=answer,
        steps=int(prediction.steps[row]),
        residual=float(prediction.residual[row]),
        status=Status(int(prediction.status[row])),
        confidence=float(prediction.confidence[row]),
        abstained=bool(prediction.abstained[row]),
    )
