"""The study of "Test like you train in implicit deep learning" (Ramzi, Ablin, Peyré, Moreau, arXiv 2305.15042)."""

import dataclasses

from homeostat.studies.study import Study
from homeostat.studies.test_like_you_train.images_section import section_4
from homeostat.studies.test_like_you_train.overparametrisation_section import section_3
from homeostat.studies.test_like_you_train.presets import get_preset
from homeostat.studies.test_like_you_train.sinusoid_section import section_2
from homeostat.studies.test_like_you_train.text_section import section_5
from homeostat.studies.test_like_you_train.theory_section import section_1


def like_training(preset: str = "smoke", *, seeds: int | None = None) -> Study:
    """The study at the scale of a preset.

    Args:
        preset: `"smoke"`, `"cpu"` or `"full"`.
        seeds: nets of each kind, in every section; the preset's own numbers when None.

    Raises:
        InputError: an unknown preset.

    Example:
        >>> like_training("cpu").parts
        ('theory', 'sinusoids', 'overparametrisation', 'images', 'text')
    """
    chosen = get_preset(preset)
    if seeds is not None:
        names = ("sinusoid_seeds", "sweep_seeds", "image_seeds", "text_seeds")
        chosen = dataclasses.replace(chosen, **dict.fromkeys(names, seeds))
    makers = (section_1, section_2, section_3, section_4, section_5)
    return Study(
        name="test-like-you-train",
        title="Test like you train",
        lead="Can a net that was trained with a fixed number of steps gain from more of them, on the data of its "
        "training and on new data?",
        preset=chosen.name,
        sections=tuple(make(chosen) for make in makers),
    )


__all__ = ["like_training"]
