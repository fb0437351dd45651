"""D(N, dN) read from curves, against numbers worked out by hand."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from homeostat.studies.gaps import LOST, Gaps
from homeostat.studies.measures import Curve
from homeostat.studies.nets import Net
from homeostat.training import get_recipe


def curve(seed: int = 0, **more: Any) -> Curve:
    net = Net(recipe=get_recipe("fixed"), seed=seed)
    return Curve(**{"net": net, "count": 2, "budgets": (1, 2, 4), "data": "held-out"} | more)


def record(losses: list[list[float | None]]) -> dict[str, Any]:
    """Two examples; a list for each budget."""
    return {
        "budgets": [1, 2, 4],
        "loss": losses,
        "correct": [[False, False], [True, False], [True, True]],
        "residual": [[0.5, 0.5], [0.1, 0.3], [0.01, None]],
    }


FOUND = {0: record([[3.0, 2.0], [1.0, 1.0], [2.0, 4.0]]), 1: record([[4.0, 4.0], [2.0, 0.0], [1.0, None]])}


@pytest.fixture
def gaps() -> Gaps:
    return Gaps.of([curve(0), curve(1)], lambda job: FOUND[job.net.seed], 2)  # type: ignore[attr-defined]


def test_the_gap_is_the_paired_change_of_the_loss(gaps: Gaps) -> None:
    assert [change.tolist() for change in gaps.change(1)] == [[2.0, 1.0], [2.0, 4.0]]
    assert gaps.gap(1).value == pytest.approx(9 / 4)
    assert gaps.gap(2).value == 0
    assert gaps.loss(1).value == pytest.approx(13 / 4)


def test_a_state_that_is_not_finite_counts_as_lost(gaps: Gaps) -> None:
    assert gaps.change(4)[1].tolist() == [-1.0, LOST]
    assert gaps.residual(4) == pytest.approx(np.median([0.01, 0.01, np.inf, np.inf]))


def test_normalised_by_the_loss_of_each_net(gaps: Gaps) -> None:
    assert gaps.normalised(1) == pytest.approx([1.5, 3.0])


def test_where_the_lowest_loss_is(gaps: Gaps) -> None:
    assert gaps.best() == [2, 2]


def test_answers(gaps: Gaps) -> None:
    assert gaps.exact(2).value == 0.5
    assert [hit.tolist() for hit in gaps.hits(4)] == [[True, True], [True, True]]


def test_options_are_for_held_out_instances() -> None:
    with pytest.raises(ValidationError, match="leave options out"):
        curve(data="training", options={"side": 3})
    assert "side 3" in curve(options={"side": 3}).label
    assert curve().key != curve(options={"side": 3}).key
