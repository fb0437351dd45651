"""What every report of the package shares: the look, the theme of the plots, how figures are written, the data."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from homeostat.probes.report import words


def part(name: str) -> str:
    """The text of a part that stands beside this file, such as `"page.css"`."""
    return files("homeostat.probes.report").joinpath(name).read_text(encoding="utf-8")


def fill(template: str, *, title: str, helpers: Mapping[str, Any], **values: Any) -> str:
    """A self-contained page from a template.

    The template includes `head.html.j2` and puts `plotly` and `theme` into scripts before its own. Everything that
    comes from the user is escaped; only our own parts are Markup.

    Args:
        template: its text; it may include parts by name.
        title: heading of the page, and of its tab.
        helpers: functions that the template calls.
        values: what it shows.

    Example:
        >>> fill("<h1>{{ title }}</h1>", title="1 < 2", helpers={})
        '<h1>1 &lt; 2</h1>'
    """
    environment = Environment(
        loader=FunctionLoader(part), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        percent=words.percent,
        interval=words.interval,
        counted=words.counted,
        cosine=words.cosine,
        number=words.number,
        whole=words.whole,
    )
    environment.globals.update(helpers)
    return environment.from_string(template).render(
        title=title,
        style=Markup(part("page.css")),
        plotly=Markup(get_plotlyjs()),
        theme=Markup(part("theme.js")),
        **values,
    )
