"""The implicit meta-learners of the study, and what is measured of each."""

from dataclasses import dataclass

from homeostat.models.meta import MetaConfig, MLPInner
from homeostat.studies.measures.curve import Curve
from homeostat.studies.nets import Net
from homeostat.studies.test_like_you_train.presets import Preset
from homeostat.training import FixedDepth, get_recipe

REFERENCE_WIDTH = 40
"""Of both hidden layers in the published protocol."""

_TRAINING = 30
"""Seconds on one core."""


@dataclass(frozen=True)
class Learner:
    """A meta-learner trained on so many tasks with N inner steps, and its loss over test budgets."""

    tasks: int | None
    """None is a stream of new ones."""
    horizon: int
    width: int
    seed: int
    net: Net
    training: Curve
    """On the tasks that it was trained on; of a stream, on tasks drawn like those."""
    new: Curve
    """On tasks of the test split, the same for every learner."""

    @property
    def jobs(self) -> tuple[Net | Curve, ...]:
        return (self.net, self.training, self.new)


def tasks_words(tasks: int | None) -> str:
    """The number of training tasks in words.

    Example:
        >>> tasks_words(1), tasks_words(25), tasks_words(None)
        ('1 task', '25 tasks', 'a stream')
    """
    return "a stream" if tasks is None else "1 task" if tasks == 1 else f"{tasks} tasks"


def learner(preset: Preset, *, tasks: int | None, horizon: int, seed: int, width: int = REFERENCE_WIDTH) -> Learner:
    """One learner. What differs from the published protocol is in its arguments alone."""
    reference = get_recipe("imaml")
    assert isinstance(reference.model, MetaConfig)
    # Weights as in the published protocol. Its settings are those of the recipe otherwise.
    inner = MLPInner(widths=(width, width), initialisation="lecun-normal")
    model = reference.model.model_copy(update={"inner": inner})
    size = "" if width == REFERENCE_WIDTH else f", width {width}"
    recipe = reference.changed(
        name=f"imaml of {tasks_words(tasks)}, N = {horizon}{size}",
        model=model,
        depth=FixedDepth(steps=horizon),
        instances=tasks,
        batch=reference.batch if tasks is None else min(tasks, reference.batch),
    )
    net = Net(recipe=preset.recipe(recipe), seed=seed, expected=1 if preset.shrink else _TRAINING)
    brief = 0.1 if preset.shrink else 5.0
    return Learner(
        tasks,
        horizon,
        width,
        seed,
        net,
        Curve(net=net, count=preset.sinusoid_new, budgets=preset.sinusoid_budgets, data="training", expected=brief),
        Curve(net=net, count=preset.sinusoid_new, budgets=preset.sinusoid_budgets, data="held-out", expected=brief),
    )
