"""From a study's findings to one self-contained HTML page."""

from importlib.resources import files

from markupsafe import Markup

from homeostat.probes.report.payload import to_json
from homeostat.probes.report.shell import fill
from homeostat.studies.figures import Axis, Figure, plots_of
from homeostat.studies.jobs import plain
from homeostat.studies.report.colours import DARK, LIGHT
from homeostat.studies.report.words import TONES, minutes, ours
from homeostat.studies.study import Answered, StudyReport


def render_study(report: StudyReport) -> str:
    """The page: a table of claims on top, then the sections with their figures, then how it was made.

    Example:
        >>> from homeostat.studies.study import Study
        >>> study = Study("none", "Nothing asked", "", "smoke", ())
        >>> "<h1>Nothing asked</h1>" in render_study(StudyReport(study, (), (), (), (), "unknown", "1 core"))
        True
    """
    whole = [figure for answered in report.answered if answered.content for figure in answered.content.figures]
    figures = [plot for figure in whole for plot in plots_of(figure)]
    data = {"figures": {figure.name: _drawn(figure) for figure in figures}, "light": LIGHT, "dark": DARK}
    return fill(
        _part("study.html.j2"),
        title=report.study.title,
        helpers={
            "ours": ours,
            "tone": TONES.__getitem__,
            "minutes": minutes,
            "plots_of": plots_of,
            "anchor": _anchor,
            "swatches": list(zip(LIGHT, DARK, strict=True)),
        },
        report=report,
        more_style=Markup(_part("study.css")),
        charts=Markup(_part("study.js")),
        json=Markup(to_json(data)),
    )


def _anchor(answered: Answered) -> str:
    return f"section-{answered.section.number}"


def _drawn(figure: Figure) -> dict[str, object]:
    return {
        "x": _axis(figure.x),
        "y": _axis(figure.y),
        "level": figure.level,
        "series": [
            {
                "name": series.name,
                "lines": series.lines,
                "colour": _colour(figure, place) % len(LIGHT),
                "points": [plain(point) for point in series.points],
            }
            for place, series in enumerate(figure.series)
        ],
    }


def _colour(figure: Figure, place: int) -> int:
    group = figure.series[place].group
    return place if group is None else group


def _axis(axis: Axis) -> dict[str, object]:
    return {
        "title": axis.title,
        "log": axis.scale == "log",
        "percent": axis.percent,
        "labels": list(axis.labels),
        "range": None if axis.range is None else list(axis.range),
    }


def _part(name: str) -> str:
    return files("homeostat.studies.report").joinpath(name).read_text(encoding="utf-8")
