"""The study of path independence: "Path Independent Equilibrium Models Can Better Exploit Test-Time Computation"
(Anil et al., NeurIPS 2022, arXiv 2211.09961), claim by claim.
"""

import dataclasses

from homeostat.studies.path_independence.alignment_sections import section_1, section_2
from homeostat.studies.path_independence.gradients_section import section_4
from homeostat.studies.path_independence.mazes_section import section_8
from homeostat.studies.path_independence.presets import get_preset
from homeostat.studies.path_independence.shallow_section import section_5
from homeostat.studies.path_independence.stress_section import section_3
from homeostat.studies.path_independence.tasks_section import section_7
from homeostat.studies.path_independence.trust_section import section_6
from homeostat.studies.study import Study


def path_independence(preset: str = "smoke", *, seeds: int | None = None) -> Study:
    """The study at the scale of a preset.

    Args:
        preset: `"smoke"`, `"cpu"` or `"full"`.
        seeds: nets of each prefix-sum recipe; the preset's own number when None.

    Raises:
        InputError: an unknown preset.

    Example:
        >>> path_independence("cpu").parts
        ('prefix', 'stress', 'tasks', 'mazes')
    """
    chosen = get_preset(preset)
    if seeds is not None:
        chosen = dataclasses.replace(chosen, seeds=seeds)
    makers = (section_1, section_2, section_3, section_4, section_5, section_6, section_7, section_8)
    return Study(
        name="path-independence",
        title="Path independence",
        lead="Do nets that end in the same place from wherever they start make better use of test-time compute?",
        preset=chosen.name,
        sections=tuple(make(chosen) for make in makers),
    )


__all__ = ["path_independence"]
