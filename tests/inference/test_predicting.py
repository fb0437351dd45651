"""Predictions: of a batch, and of puzzles of any shapes in their order."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import homeostat as hs
from homeostat.engine import Status
from homeostat.errors import ContractError
from homeostat.inference import answer_puzzles
from homeostat.inference.puzzles import most_steps
from homeostat.models import load
from homeostat.tasks import get_task

MAZES = b"#####\n#S G#\n#####\n\n#######\n#S    #\n# ### #\n#G#   #\n#######\n\n#####\n#G S#\n#####\n"


def test_each_example_stops_by_itself() -> None:
    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.zeros_like(x),
        step=lambda z, x: x * z + 1,
        decode=lambda z, x: z,
    )
    gains = torch.tensor([[0.0], [0.5], [0.9], [-1.0], [3.0]], dtype=torch.float64)
    found = hs.predict(model, gains, stop=hs.Stop(rtol=1e-9, max_steps=400))
    wanted = [Status.CONVERGED, Status.CONVERGED, Status.CONVERGED, Status.CYCLING, Status.DIVERGED]
    assert found.status.tolist() == wanted
    torch.testing.assert_close(found.outputs[:3], 1 / (1 - gains[:3]), rtol=1e-7, atol=0)
    assert found.steps[0] == 2
    assert found.steps[0] < found.steps[1] < found.steps[2]
    assert repr(found).startswith("Prediction")
    assert not found.outputs.requires_grad


def test_no_gradient_is_kept() -> None:
    weight = torch.ones(1, requires_grad=True)
    model = hs.from_functions(
        encode=lambda x: x * weight,
        initial_state=lambda x: torch.zeros_like(x),
        step=lambda z, x: 0.5 * z * weight + x,
        decode=lambda z, x: z,
    )
    assert not hs.predict(model, torch.ones(2, 1), stop=hs.Stop()).outputs.requires_grad


def test_puzzles_of_mixed_sizes_are_answered_in_their_order(maze_checkpoint: Path) -> None:
    task, checkpoint = get_task("mazes"), load(maze_checkpoint)
    puzzles = task.parse(MAZES, name="mazes")
    together = answer_puzzles(checkpoint, task, puzzles)
    assert [answer.puzzle.where for answer in together] == ["line 1", "line 5", "line 11"]
    for puzzle, answer in zip(puzzles, together, strict=True):
        assert answer.puzzle is puzzle
        assert answer.answer.shape == puzzle.inputs.shape[1:]
        (alone,) = answer_puzzles(maze_checkpoint, task, [puzzle])
        assert torch.equal(alone.answer, answer.answer)
        assert (alone.steps, alone.status) == (answer.steps, answer.status)
        assert alone.residual == pytest.approx(answer.residual, rel=1e-3)


def test_an_answer_is_what_running_the_model_by_hand_gives(bits_checkpoint: Path) -> None:
    task, checkpoint = get_task("prefix-sums"), load(bits_checkpoint)
    (puzzle,) = task.parse(b"110100101", name="bits")
    (answer,) = answer_puzzles(checkpoint, task, [puzzle], rtol=0, max_steps=7)
    model = checkpoint.model
    with torch.no_grad():
        context = model.encode(puzzle.inputs[None])
        before = state = torch.zeros_like(context)
        for _ in range(7):
            before, state = state, model.step(state, context)
    residual = (state - before).square().mean().sqrt() / state.square().mean().sqrt()
    assert torch.equal(answer.answer, model.decode(state, context)[0].argmax(0))
    assert (answer.steps, answer.status) == (7, Status.MAX_STEPS)
    assert answer.residual == pytest.approx(float(residual), rel=1e-5)


def test_most_steps_come_from_the_checkpoint(bits_checkpoint: Path) -> None:
    config = load(bits_checkpoint).config  # trained with 4 steps; predictions take 2 steps a bit
    assert most_steps(config, 3) == 8
    assert most_steps(config, 100) == 200


def test_a_puzzle_of_another_task_is_refused(bits_checkpoint: Path) -> None:
    task = get_task("mazes")
    with pytest.raises(ContractError, match="trained for prefix-sums, the puzzles are mazes"):
        answer_puzzles(bits_checkpoint, task, task.parse(MAZES, name="mazes"))


def test_no_puzzles_have_no_answers(bits_checkpoint: Path) -> None:
    assert answer_puzzles(bits_checkpoint, get_task("prefix-sums"), []) == []


def test_a_nest_goes_through() -> None:
    def step(state: tuple[Tensor, Tensor], context: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return 0.5 * state[0] + context["x"], 0.1 * state[1] + state[0]

    model = hs.from_functions(
        encode=lambda inputs: {"x": inputs["a"]},
        initial_state=lambda c: (torch.zeros_like(c["x"]), torch.zeros_like(c["x"])),
        step=step,
        decode=lambda state, c: {"first": state[0], "second": state[1]},
    )
    found = hs.predict(model, {"a": torch.tensor([[1.0], [3.0]])}, stop=hs.Stop(rtol=1e-6))
    torch.testing.assert_close(found.outputs["first"], torch.tensor([[2.0], [6.0]]))
