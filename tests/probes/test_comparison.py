"""`compare` against brute force, planted differences, and a null on which intervals must cover."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import homeostat as hs
from homeostat.errors import ContractError, InputError
from homeostat.probes import estimates
from homeostat.probes.comparison.differences import differences_at_once, paired_difference
from homeostat.probes.comparison.price import Price, common_costs, prices_in_seconds, steps_at


class Counting:
    """Counts its steps; an example is right from the step `needs[i]` on, until `loses[i]`. Inputs are its place."""

    def __init__(self, needs: np.ndarray, loses: np.ndarray | None = None, unit_cost: float = 1.0) -> None:
        self.needs = torch.as_tensor(needs)
        self.loses = torch.full_like(self.needs, 10**6) if loses is None else torch.as_tensor(loses)
        self.unit_cost, self.trained_steps = unit_cost, 4

    def encode(self, inputs: Tensor) -> Tensor:
        return inputs

    def initial_state(self, context: Tensor) -> Tensor:
        return torch.zeros(len(context), 1, dtype=torch.float64)

    def step(self, state: Tensor, context: Tensor) -> Tensor:
        return state + 1

    def decode(self, state: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return state[:, 0], context

    def correct(self, outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        steps, place = outputs
        return (steps >= self.needs[place]) & (steps < self.loses[place])


def places(count: int, parts: int = 1) -> list[tuple[Tensor, Tensor]]:
    return [(part, part) for part in torch.arange(count).chunk(parts)]


def draws(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 40, count)


def test_curves_are_what_counting_by_hand_gives() -> None:
    cheap, dear = draws(120, 0), draws(120, 1)
    models = {"cheap": Counting(cheap), "dear": Counting(dear, unit_cost=3.0)}
    found = hs.compare(models, places(120, 4), most=48.0, seed=5)
    costs = [point.cost for point in found.curve("cheap", "all examples").points]
    assert costs == [3.0, 6.0, 9.0, 12.0, 18.0, 24.0, 36.0, 48.0]
    assert [point.steps for point in found.curve("cheap", "all examples").points] == [3, 6, 9, 12, 18, 24, 36, 48]
    assert [point.steps for point in found.curve("dear", "all examples").points] == [1, 2, 3, 4, 6, 8, 12, 16]
    assert (found.calibration, found.test) == (60, 60)
    # Which examples are the test split is only known from what was found; counts of any split add up to the whole.
    other = hs.compare(models, places(120), most=48.0, seed=5)
    assert repr(other) == repr(found)  # nothing depends on how the examples were batched
    for name, needs, unit in (("cheap", cheap, 1), ("dear", dear, 3)):
        peak = found.peak(name, "all examples")
        whole = (needs <= 48 // unit).mean()
        assert (60 * peak.calibration + 60 * peak.exact.value) / 120 == pytest.approx(whole)
        assert peak.cost == next(cost for cost in costs if (needs <= cost // unit).mean() == whole or cost == 48.0)


def test_differences_are_those_of_the_two_curves() -> None:
    models = {name: Counting(draws(300, seed)) for seed, name in enumerate("abc")}
    found = hs.compare(models, {"one": places(200), "two": places(300, 3)}, most=32.0)
    assert found.difficulties == ("one", "two", "all examples")
    assert found.test == 250
    for gap in found.differences:
        ours, theirs = (
            next(p for p in found.curve(name, gap.difficulty).points if p.cost == gap.cost)
            for name in (gap.ours, gap.theirs)
        )
        assert gap.value.value == pytest.approx(ours.exact.value - theirs.exact.value)
        assert gap.value.low <= gap.value.value <= gap.value.high
        assert ours.exact == estimates.share(
            [True] * round(ours.exact.value * ours.exact.count)
            + [False] * round((1 - ours.exact.value) * ours.exact.count)
        )
    pairs = [(gap.ours, gap.theirs) for gap in found.peak_differences if gap.difficulty == "one"]
    assert pairs == [("a", "b"), ("a", "c"), ("b", "c")]
    both = found.curve("a", "all examples").points[3].exact
    parts = [found.curve("a", name).points[3].exact for name in ("one", "two")]
    assert both.value == pytest.approx(sum(part.value * part.count for part in parts) / 250)


def test_a_planted_difference_is_found_and_where_it_is() -> None:
    needs = draws(400, 0)
    models = {"ours": Counting(needs), "theirs": Counting(needs + 6)}
    found = hs.compare(models, places(400), most=64.0)
    sure = {gap.cost for gap in found.differences if gap.value.low > 0}
    assert {12.0, 16.0, 24.0} <= sure
    assert not {48.0, 64.0} & sure
    assert found.peak_differences[0].value.low < 0 < found.peak_differences[0].value.high


def test_peaks_come_from_the_calibration_split_alone() -> None:
    """Right at one random step and no other: the best budget is luck, which does not last."""
    lucky = np.random.default_rng(0).choice([1, 2, 3, 4, 6, 8, 12, 16], 60)
    models = {name: Counting(lucky, lucky + 1) for name in "ab"}
    chosen, shown = [], []
    for seed in range(20):
        peak = hs.compare(models, places(60), most=16.0, seed=seed).peak("a", "all examples")
        chosen.append(peak.calibration)
        shown.append(peak.exact.value)
    assert np.mean(chosen) > 0.18  # the largest of eight shares around 1 / 8
    assert np.mean(shown) == pytest.approx(1 / 8, abs=0.04)


def test_answers_that_come_too_late_are_lost() -> None:
    models = {"keeps": Counting(draws(80, 0)), "loses": Counting(draws(80, 0), np.full(80, 41))}
    found = hs.compare(models, places(80), most=64.0)
    assert found.peak("loses", "all examples").steps < 48
    assert found.curve("loses", "all examples").points[-1].exact.value == 0
    assert found.curve("keeps", "all examples").points[-1].exact.value == 1


def test_what_is_not_finite_is_wrong() -> None:
    class Exploding(Counting):
        def step(self, state: Tensor, context: Tensor) -> Tensor:
            after = state + 1
            return torch.where(after > 8, float("nan"), after)

    models = {"explodes": Exploding(np.ones(20, dtype=int)), "counts": Counting(np.ones(20, dtype=int))}
    found = hs.compare(models, places(20), most=16.0)
    last = found.curve("explodes", "all examples").points[-1]
    assert (last.exact.value, last.failed) == (0.0, 10)
    assert found.curve("explodes", "all examples").points[0].failed == 0


def null(examples: int, costs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two models that are equally good, on examples of different difficulty, with curves that rise by cost."""
    hard = rng.uniform(0.2, 1.2, (examples, 1)) / np.linspace(1, 3, costs)
    noise = rng.random((2, examples, 1)) * 0.5 + rng.random((2, examples, costs)) * 0.5
    return noise[0] > hard, noise[1] > hard


def test_intervals_cover_where_there_is_no_difference() -> None:
    rng, alone, together, narrow = np.random.default_rng(0), [], [], []
    for repeat in range(60):
        ours, theirs = null(120, 8, rng)
        one = paired_difference(ours[:, 3], theirs[:, 3], seed=repeat)
        alone.append(one.low <= 0 <= one.high)
        found = differences_at_once(ours, theirs, seed=repeat)
        together.append(all(x.low <= 0 <= x.high for x in found))
        narrow.append(one.high - one.low)
    # 3.5 standard errors below 95 %, and not so wide that they cover always.
    assert np.mean(alone) > 0.95 - 3.5 * np.sqrt(0.95 * 0.05 / 60)
    assert np.mean(together) > 0.95 - 3.5 * np.sqrt(0.95 * 0.05 / 60)
    assert np.mean(narrow) < 0.35


def test_few_examples_that_agree_do_not_prove_that_models_are_equal() -> None:
    found = paired_difference([True] * 20, [True] * 20)
    share = estimates.share([False] * 20)
    assert (found.value, found.high) == (0.0, pytest.approx(share.high))
    one = differences_at_once([[True]], [[False]])
    assert one[0].value == 1.0
    assert -1 <= one[0].low < one[0].high <= 1


def test_prices() -> None:
    price = Price(once=2.0, step=0.1)
    assert [price.affords(price.of(steps)) for steps in range(1, 2000)] == list(range(1, 2000))
    assert price.affords(1.0) == 0
    prices = [Price(0, 1), Price(0, 2.5)]
    costs = common_costs(prices, [100, 8], None)
    assert costs[0] == 2.5
    assert costs[-1] == 100
    assert steps_at(prices[1], costs).tolist()[:6] == [1, 2, 3, 4, 6, 8]


def test_seconds_are_measured() -> None:
    class Sleeping(Counting):
        def __init__(self, seconds: float) -> None:
            super().__init__(np.full(10, 3))
            self.seconds = seconds

        def step(self, state: Tensor, context: Tensor) -> Tensor:
            import time

            time.sleep(self.seconds)
            return state + 1

    models: dict[str, Any] = {"quick": Sleeping(0.001), "slow": Sleeping(0.004)}
    wrapped = {
        name: hs.from_functions(**{key: getattr(model, key) for key in ("encode", "initial_state", "step", "decode")})
        for name, model in models.items()
    }
    prices = prices_in_seconds(wrapped, torch.arange(10), 10)
    assert prices["slow"].step / prices["quick"].step == pytest.approx(4, rel=0.5)
    found = hs.compare(models, places(10), costs="seconds", most=10 * prices["slow"].step)
    assert found.costs == "seconds"
    quick, slow = (found.curve(name, "all examples").points[-1].steps for name in ("quick", "slow"))
    assert slow < quick


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models": {"a": Counting(np.ones(8))}}, "two or more models"),
        ({"models": [Counting(np.ones(8))] * 2}, "two or more models by name"),
        ({"examples": []}, "no examples"),
        ({"examples": {}}, "no examples"),
        ({"examples": places(1)}, "1 example, of which 0.5 cannot be set aside"),
        ({"examples": [(torch.full((4, 1), float("nan")), None)]}, "not finite"),
        ({"examples": [(torch.arange(4), None)]}, "no targets"),
        ({"costs": "flops"}, "'evaluations' or 'seconds'"),
        ({"most": 0.5}, "not every model can take one step"),
        ({"most": float("nan")}, "most must be a finite number above 0"),
        ({"most": 1e12}, "more than 10,000,000 steps"),
        ({"calibration": 1.0}, "calibration must be a share"),
        ({"seed": -1}, "seed must be"),
        ({"judge": object()}, "the judge has no correct()"),
    ],
)
def test_impossible_comparisons_are_refused(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"models": {name: Counting(np.ones(8)) for name in "ab"}, "examples": places(8)}
    given |= change
    with pytest.raises(InputError, match=None) as refused:
        hs.compare(given.pop("models"), given.pop("examples"), **given)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_cost_that_is_no_number_is_refused() -> None:
    class Priceless(hs.IteratedModel):
        unit_cost = float("nan")
        encode = initial_state = step = decode = lambda *given: None

        def correct(self, outputs: Any, targets: Any) -> None: ...

    with pytest.raises(ContractError, match="unit_cost of a must be a finite number above 0, not nan"):
        hs.compare({"a": Priceless(), "b": Priceless()}, places(8))


def test_a_comparison_survives_a_file_and_becomes_a_page(tmp_path) -> None:
    models = {"a <b>": Counting(draws(40, 0)), "c": Counting(draws(40, 1))}
    found = hs.compare(models, {"one & two": places(40)}, most=8.0)
    found.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"comparison.html", "comparison.json"}
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["format"] == 1
    assert record["peaks"][0]["exact"]["count"] == 20
    page = (tmp_path / "comparison.html").read_text()
    assert "a &lt;b&gt;" in page
    assert "<b>" not in page.split("<script")[0]
    assert "one &amp; two" in page


def test_timing_changes_no_model() -> None:
    class Normed(torch.nn.Module, hs.IteratedModel):
        trained_steps = 4

        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(3)

        def encode(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs

        def initial_state(self, context: torch.Tensor, start: hs.models.Start) -> torch.Tensor:
            return start.like(torch.zeros_like(context))

        def step(self, state: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
            return 0.5 * self.norm(state) + context

        def decode(self, state: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
            return state

        def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return (outputs > targets).all(1)

    models = {"first": Normed().train(), "second": Normed().train()}
    before = {name: {k: v.clone() for k, v in model.state_dict().items()} for name, model in models.items()}
    x = torch.rand(12, 3)
    hs.compare(models, [(x, x * 0)], judge=models["first"], costs="seconds", most=0.01)
    for name, model in models.items():
        assert model.training
        assert all(torch.equal(before[name][k], v) for k, v in model.state_dict().items())
