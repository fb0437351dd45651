"""Figures and tables as data, so that one description makes the interactive page and the static pictures."""

from dataclasses import dataclass
from typing import Literal

from homeostat.probes.results import Estimate


@dataclass(frozen=True)
class Axis:
    """One axis. `labels` makes it categorical: points then have their place in this list as coordinate."""

    title: str
    scale: Literal["linear", "log"] = "linear"
    percent: bool = False
    """Values are shares, written in per cent."""
    labels: tuple[str, ...] = ()
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Point:
    """A value with its interval, and what is said of it when it is pointed at."""

    x: float
    y: float
    y_low: float | None = None
    y_high: float | None = None
    x_low: float | None = None
    x_high: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Series:
    """Points that belong together and share a colour and a mark."""

    name: str
    points: tuple[Point, ...]
    lines: bool = False
    group: int | None = None
    """Colour by number; the place of the series when None. Series of one group share a colour and differ in marks."""
    hollow: bool = False


@dataclass(frozen=True)
class Figure:
    """A plot with a caption that says how to read it."""

    name: str
    """Of its file, unique within a study."""
    caption: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    level: float | None = None
    """A horizontal line to compare with, such as no difference."""


@dataclass(frozen=True)
class Panels:
    """Figures side by side that share a legend: the same series in each, in the same order."""

    name: str
    caption: str
    panels: tuple[Figure, ...]
    columns: int = 3

    @property
    def series(self) -> tuple[Series, ...]:
        """Those that the legend names."""
        return self.panels[0].series


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def point(x: float, estimate: Estimate, text: str = "") -> Point:
    """A point with the interval of an estimate as its bar.

    Example:
        >>> point(0, Estimate(0.5, 0.4, 0.6, 10)).y_low
        0.4
    """
    return Point(x, estimate.value, estimate.low, estimate.high, text=text)


def spread_out(place: int, number: int, of: int, width: float = 0.5) -> float:
    """A coordinate at category `place` for the `number`-th of several points that stand side by side there.

    Example:
        >>> [spread_out(2, n, 3) for n in range(3)]
        [1.75, 2.0, 2.25]
    """
    return float(place) if of == 1 else place + width * (number / (of - 1) - 0.5)


def plots_of(figure: Figure | Panels) -> tuple[Figure, ...]:
    """The plots that a figure is made of."""
    return figure.panels if isinstance(figure, Panels) else (figure,)
