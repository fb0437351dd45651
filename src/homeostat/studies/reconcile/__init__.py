"""Where the two source papers meet: does a random number of steps, or a random start, take away the penalty for other
budgets than the trained one?

"Path independent equilibrium models" tests harder inputs, with nets trained from random starts to random depths; "Test
like you train" stays in distribution, with one start and a fixed budget that does not converge. Here both are varied,
one at a time, on the same nets.
"""

import dataclasses

from homeostat.studies.reconcile.presets import get_preset
from homeostat.studies.reconcile.settings import settings
from homeostat.studies.reconcile.task_section import task_section
from homeostat.studies.reconcile.together_section import together_section
from homeostat.studies.study import Study


def reconcile(preset: str = "smoke", *, seeds: int | None = None) -> Study:
    """The study at the scale of a preset.

    Args:
        preset: `"smoke"`, `"cpu"` or `"full"`.
        seeds: nets of each kind; the preset's own number when None.

    Raises:
        InputError: an unknown preset.

    Example:
        >>> reconcile("cpu").parts
        ('prefix', 'mazes', 'sinusoids', 'together')
    """
    chosen = get_preset(preset)
    if seeds is not None:
        chosen = dataclasses.replace(chosen, seeds=seeds)
    tasks = settings()
    sections = [task_section(number, setting, chosen) for number, setting in enumerate(tasks, start=1)]
    return Study(
        name="reconcile",
        title="Where the two papers meet",
        lead="More steps at test time: one paper says they help, the other that they cannot. Does it come down to how "
        "the number of steps and the start were chosen in training?",
        preset=chosen.name,
        sections=(*sections, together_section(len(sections) + 1, tasks, chosen)),
    )


__all__ = ["reconcile"]
