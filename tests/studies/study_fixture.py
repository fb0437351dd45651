"""A study small enough to see everything of: jobs that say when they begin, wait, or fail."""

import os
import time
import warnings
from pathlib import Path
from typing import Any

from homeostat.probes.estimates import mean
from homeostat.studies.claims import Above, Claim, decide
from homeostat.studies.figures import Axis, Figure, Series, Table, point
from homeostat.studies.jobs import Job, Place
from homeostat.studies.study import Content, Section, Study, Values

CLAIM = Claim("numbers are large", "Numbers are large", "7", "mean of the numbers", Above(1.0))


class Number(Job):
    """Finds the number that it was given."""

    number: float
    log: str = ""
    """A file that gets a line whenever the job begins."""
    until: str = ""
    """A file that it waits for."""
    fails: bool = False
    before: tuple["Number", ...] = ()

    @property
    def label(self) -> str:
        return f"number {self.number:g}"

    @property
    def needs(self) -> tuple[Job, ...]:
        return self.before

    @property
    def code(self) -> tuple[str, ...]:
        return ("homeostat.files",)

    def run(self, place: Place) -> dict[str, Any]:
        if self.log:
            with open(self.log, "a") as log:
                log.write(f"{self.number:g} {os.getpid()}\n")
        if self.fails:
            raise ValueError("it is not a number\nthat anybody knows")
        if self.number == 3:
            warnings.warn("three is odd", UserWarning, stacklevel=1)
        place.teller()(0.5, "half")
        while self.until and not Path(self.until).exists():
            time.sleep(0.02)
        return {"number": self.number, "text": "</script>"}


def make_study(jobs: list[Number], part: str = "numbers") -> Study:
    """One section that takes the mean of all numbers, and one of a part of its own that is never run here."""

    def build(values: Values) -> Content:
        numbers = [values(job)["number"] for job in jobs]
        found = mean(numbers)
        dots = Series("numbers", tuple(point(i, mean([n, n]), "<b>") for i, n in enumerate(numbers)))
        figure = Figure("numbers", "All numbers", Axis("place"), Axis("number"), (dots,), level=1.0)
        table = Table("Numbers", ("number", "|"), tuple((f"{n:g}", "a | b") for n in numbers))
        return Content((decide(CLAIM, [("all", found)], "few"),), (figure,), (table,), ("Nothing else.",))

    other = Number(number=-1)
    return Study(
        "numbers",
        "Numbers",
        "Are they large?",
        "smoke",
        (
            Section(1, part, "Numbers", "Are numbers large?", (CLAIM,), tuple(jobs), build),
            Section(2, "other", "Others", "And others?", (CLAIM,), (other,), build),
        ),
    )
