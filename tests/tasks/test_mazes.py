"""Sampled mazes against an independent search; options, checkers and gallery codes."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from homeostat.errors import InputError
from homeostat.tasks import IGNORE, Mazes
from homeostat.tasks.maze_paths import distances, trace


def graph_of(free: np.ndarray) -> coo_array:
    number = np.arange(free.size).reshape(free.shape)
    across, along = free[:, :-1] & free[:, 1:], free[:-1] & free[1:]
    one = np.concatenate([number[:, :-1][across], number[:-1][along]])
    other = np.concatenate([number[:, 1:][across], number[1:][along]])
    return coo_array((np.ones(len(one)), (one, other)), shape=(free.size, free.size))


def shortest_paths(free: np.ndarray, start: int, goal: int) -> tuple[int, int]:
    """Moves from start to goal by Dijkstra, and how many shortest paths there are, counted outwards from the start."""
    graph = graph_of(free)
    distance = dijkstra(graph, directed=False, indices=start)
    both = (graph + graph.T).tocsr()
    ways = np.zeros(free.size, dtype=np.int64)
    ways[start] = 1
    for pixel in np.argsort(distance):
        if np.isfinite(distance[pixel]) and pixel != start:
            near = both.indices[both.indptr[pixel] : both.indptr[pixel + 1]]
            ways[pixel] = ways[near[distance[near] == distance[pixel] - 1]].sum()
    return int(distance[goal]), int(ways[goal])


def logits(answers: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(answers, 2).movedim(-1, 1).float()


def marks(targets: torch.Tensor) -> torch.Tensor:
    return (targets == 1).long()


def starts_in_dead_ends(inputs: torch.Tensor) -> np.ndarray:
    free = inputs[:, 0].numpy()
    around = np.pad(free, ((0, 0), (1, 1), (1, 1)))
    doors = around[:, :-2, 1:-1] + around[:, 2:, 1:-1] + around[:, 1:-1, :-2] + around[:, 1:-1, 2:]
    return (doors * inputs[:, 1].numpy()).sum((1, 2)) == 1


@pytest.mark.parametrize(
    "task",
    [Mazes(), Mazes(percolation=0.15), Mazes(percolation=0.15, paths="any"), Mazes(percolation=1.0, paths="any")],
    ids=repr,
)
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("size", [3, 5, 8])
def test_instances_and_their_labels(task, split, size):
    inputs, targets = task.sample(size, 25, split=split, seed=size)
    side = 2 * size + 1
    assert (inputs.shape, inputs.dtype) == ((25, 3, side, side), torch.float32)
    assert (targets.shape, targets.dtype) == ((25, side, side), torch.int64)
    many = 0
    for (free, start, goal), target in zip(inputs.numpy(), targets.numpy(), strict=True):
        assert (start.sum(), goal.sum(), (start * goal).sum()) == (1, 1, 0)
        assert free[start == 1] == free[goal == 1] == 1
        assert ((target == IGNORE) == (free == 0)).all()
        path = target == 1
        assert (path[start == 1], path[goal == 1]) == (True, True)
        moves, ways = shortest_paths(free == 1, start.argmax(), goal.argmax())
        # As many pixels as the shortest path has, connected within themselves: the label is a shortest path.
        assert path.sum() == moves + 1
        assert dijkstra(graph_of(path), directed=False, indices=start.argmax())[goal.argmax()] == moves
        assert ways == 1 or task.paths == "any"
        many += ways > 1
    if task.percolation == 1.0:
        assert many > 0


def test_starts_are_dead_ends_only_when_asked_for():
    plain = starts_in_dead_ends(Mazes().sample(7, 400, split="train", seed=0).inputs)
    # About a tenth of the rooms of a depth-first maze are dead ends; nearly all starts would be with a rooted search.
    assert 0.03 < plain.mean() < 0.3
    for percolation in (0.0, 0.2):
        task = Mazes(dead_end_start=True, percolation=percolation)
        assert starts_in_dead_ends(task.sample(7, 200, split="train", seed=0).inputs).all()


def test_dead_ends_that_do_not_exist_are_an_error():
    task = Mazes(percolation=1.0, paths="any", dead_end_start=True)
    with pytest.raises(InputError, match="no maze of 3x3 rooms with these options in the train split"):
        task.sample(3, 1, split="train", seed=0)


@pytest.mark.parametrize(("split", "goals"), [("train", 6), ("test", 40)])  # one goal in eight is for tests
def test_the_farthest_of_several_goals_makes_long_paths_in_the_same_split(split, goals):
    plain, far = (Mazes(longest_of=count).sample(7, 300, split=split, seed=0) for count in (1, goals))
    lengths = [(targets == 1).flatten(1).sum(1).float().mean() for targets in (plain.targets, far.targets)]
    # The same mazes and starts; the mean of a maximum of several lies well above the mean.
    assert torch.equal(plain.inputs[:, 1], far.inputs[:, 1])
    assert lengths[1] > 1.4 * lengths[0]
    assert (Mazes().in_test_split(far.inputs) == (split == "test")).all()


def test_percolation_opens_its_share():
    size, probability, count = 7, 0.2, 500
    free = Mazes(percolation=probability, paths="any").sample(size, count, split="train", seed=0).inputs[:, 0]
    rooms, walls = size**2, 2 * size * (size - 1)
    closed = walls - (rooms - 1)
    opened = free.flatten(1).sum(1) - rooms - (rooms - 1)
    error = (closed * probability * (1 - probability) / count) ** 0.5
    assert abs(opened.mean().item() - closed * probability) < 5 * error


def test_long_paths_are_common_in_perfect_mazes():
    lengths = (Mazes().sample(7, 300, split="train", seed=0).targets == 1).flatten(1).sum(1)
    # A straight walk between two random rooms would cover 10 pixels on average.
    assert lengths.float().mean() > 20
    assert (lengths % 2 == 1).all()
    assert len(Counter(lengths.tolist())) > 20


def test_unique_checker_compares_with_the_label_on_corridors():
    task = Mazes()
    targets = task.sample(4, 3, split="train", seed=0).targets
    answers = marks(targets)
    answers[targets == IGNORE] = 1
    wrong = (targets[1] == 0).nonzero()[0]
    answers[1, wrong[0], wrong[1]] = 1
    missed = (targets[2] == 1).nonzero()[0]
    answers[2, missed[0], missed[1]] = 0
    assert task.correct(logits(answers), targets).tolist() == [True, False, False]
    corridors = 16 + 15
    assert task.symbols(logits(answers), targets).tolist() == pytest.approx([1, 1 - 1 / corridors, 1 - 1 / corridors])


def test_any_checker_accepts_another_shortest_path():
    task = Mazes(percolation=0.5, paths="any")
    inputs, targets = task.sample(6, 200, split="train", seed=0)
    flat = inputs.flatten(2).argmax(2).numpy()
    # From goal to start instead of from start to goal, the tracer makes other choices at the forks.
    other, unique = trace(distances(inputs[:, 0].numpy() > 0, flat[:, 2]), flat[:, 1])
    answers = torch.from_numpy(other).long()
    different = (answers != marks(targets)).flatten(1).any(1)
    assert different.any()
    assert not (different.numpy() & unique).any()
    assert task.correct(logits(answers), targets).all()
    assert (task.symbols(logits(answers), targets) == 1).all()
    strict = Mazes(percolation=0.5)
    assert (strict.correct(logits(answers), targets) == ~different).all()
    assert (strict.symbols(logits(answers), targets)[different] < 1).all()

    row = int(different.nonzero()[0])
    codes = task.cells(inputs[row], answers[row], targets[row])
    assert not {3, 4} & set(np.unique(codes))
    assert {3, 4} <= set(np.unique(strict.cells(inputs[row], answers[row], targets[row])))


def test_any_checker_refuses_what_is_no_shortest_path():
    task = Mazes(percolation=0.3, paths="any")
    _, targets = task.sample(5, 50, split="train", seed=0)
    good = marks(targets)
    assert task.correct(logits(good), targets).all()
    both = (targets != IGNORE).long()
    ignoring_walls = good.clone()
    ignoring_walls[targets == IGNORE] = 1
    assert task.correct(logits(ignoring_walls), targets).all()
    one_more, one_less = good.clone(), good.clone()
    for row in range(50):
        free, path = (targets[row] == 0).nonzero()[0], (targets[row] == 1).nonzero()[0]
        one_more[row, free[0], free[1]] = 1
        one_less[row, path[0], path[1]] = 0
    for bad in (both, one_more, one_less, torch.zeros_like(good)):
        assert not task.correct(logits(bad), targets).any()


def test_loss_counts_corridors_only():
    task = Mazes()
    _, targets = task.sample(3, 4, split="train", seed=0)
    outputs = logits(marks(targets)) * 20 - 10
    outputs[:, 1][targets == IGNORE] = 99
    assert (task.loss(outputs, targets) < 1e-6).all()


def test_cells_of_a_wrong_answer():
    task = Mazes()
    puzzle = task.parse(b"#######\n#S   G#\n# #####\n#######", name="x")[0]
    target = torch.full((4, 7), IGNORE)
    target[1, 1:6], target[2, 1] = 1, 0
    answer = torch.zeros(4, 7, dtype=torch.int64)
    answer[0] = answer[1, 2] = answer[2, 1] = 1
    assert task.cells(puzzle.inputs, answer, target).tolist() == [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 5, 2, 3, 3, 6, 0],
        [0, 4, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    assert len(task.legend.labels) == len(task.legend.colours) == 7


def test_span_is_the_distance_of_opposite_corners():
    assert [Mazes().span(size) for size in (2, 7, 14)] == [2, 12, 26]


@pytest.mark.parametrize("size", [1, 0, -2, 1000])
def test_impossible_size(size):
    with pytest.raises(InputError, match=f"size {size} is impossible for mazes: 2 to 999 rooms a side"):
        Mazes().sample(size, 1, split="train", seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"percolation": 1.5}, "percolation 1.5 is not a probability: a number from 0 to 1"),
        ({"percolation": float("nan")}, "percolation nan is not a probability: a number from 0 to 1"),
        ({"percolation": "much"}, "percolation 'much' is not a probability: a number from 0 to 1"),
        ({"percolation": True}, "percolation True is not a probability: a number from 0 to 1"),
        ({"paths": "all"}, "unknown paths 'all': it is one of unique, any"),
        ({"dead_end_start": 1}, "dead_end_start 1 is neither True nor False"),
        ({"longest_of": 0}, "longest_of 0 is not a whole number from 1 to 1024"),
        ({"longest_of": True}, "longest_of True is not a whole number from 1 to 1024"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(InputError) as caught:
        Mazes(**options)
    assert str(caught.value) == message
