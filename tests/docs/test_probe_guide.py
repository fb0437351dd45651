"""The guide to the probes runs as it stands there, and names the thresholds that the rules use."""

import inspect
import re
from pathlib import Path

from homeostat.probes import extra_steps
from homeostat.probes.extra_steps import verdict as extra
from homeostat.studies.path_independence_probe import PARTS
from homeostat.studies.probe_verdict import ALIGNED, ENOUGH

GUIDE = Path(__file__).parents[2] / "docs" / "probes.md"


def test_the_guide_to_the_probes_runs(capsys) -> None:
    names: dict[str, object] = {}
    for snippet in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(snippet, str(GUIDE), "exec"), names)
    out = capsys.readouterr().out
    assert "100 [80.6, 100] % have a norm above 1 and a radius below 1" in out
    assert "The parameters are tuned to this truncation: on training data" in out
    assert [names["table"].best_of(n).steps.value for n in (2, 8)] == [2, 8]  # type: ignore[attr-defined]


def test_the_guide_names_what_the_code_uses() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    assert f"{ALIGNED} is" in text
    assert ",".join(PARTS) in text
    assert f"fewer than {ENOUGH} examples: the intervals" in text
    assert f"fewer than {extra.ENOUGH} examples that are finite at N" in text
    defaults = {name: one.default for name, one in inspect.signature(extra_steps).parameters.items()}
    assert f"within {100 * defaults['margin']:g} % (`margin=`)" in text
    assert f"`settle_rtol` ({defaults['settle_rtol']:g})" in text
