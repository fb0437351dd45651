"""The benchmark's own instruments: clocks, memory, counts and verdicts."""

from dataclasses import replace

import pytest
import torch
from benchmarks.cells import CELLS, CHAOTIC, SLOW_CELLS, Counter, bare_loop, mlp
from benchmarks.memory import peak_bytes
from benchmarks.report import markdown, measured, table
from benchmarks.results import Figure, Target, describe_machine, load, save
from benchmarks.timing import Spread, interleaved


def test_the_peak_counts_what_was_alive_together() -> None:
    def run() -> torch.Tensor:
        first = torch.empty(1000)  # 4,000 bytes
        second = torch.empty(2000)  # 12,000
        del first  # 8,000
        third = torch.empty(500)  # 10,000
        del second
        return third

    assert peak_bytes(run) == 12_000


def test_the_peak_sees_what_an_operator_needs_inside() -> None:
    matrix = torch.randn(64, 64, dtype=torch.float64)
    assert peak_bytes(lambda: torch.linalg.eigvals(matrix)) > matrix.numel() * 8  # the copy that it works on


def test_what_was_there_before_does_not_count() -> None:
    kept = [torch.empty(10_000)]
    assert peak_bytes(lambda: (kept.clear(), torch.empty(10))[1]) == 40


def test_pairs_cancel_a_linear_drift() -> None:
    now = 0.0

    def clock(cost: float):
        def read() -> float:
            nonlocal now
            now += 1
            return cost * (1 + 0.1 * now)  # a machine that slows down all the time

        return read

    found = interleaved(clock(1.0), {"twice": clock(2.0), "thrice": clock(3.0)}, seconds=0, least=4, most=4)
    assert found["twice"].ratios == pytest.approx([2.0] * 4)
    assert found["thrice"].ratios == pytest.approx([3.0] * 4)


def test_a_spread_is_the_median_and_the_outer_tenths() -> None:
    assert Spread.of(tuple(float(n) for n in range(11))) == Spread(5.0, 1.0, 9.0)
    assert Spread.of((2.0,)) == Spread(2.0, 2.0, 2.0)


@pytest.mark.parametrize("name", ["MLP", "two-layer MLP"])
def test_chaotic_cells_stay_bounded_and_do_not_settle(name: str) -> None:
    cell = CELLS[name](CHAOTIC)
    state = bare_loop(cell, 300)
    after = cell.step(state, cell.context)
    assert torch.isfinite(state).all()
    assert ((after - state).norm(dim=1) > 0.05 * after.norm(dim=1)).all()


def test_a_slow_map_contracts_and_does_not_arrive() -> None:
    cell = SLOW_CELLS["MLP"]()
    changes = []
    for steps in (1, 100, 300):
        state = bare_loop(cell, steps)
        changes.append((cell.step(state, cell.context) - state).norm() / state.norm())
    assert changes[0] > changes[1] > changes[2] > 1e-4


def test_cells_and_their_weights_follow_from_the_seed() -> None:
    once, again, other = mlp(0.7, seed=3), mlp(0.7, seed=3), mlp(0.7, seed=4)
    assert torch.equal(once.weights["weight"], again.weights["weight"])
    assert torch.equal(once.step(once.state, once.context), again.step(again.state, again.context))
    assert not torch.equal(once.state, other.state)


def test_a_counter_counts() -> None:
    cell = mlp(0.7, batch=2, width=4)
    counted = Counter(cell.step)
    bare_loop(replace(cell, step=counted), 7)
    assert (counted.calls, counted.rows) == (7, 14)


def test_a_verdict_goes_by_the_median_and_never_by_the_better_end() -> None:
    figure = Figure("g", "n", 1.3, "x", low=1.1, high=1.4, samples=9, target=Target(1.25))
    assert figure.verdict == "not reached"
    assert replace(figure, value=1.25).verdict == "reached"
    assert replace(figure, target=Target(1.25, "at least")).verdict == "reached"
    assert replace(figure, target=None).verdict == "reported"
    assert Figure.absent("g", "n", "no compiler", target=Target(1)).verdict == "not available"


def test_results_survive_a_file_and_become_a_table(tmp_path) -> None:
    figures = [
        Figure("g", "a | b", 1.234, "x", 1.1, 1.4, 9, Target(1.25), peer="2.00", details={"ratios": [1.1, 1.4]}),
        Figure.absent("g", "missing", "no [peer]", target=Target(3)),
    ]
    machine = describe_machine("cpu")
    save(tmp_path / "cpu.json", machine, figures)
    assert load(tmp_path / "cpu.json") == (machine, figures)
    assert measured(figures[0]) == "1.23 [1.10–1.40]"
    page = markdown(machine, figures)
    assert "| a \\| b | 1.23 [1.10–1.40] | ≤ 1.25 | reached | 2.00 |" in page
    assert "1 reached, 1 not available." in page
    assert table(machine, figures).row_count == 2
