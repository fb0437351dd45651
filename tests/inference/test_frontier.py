"""Depth against breadth, against running each pair by itself."""

import pytest
import torch
from policy_models import One

import homeostat as hs
from homeostat.errors import InputError
from homeostat.inference import breadth_frontier


class TwoEnds(hs.IteratedModel):
    """A slow pull to 1 or to -1, by the sign of the state; one noise for all examples, tilted by the input."""

    name, trained_steps = "two ends", 4

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs

    def initial_state(self, context: torch.Tensor, start: hs.models.Start) -> torch.Tensor:
        return start.like(torch.full_like(context, -0.05)) + context

    def step(self, state: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return torch.tanh(1.3 * state)

    def decode(self, state: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return torch.stack([-state, state], 1)


X = torch.linspace(-1, 1, 21)[:, None]
Y = (X > -0.7).long()


@pytest.mark.parametrize("choose", ["majority", "residual", "confidence", "agreement"])
def test_every_point_is_what_predict_gives(choose: str) -> None:
    found = breadth_frontier(
        TwoEnds(), {"a": [(X[:10], Y[:10])], "b": [(X[10:], Y[10:])]}, depths=[3, 12], starts=[1, 2, 5], judge=One(),
        breadth=hs.Breadth(1, choose),
    )  # fmt: skip
    assert [p.evaluations for p in found.points] == sorted(p.evaluations for p in found.points)
    for point in found.points:
        alone = hs.predict(
            TwoEnds(), X, stop=hs.Stop(rtol=0, atol=0, max_steps=point.depth), judge=One(),
            breadth=hs.Breadth(point.starts, choose),
        )  # fmt: skip
        assert point.exact.value == pytest.approx(One().correct(alone.outputs, Y).float().mean().item())
    best = 0.0
    for point in found.points:
        if point.leading:
            assert point.exact.value > best
            best = point.exact.value
    assert found.at(12, 5).evaluations == 60
    assert "depth against breadth" in repr(found)


def test_runs_that_fail_are_wrong() -> None:
    model = hs.from_functions(
        encode=lambda x: x, initial_state=torch.zeros_like, step=lambda z, x: z + x / 0, decode=lambda z, x: z
    )

    class Always:
        def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(outputs), dtype=torch.bool)

    found = breadth_frontier(
        model, [(X[11:], Y[11:])], depths=[2], starts=[1, 2], judge=Always(), breadth=hs.Breadth(1, "residual")
    )
    assert [p.exact.value for p in found.points] == [0, 0]


def test_nonsense_is_refused() -> None:
    with pytest.raises(InputError, match="nothing says what is right"):
        breadth_frontier(TwoEnds(), [(X, Y)], depths=[2], starts=[1])
    with pytest.raises(InputError, match="depths must be"):
        breadth_frontier(TwoEnds(), [(X, Y)], depths=[0], starts=[1], judge=One())
    with pytest.raises(InputError, match="at least one"):
        breadth_frontier(TwoEnds(), [(X, Y)], depths=[], starts=[1], judge=One())
