"""The studies that come with the package, by name. A new one is one line here."""

from collections.abc import Callable
from dataclasses import dataclass

from homeostat.studies.path_independence import path_independence
from homeostat.studies.reconcile import reconcile
from homeostat.studies.study import Study
from homeostat.studies.test_like_you_train import like_training


@dataclass(frozen=True)
class Entry:
    """How a study is made, and what is said of it in a line."""

    make: Callable[..., Study]
    """`(preset, *, seeds) -> Study`."""
    summary: str


STUDIES = {
    "path-independence": Entry(
        path_independence,
        'Test the claims of "Path Independent Equilibrium Models Can Better Exploit Test-Time Computation".',
    ),
    "test-like-you-train": Entry(
        like_training,
        'Test the claims of "Test like you train in implicit deep learning".',
    ),
    "reconcile": Entry(
        reconcile,
        "Where the two papers meet: does a random number of steps, or a random start, remove the penalty?",
    ),
}
