"""Several starts: which run's answer is taken, against what each rule says by hand."""

import pytest
import torch

import homeostat as hs
from homeostat.errors import InputError
from homeostat.inference.stopped import Stopped
from homeostat.models import Own


def runs(answers: list[list[int]], residual: list[list[float]], failed: list[list[bool]]) -> Stopped:
    """`(starts, rows)` tables as one table, run after run."""
    flat = torch.tensor(answers).reshape(-1, 1)
    status = torch.where(torch.tensor(failed).reshape(-1), int(hs.Status.DIVERGED), 0).to(torch.int8)
    none = torch.full((len(flat),), float("nan"))
    steps = torch.ones(len(flat), dtype=torch.int64)
    sure = torch.linspace(0.5, 0.9, len(flat))
    return Stopped(flat, flat, steps, steps, torch.tensor(residual).reshape(-1), status, sure, none, status > 9)


ANSWERS = [[1, 1, 4], [2, 3, 5], [2, 1, 6]]
RESIDUAL = [[0.1, 0.3, 0.2], [0.2, 0.1, 0.3], [0.05, 0.2, 0.1]]
FINE = [[False] * 3] * 3


def test_majority_takes_the_lowest_residual_of_the_largest_party() -> None:
    chosen, agreement = hs.Breadth(3, "majority").choose_runs(runs(ANSWERS, RESIDUAL, FINE), None)
    assert chosen.tolist() == [2, 2, 2]  # 2 twice; 1 twice; all differ, so the lowest residual
    assert agreement.tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3])


def test_residual_and_confidence_take_the_best_run() -> None:
    table = runs(ANSWERS, RESIDUAL, FINE)
    assert hs.Breadth(3, "residual").choose_runs(table, None)[0].tolist() == [2, 1, 2]
    assert hs.Breadth(3, "confidence").choose_runs(table, None)[0].tolist() == [2, 2, 2]
    with pytest.raises(InputError, match="no score"):
        hs.Breadth(3, "score").choose_runs(table, None)


def test_runs_that_failed_are_not_chosen_and_have_no_vote() -> None:
    failed = [[False, False, True], [True, False, True], [True, False, True]]
    chosen, agreement = hs.Breadth(3, "majority").choose_runs(runs(ANSWERS, RESIDUAL, failed), None)
    assert chosen[0] == 0
    assert agreement.tolist() == pytest.approx([1 / 3, 2 / 3, 0])
    assert hs.Breadth(3, "residual").choose_runs(runs(ANSWERS, RESIDUAL, failed), None)[0][0] == 0


def test_places_that_are_not_asked_do_not_vote() -> None:
    flat = torch.tensor([[1, 7], [1, 8], [2, 9]])
    table = Stopped(
        flat, flat, torch.ones(3), torch.ones(3), torch.tensor([0.3, 0.2, 0.1]), torch.zeros(3), torch.ones(3),
        torch.ones(3), torch.zeros(3, dtype=torch.bool),
    )  # fmt: skip
    asked = torch.tensor([[True, False]])
    assert hs.Breadth(3).choose_runs(table, asked)[0].tolist() == [1]
    assert hs.Breadth(3).choose_runs(table, None)[0].tolist() == [2]


class TwoEnds(hs.IteratedModel):
    """Ends at 1 from above 0 and at -1 from below: its own start ends at -1, most noise starts end at 1."""

    trained_steps = 4

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs

    def initial_state(self, context: torch.Tensor, start: object) -> torch.Tensor:
        own = torch.full_like(context, -0.5)
        return own if isinstance(start, Own) else start.like(own).abs()  # type: ignore[attr-defined]

    def step(self, state: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return torch.tanh(3 * state)

    def decode(self, state: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return (state > 0).long()


def test_breadth_finds_what_depth_cannot() -> None:
    x, stop = torch.zeros(5, 1), hs.Stop(rtol=1e-4, max_steps=50)
    deep = hs.predict(TwoEnds(), x, stop=stop)
    wide = hs.predict(TwoEnds(), x, stop=stop, breadth=hs.Breadth(5))
    assert deep.outputs.flatten().tolist() == [0] * 5
    assert wide.outputs.flatten().tolist() == [1] * 5
    assert wide.agreement is not None
    assert wide.agreement.tolist() == pytest.approx([0.8] * 5)
    assert wide.row_evaluations > 3 * deep.row_evaluations
    careful = hs.Breadth(5, "agreement", least_agreement=0.9)
    assert hs.predict(TwoEnds(), x, stop=stop, breadth=careful).abstained.all()


class Drawn(TwoEnds):
    """Its own start is drawn, and so is that of every other start; the input tilts it."""

    def initial_state(self, context: torch.Tensor, start: hs.models.Start) -> torch.Tensor:
        rows = range(len(context)) if start.indices is None else start.indices
        return hs.models.Noise(scale=0.3).seeded(start.seed, rows).like(context) + context


def test_an_answer_does_not_depend_on_its_neighbours() -> None:
    x, stop = torch.linspace(-1, 1, 7)[:, None], hs.Stop(rtol=1e-4, max_steps=50)
    policy = hs.Policy(conditions=(hs.Condition("stable", 3),), max_steps=40, reads="outputs")
    for options in ({"stop": stop}, {"policy": policy}):
        for breadth in (None, hs.Breadth(3)):
            among = hs.predict(Drawn(), x, breadth=breadth, **options)
            assert len(set(among.outputs.flatten().tolist())) > 1, breadth
            for row in range(len(x)):
                alone = hs.predict(Drawn(), x[row : row + 1], breadth=breadth, **options)
                assert (alone.steps.item(), alone.outputs.item()) == (among.steps[row], among.outputs[row])


def test_a_policy_runs_on_every_start() -> None:
    policy = hs.Policy(conditions=(hs.Condition("stable", 3),), max_steps=40, reads="outputs")
    for batch_size in (64, 4):
        found = hs.predict(TwoEnds(), torch.zeros(5, 1), policy=policy, breadth=hs.Breadth(5), batch_size=batch_size)
        assert found.outputs.flatten().tolist() == [1] * 5
        assert found.steps.tolist() == [4] * 5


@pytest.mark.parametrize(
    "options",
    [{"starts": 0}, {"starts": 2, "choose": "best"}, {"starts": 2, "start": Own()}, {"starts": 2, "seed": -1}],
)
def test_nonsense_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        hs.Breadth(**options)


def test_votes_need_answers() -> None:
    model = hs.from_functions(
        encode=lambda x: x, initial_state=torch.zeros_like, step=lambda z, x: 0.5 * z + x, decode=lambda z, x: z
    )
    with pytest.raises(InputError, match="compares decoded answers"):
        hs.predict(model, torch.ones(2, 1), stop=hs.Stop(), breadth=hs.Breadth(2))
