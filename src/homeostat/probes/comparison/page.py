"""From a comparison to one self-contained HTML page."""

from importlib.resources import files
from typing import Any

from markupsafe import Markup

from homeostat.probes.comparison.result import Comparison, points_of
from homeostat.probes.figures import figure
from homeostat.probes.report.palette import MODELS_DARK, MODELS_LIGHT
from homeostat.probes.report.payload import to_json
from homeostat.probes.report.shell import fill
from homeostat.probes.results import Estimate
from homeostat.probes.saving import plain


def render_comparison(found: Comparison) -> str:
    """The page: for each difficulty accuracy by cost and the differences, then the peaks, then all figures.

    Example:
        >>> "<h1>a and b</h1>" in render_comparison(_nothing())
        True
    """
    return fill(
        _part("comparison.html.j2"),
        title=" and ".join(model.name for model in found.models),
        helpers={"figure": figure, "points_of": points_of},
        found=found,
        pairs=list(dict.fromkeys((gap.ours, gap.theirs) for gap in found.differences)),
        swatches=list(zip(MODELS_LIGHT, MODELS_DARK, strict=True)),
        more_style=Markup(_part("comparison.css")),
        charts=Markup(_part("comparison.js")),
        json=Markup(to_json(_data(found))),
    )


def _data(found: Comparison) -> dict[str, Any]:
    """What is drawn: by difficulty, a curve of each model and a curve of each pair's differences."""
    return {
        "costs": found.costs,
        "light": MODELS_LIGHT,
        "dark": MODELS_DARK,
        "models": [model.name for model in found.models],
        "difficulties": [
            {
                "curves": [
                    [
                        {"cost": point.cost, "steps": point.steps, **_ends(point.exact)}
                        for point in found.curve(model.name, name).points
                    ]
                    for model in found.models
                ],
                "peaks": [plain({"cost": found.peak(m.name, name).cost}) for m in found.models],
                "gaps": [
                    {
                        "name": f"{ours} - {theirs}",
                        "points": [
                            {"cost": gap.cost, **_ends(gap.value)}
                            for gap in found.differences
                            if (gap.ours, gap.theirs, gap.difficulty) == (ours, theirs, name)
                        ],
                    }
                    for ours, theirs in dict.fromkeys((gap.ours, gap.theirs) for gap in found.differences)
                ],
            }
            for name in found.difficulties
        ],
    }


def _ends(estimate: Estimate) -> dict[str, Any]:
    return plain({"value": estimate.value, "low": estimate.low, "high": estimate.high})


def _part(name: str) -> str:
    return files("homeostat.probes.comparison").joinpath(name).read_text(encoding="utf-8")


def _nothing() -> Comparison:
    from homeostat.probes.comparison.result import Contestant

    models = tuple(Contestant(name, None, 1.0, None) for name in "ab")
    return Comparison("evaluations", models, (), (), (), (), 0, 0, 0, "cpu")
