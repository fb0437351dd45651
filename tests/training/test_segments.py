"""Segment training: what a pool replaces, swaps and carries, and that a kill changes nothing."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from pydantic import ValidationError

import homeostat.training.step as step_module
from homeostat.models import RecallConfig, load
from homeostat.models.checkpoint import TaskReference
from homeostat.models.starts import Mixed
from homeostat.tasks import Mazes, PrefixSums
from homeostat.training import PathPenalty, ProgressiveDepth, RandomDepth, Recipe, Segments, train
from homeostat.training.pool import Pools
from homeostat.training.visit import Stream, Visit

RECIPE = Recipe(
    name="tiny",
    task=TaskReference(name="prefix-sums"),
    model=RecallConfig.of(PrefixSums(), width=4),
    start=Mixed(),
    depth=RandomDepth(free=(0, 2), graphed=(1, 3)),
    steps=12,
    batch=8,
    sizes=(6, 8),
    path_noise=0.05,
    ema=0.5,
    segments=Segments(fresh=0.3, swap=0.3),
)


class _Interrupted(Exception):
    pass


def interrupt_at(step: int) -> Any:
    def on_step(event: Any) -> None:
        if event.step == step:
            raise _Interrupted

    return on_step


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train(RECIPE, folder)
    return folder


@pytest.mark.parametrize("step", [5, 10])
def test_an_interrupted_run_ends_with_the_same_weights_and_losses(finished: Path, tmp_path: Path, step: int) -> None:
    with pytest.raises(_Interrupted):
        train(RECIPE, tmp_path, checkpoint_every=3, on_step=interrupt_at(step))
    train(RECIPE, tmp_path, checkpoint_every=4)
    for name in ("model.safetensors", "losses.csv"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    for key in ("row_evaluations", "oldest_state", "final_loss"):
        assert load(tmp_path).config.training[key] == load(finished).config.training[key]


class _Ranks:
    """Processes of one training as threads: what `Pools` asks of Fabric, with the exchange between them."""

    def __init__(self, count: int) -> None:
        self.barrier, self.slots = threading.Barrier(count), [torch.zeros(0)] * count

    def fabric(self, rank: int) -> Any:
        def all_gather(value: torch.Tensor) -> torch.Tensor:
            self.slots[rank] = value
            self.barrier.wait()
            found = torch.stack(self.slots)
            self.barrier.wait()
            return found

        size, device = len(self.slots), torch.device("cpu")
        return SimpleNamespace(global_rank=rank, world_size=size, device=device, all_gather=all_gather)


def follow(fabric: Any, stop_at: int | None = None, given: dict[str, torch.Tensor] | None = None) -> Any:
    """A training without a model: a row's state is its instance, plus what it had before. From a saved state on."""
    pool = Pools(Segments(fresh=0.3, swap=0.3), PrefixSums(), batch=12, seed=3, fabric=fabric)
    pool.restore(given or {})
    seen = []
    for step in range(0 if given is None else 5, stop_at or 9):
        now = visit(step)
        inputs, _ = pool.enter(12, now)
        assert now.carried is not None
        state = now.carried.state[0] if now.carried.state else torch.zeros(len(inputs), 1, 12)
        state = state.clone()
        state[now.carried.new] = 0
        state = 0.5 * state + inputs
        pool.leave(12, [state], 2)
        seen.append((state, list(now.indices)))
    return seen, pool.tensors()


def test_the_pools_of_two_processes_are_parts_of_one_and_either_goes_on_from_the_other() -> None:
    ranks = _Ranks(2)
    with ThreadPoolExecutor(2) as threads:
        halves = list(threads.map(lambda rank: follow(ranks.fabric(rank)), range(2)))
        saved = list(threads.map(lambda rank: follow(ranks.fabric(rank), stop_at=5)[1], range(2)))
    whole, tensors = follow(Fabric(accelerator="cpu", devices=1))
    for (state, numbers), *parts in zip(whole, halves[0][0], halves[1][0], strict=True):
        assert torch.equal(torch.cat([part[0] for part in parts]), state)
        assert parts[0][1] + parts[1][1] == numbers
    again, after = follow(Fabric(accelerator="cpu", devices=1), given=saved[0])
    assert torch.equal(again[-1][0], whole[-1][0])
    for found in (after, halves[0][1], halves[1][1]):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(value, tensors[name]) for name, value in found.items())


def pools(segments: Segments, batch: int = 400) -> Pools:
    return Pools(segments, PrefixSums(), batch=batch, seed=3, fabric=Fabric(accelerator="cpu", devices=1))


def visit(step: int) -> Visit:
    return Visit(3, step, 0.0, 0, 1)


def numbered(rows: int) -> list[torch.Tensor]:
    """States that say which row they come from."""
    return [torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, 2).clone()]


def test_a_pool_replaces_its_share_and_keeps_the_rest() -> None:
    pool, now = pools(Segments(fresh=0.25)), visit(0)
    inputs, targets = pool.enter(12, now)
    assert now.carried is not None
    assert now.carried.new.tolist() == list(range(400)), "at first every row begins"
    assert list(now.indices) == list(range(400))
    pool.leave(12, numbered(400), 5)
    before, now = inputs.clone(), visit(1)
    inputs, targets = pool.enter(12, now)
    assert now.carried is not None
    new = now.carried.new
    assert abs(len(new) - 100) < 5 * (400 * 0.25 * 0.75) ** 0.5
    kept = torch.ones(400, dtype=torch.bool)
    kept[new] = False
    assert torch.equal(inputs[kept], before[kept])
    assert [now.indices[row] for row in new.tolist()] == list(range(400, 400 + len(new)))
    assert torch.equal(now.carried.state[0], numbered(400)[0]), "nothing is swapped"
    # A row always has the targets of its own inputs, and instances come in the order of their numbers.
    assert torch.equal((inputs[:, 0] > 0).long().cumsum(1) % 2, targets)
    first = PrefixSums().sample(12, 512, split="train", seed=Stream.DATA.seed(3, 12, 0)).inputs
    assert torch.equal(inputs, first[torch.tensor(now.indices)])


def test_numbers_run_on_over_the_end_of_a_block() -> None:
    pool, seen = pools(Segments(fresh=1.0), batch=300), []
    for step in range(4):
        inputs, _ = pool.enter(12, visit(step))
        pool.leave(12, numbered(300), 1)
        seen.append(inputs)
    blocks = [
        PrefixSums().sample(12, 512, split="train", seed=Stream.DATA.seed(3, 12, block)).inputs for block in range(3)
    ]
    assert torch.equal(torch.cat(seen), torch.cat(blocks)[:1200])


def test_swapped_rows_get_the_state_of_the_row_before_them_and_no_new_row_is_swapped() -> None:
    pool = pools(Segments(fresh=0.5, swap=0.2))
    pool.enter(12, visit(0))
    pool.leave(12, numbered(400), 5)
    now = visit(1)
    pool.enter(12, now)
    assert now.carried is not None
    state = now.carried.state[0][:, 0]
    moved = state != torch.arange(400)
    assert torch.equal(state[moved], (torch.arange(400)[moved] - 1) % 400)
    assert not moved[now.carried.new].any()
    assert abs(int(moved.sum()) - 40) < 5 * 40**0.5


def test_ages_count_the_steps_since_a_start() -> None:
    pool = pools(Segments(fresh=0.01), batch=3)
    for step in range(3):
        pool.enter(12, visit(step))
        pool.leave(12, numbered(3), 7)
    assert pool.oldest() == 21
    assert pools(Segments(fresh=0.01), batch=3).oldest() == 0


def test_only_new_rows_begin_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts, ends = [], []
    solve = step_module.solve

    def spy(function: Any, state: Any, context: Any, **options: Any) -> Any:
        starts.append(state.detach().clone())
        solution = solve(function, state, context, **options)
        ends.append(solution.state.detach().clone())
        return solution

    monkeypatch.setattr(step_module, "solve", spy)
    recipe = RECIPE.changed(
        sizes=(8,), path_noise=0, segments=Segments(fresh=0.4), batch=16, steps=6, start={"kind": "zeros"}
    )
    train(recipe, tmp_path)
    begins = 0
    for before, after in zip(ends, starts[1:], strict=False):
        begun = (after == 0).flatten(1).all(1)
        assert torch.equal(after[~begun], before[~begun])
        begins += int(begun.sum())
    assert 16 < begins < 48  # 32 expected of 80
    assert (starts[0] == 0).all()


def test_the_horizon_is_an_expected_lifetime() -> None:
    assert RECIPE.horizon == 10  # 3 steps a draw, 1 / 0.3 draws
    assert RECIPE.changed(segments=Segments(fresh=1)).horizon == 5  # no less than a draw can take
    assert RECIPE.changed(segments=None).horizon == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient": "implicit", "path_noise": 0}, "segments need gradient 'unrolled'"),
        ({"gradient": {"kind": "phantom"}, "path_noise": 0}, "segments need gradient 'unrolled'"),
        ({"gradient": "implicit", "segments": None}, "path_noise needs gradient 'unrolled'"),
        ({"depth": ProgressiveDepth(steps=5)}, "segments need a depth of one run"),
        ({"path_penalty": PathPenalty(weight=1)}, "segments cannot have a path_penalty"),
        ({"segments": {"fresh": 0}}, "greater than 0"),
        ({"segments": {"fresh": 0.5, "swap": 1}}, "less than 1"),
        ({"segments": {"fresh": 0.5, "swop": 0.1}}, "Extra inputs"),
    ],
)
def test_impossible_combinations_are_refused_when_the_recipe_is_made(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        RECIPE.changed(**change)
    assert "\n" not in caught.value.errors()[0]["msg"]


def test_the_loss_of_a_maze_pool_falls(tmp_path: Path) -> None:
    recipe = Recipe(
        task=TaskReference(name="mazes"),
        model=RecallConfig.of(Mazes(), width=8),
        start=Mixed(),
        depth=RandomDepth(free=(0, 0), graphed=(3, 6)),
        optimiser={"learning_rate": 5e-3},  # type: ignore[arg-type]
        steps=30,
        batch=16,
        sizes=(2,),
        segments=Segments(fresh=0.125, swap=0.03),
    )
    losses: list[float] = []
    train(recipe, tmp_path, on_step=lambda event: losses.append(event.loss))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    assert load(tmp_path).config.trained_steps == 36
