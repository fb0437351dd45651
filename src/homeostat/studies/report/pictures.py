"""Figures as PNG, for documents that cannot run scripts."""

import io
import os
from pathlib import Path
from textwrap import fill
from typing import Any

from homeostat.errors import HomeostatError
from homeostat.files import write_bytes
from homeostat.studies.figures import Axis, Figure, Panels, plots_of
from homeostat.studies.report.colours import LIGHT, MARKS

_MOST_TICKS = 12
_APART = 1.6

_MARKS = dict(zip(MARKS, ("o", "s", "D", "^", "P", "*", "v", "h", "X"), strict=True))


def save_picture(figure: Figure | Panels, path: str | os.PathLike[str]) -> Path:
    """Draw a figure and write it as PNG, whole or not at all.

    Raises:
        HomeostatError: matplotlib is not there.
        OutputError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise HomeostatError("pictures need matplotlib: pip install 'homeostat[pictures]'") from error
    plots = plots_of(figure)
    columns = min(len(plots), figure.columns) if isinstance(figure, Panels) else 1
    rows = -(-len(plots) // columns)
    size = (7.2, 4.4) if len(plots) == 1 else (4.2 * columns, 3.5 * rows + 0.4)
    canvas = Canvas(figsize=size, dpi=110, layout="constrained")
    grid: Any = canvas.subplots(rows, columns, squeeze=False)
    for plot, axes in zip(plots, grid.flat, strict=False):
        _draw(plot, axes)
        if len(plots) > 1:
            axes.set_title(fill(plot.caption, 44), fontsize=9.5, loc="left")
    for empty in grid.flat[len(plots) :]:
        empty.set_visible(False)
    if len(plots) > 1:
        canvas.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    elif len(figure.series) > 1:
        grid.flat[0].legend(frameon=False, fontsize=8, loc="best")
    sink = io.BytesIO()
    canvas.savefig(sink, format="png", metadata={"Software": None})
    return write_bytes(path, sink.getvalue())


def _draw(figure: Figure, axes: Any) -> None:
    for place, series in enumerate(figure.series):
        points = [point for point in series.points if point.y == point.y]
        if not points:
            continue
        colour = LIGHT[(place if series.group is None else series.group) % len(LIGHT)]
        xs, ys = [point.x for point in points], [point.y for point in points]
        bars: dict[str, Any] = {}
        for name, ends in (
            ("yerr", [(p.y - _or(p.y_low, p.y), _or(p.y_high, p.y) - p.y) for p in points]),
            ("xerr", [(p.x - _or(p.x_low, p.x), _or(p.x_high, p.x) - p.x) for p in points]),
        ):
            if any(low or high for low, high in ends):
                bars[name] = [[max(0.0, low) for low, _ in ends], [max(0.0, high) for _, high in ends]]
        axes.errorbar(
            xs,
            ys,
            **bars,
            fmt=_MARKS[MARKS[place % len(MARKS)]],
            linestyle="-" if series.lines else "none",
            color=colour,
            markersize=6,
            elinewidth=1,
            markeredgecolor="white",
            markeredgewidth=0.6,
            label=series.name,
        )
    _dress(axes, "x", figure.x)
    sizes = sorted({point.x for series in figure.series for point in series.points})
    shown = _apart(sizes)
    whole = all(size == int(size) for size in sizes)
    # Lengths, sizes and budgets are read best as what they are.
    if figure.x.scale == "log" and len(shown) <= _MOST_TICKS and (whole or len(sizes) <= _MOST_TICKS):
        axes.set_xticks(shown, [f"{size:g}" for size in shown])
        axes.minorticks_off()
    _dress(axes, "y", figure.y)
    if figure.level is not None:
        axes.axhline(figure.level, color="#7d858f", linewidth=1, linestyle=(0, (5, 4)))
    axes.grid(True, axis="y", color="#eceded", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _dress(axes: Any, name: str, axis: Axis) -> None:
    getattr(axes, f"set_{name}label")(axis.title)
    if axis.labels:
        labels = [label.replace(" ", "\n").replace("-", "-\n") for label in axis.labels]
        getattr(axes, f"set_{name}ticks")(range(len(labels)), labels, fontsize=8)
        getattr(axes, f"set_{name}lim")(-0.6, len(labels) - 0.4)
    elif axis.percent:
        ticks = [0, 0.25, 0.5, 0.75, 1]
        getattr(axes, f"set_{name}ticks")(ticks, [f"{100 * tick:g} %" for tick in ticks])
        getattr(axes, f"set_{name}lim")(-0.05, 1.05)
    elif axis.scale == "log":
        getattr(axes, f"set_{name}scale")("log")
    elif axis.range is not None:
        getattr(axes, f"set_{name}lim")(*axis.range)


def _apart(places: list[float]) -> list[float]:
    """Those of some rising places on a logarithmic axis whose labels do not run into one another."""
    kept: list[float] = []
    for place in places:
        if not kept or place >= _APART * kept[-1]:
            kept.append(place)
    return kept


def _or(value: float | None, instead: float) -> float:
    return instead if value is None or value != value else value
