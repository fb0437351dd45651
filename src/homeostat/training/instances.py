"""What a training sees: a fixed set of instances visited in shuffled rounds, or new ones at every step."""

import numpy as np

from homeostat.models.checkpoint import TaskReference
from homeostat.tasks import Batch, Task, get_task
from homeostat.training.recipe import Recipe
from homeostat.training.visit import Stream


def training_task(recipe: Recipe) -> Task:
    """The task with its options in training."""
    reference: TaskReference = recipe.task
    return get_task(reference.name, **{**reference.options, **recipe.train_options})


def training_instances(recipe: Recipe, *, seed: int, size: int | None = None, count: int | None = None) -> Batch:
    """Instances that a training with this recipe and seed trains on.

    With `recipe.instances` these are all there are. Without, every step draws new ones, and these are as many others of
    the same kind, which are training data in the sense that the net was trained on their distribution.

    Args:
        seed: of the training.
        size: of the instances; the largest of the recipe when None.
        count: the first so many; all when None, or 128 where there is no fixed number.

    Raises:
        InputError: a size that the task does not have.

    Example:
        >>> from homeostat.training import get_recipe
        >>> recipe = get_recipe("fixed").changed(instances=130)
        >>> training_instances(recipe, seed=0)
        Batch(130 instances, inputs (130, 1, 32), targets (130, 32))
    """
    size = max(recipe.sizes) if size is None else size
    there = recipe.instances
    wanted = (there or 128) if count is None else count if there is None else min(count, there)
    return training_task(recipe).sample(size, wanted, split="train", seed=Stream.INSTANCES.seed(seed, size))


def visited(instances: int, batch: int, step: int, seed: int) -> np.ndarray:
    """`(batch,)` which instances training step `step` takes: round after round, each in an order of its own.

    Example:
        >>> rounds = np.concatenate([visited(6, 4, step, seed=0) for step in range(3)])
        >>> sorted(rounds[:6].tolist()), sorted(rounds[6:].tolist())
        ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    """
    places = np.arange(step * batch, (step + 1) * batch)
    found = np.empty(batch, dtype=np.int64)
    for number in np.unique(places // instances):
        order = np.random.default_rng(Stream.INSTANCES.seed(seed, 0, int(number))).permutation(instances)
        mine = places // instances == number
        found[mine] = order[places[mine] % instances]
    return found
