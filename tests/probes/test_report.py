"""The report is one file, whole and safe, and says what the audit says, also when that is little."""

import dataclasses
import json
import math
import re
from html import unescape

import pytest
from plotly.offline import get_plotlyjs
from report_fixture import two_models, unjudged

from homeostat.errors import InputError
from homeostat.probes.report import render_report
from homeostat.probes.report import words as written
from homeostat.probes.results import Audit, Clip, Estimate, Settings, Verdict

HOSTILE = """</script><script>alert(1)</script><img src="http://x.test/a.png">"'&{{ 7 * 7 }}"""


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(two_models(), title="Prefix sums")


def own_part(page: str) -> str:
    """The page without the plotting library, whose source names addresses that it does not load here."""
    return page.replace(get_plotlyjs(), "")


def embedded(page: str) -> dict:
    def refuse(token: str) -> None:
        raise AssertionError(f"not JSON: {token}")

    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1], parse_constant=refuse)


def test_page_loads_nothing(page: str) -> None:
    own = own_part(page)
    assert get_plotlyjs() in page
    assert not re.search(r"<(link|img|iframe|object|embed|base)\b", own)
    assert not re.search(r"""\b(src|srcset|action)\s*=|url\(|@import|https?://|fetch\(|XMLHttpRequest""", own)
    assert set(re.findall(r'href="(.)', own)) == {"#"}
    assert "default-src 'none'" in own


def test_links_lead_to_sections(page: str) -> None:
    own = own_part(page)
    for target in re.findall(r'href="#([^"]+)"', own):
        assert f'id="{target}"' in own


def test_page_is_modest(page: str) -> None:
    assert len(own_part(page)) < 500_000
    # Two hundred more examples a difficulty must not show in the size.
    assert len(render_report(two_models(count=256), title="t")) - len(page) < 20_000


def test_verdict_and_findings_stand_in_the_page(page: str) -> None:
    text = unescape(own_part(page))
    for audit in two_models():
        assert audit.verdict.decision in text
        assert audit.verdict.text in text
        assert audit.description in text
        assert all(finding.text in text for finding in audit.verdict.findings)
    assert "31,474" in text
    assert "torch 2.13.0" in text


def test_every_figure_stands_in_the_page_with_its_interval(page: str) -> None:
    text = unescape(own_part(page))
    for audit in two_models():
        for difficulty in audit.difficulties:
            for budget in difficulty.budgets:
                cells = (budget.exact, budget.symbol, budget.settled)
                assert all(f"<td>{written.interval(cell)}</td>" in text for cell in cells)
                for value in (budget.loss, budget.residual_median, budget.residual_high):
                    assert f"<td>{written.number(value)}</td>" in text
            for alignment in difficulty.alignments:
                assert written.cosine(alignment.cosine) in text
                assert written.cosine(alignment.null) in text
            for name, count in difficulty.limits.items():
                assert f"{name} {count}" in text


def test_embedded_data_draw_every_budget(page: str) -> None:
    data = embedded(page)
    for audit, model in zip(two_models(), data["models"], strict=True):
        assert model["trained"] == audit.trained_steps
        for difficulty, curve in zip(audit.difficulties, model["curves"], strict=True):
            assert data["difficulties"][curve["difficulty"]]["name"] == difficulty.name
            assert curve["cone"] == difficulty.light_cone
            assert [point["steps"] for point in curve["exact"]] == [budget.steps for budget in difficulty.budgets]
            for point, budget in zip(curve["exact"], difficulty.budgets, strict=True):
                assert budget.exact is not None
                assert point["value"] == pytest.approx(budget.exact.value, abs=1e-5)
                assert point["low"] <= point["value"] <= point["high"]
            assert len(curve["alignments"]) == len(difficulty.alignments)


def test_clips_come_back_cell_by_cell(page: str) -> None:
    digits = "0123456789"
    clips = [clip for audit in two_models() for clip in audit.clips]
    for clip, entry in zip(clips, embedded(page)["clips"], strict=True):
        for frame, picture in zip(clip.frames, entry["order"], strict=True):
            cells = [digits.index(character) for character in entry["pictures"][picture]]
            assert cells == [code for row in frame for code in row]
            assert entry["columns"] == len(frame[0])


def test_failed_examples_are_given_by_number(page: str) -> None:
    text = unescape(own_part(page))
    assert "3 of 64 failed (not finite): #0 at step 700, #1 at step 740, #2 at step 780." in text


def test_names_from_the_user_stay_text() -> None:
    good = two_models()[0]
    difficulty = dataclasses.replace(good.difficulties[0], name=HOSTILE, notes=(HOSTILE,))
    clip = dataclasses.replace(good.clips[1], title=HOSTILE, labels=(HOSTILE,) * 3, colours=(HOSTILE,) * 3)
    verdict = dataclasses.replace(good.verdict, text=HOSTILE)
    hostile = dataclasses.replace(
        good, model=HOSTILE, description=HOSTILE, difficulties=(difficulty,), clips=(clip,), verdict=verdict
    )
    page = render_report([hostile], title=HOSTILE)
    own = own_part(page)
    assert "<script>alert" not in own
    assert "<img" not in own
    assert "{{ 7 * 7 }}" in own
    assert len(re.findall(r"</script>", own)) == 5
    assert embedded(page)["models"][0]["name"] == HOSTILE


def test_what_is_missing_is_said_in_words() -> None:
    page = render_report([unjudged()], title="bare")
    text = unescape(own_part(page))
    data = embedded(page)
    curve = data["models"][0]["curves"][0]
    assert curve["exact"] == curve["symbol"] == curve["alignments"] == data["clips"] == []
    assert [point["median"] for point in curve["residual"]] == [None, None]
    for sentence in (
        "answers were not judged, so there is no accuracy.",
        "the model does not state its light-cone bound.",
        "alignment was not measured.",
        "a single example",
        "the median residual is not finite after 1, 10 steps",
        "every example failed at every budget.",
        "swapped starts need two examples.",
        "No example was recorded",
        "does not state the number of steps it was trained with",
    ):
        assert sentence in text
    assert "Right or wrong is not judged." in text
    assert "infinite" in text
    assert "not a number" in text


def test_cost_stands_beside_steps_when_a_step_is_not_the_unit() -> None:
    text = unescape(own_part(render_report([unjudged()], title="bare")))
    assert "10 steps (cost 25)" in text
    assert "2.5 units" in text
    assert 'data-value="cost"' in text
    assert 'data-value="cost"' not in render_report(two_models(count=8, sizes=(32,)), title="t")


def test_the_same_shortage_at_every_difficulty_is_said_once() -> None:
    good = two_models(count=8)[0]
    bare = tuple(dataclasses.replace(difficulty, light_cone=None) for difficulty in good.difficulties)
    text = unescape(own_part(render_report([dataclasses.replace(good, difficulties=bare)], title="t")))
    assert text.count("the model does not state its light-cone bound.") == 1
    assert "Every difficulty: the model does not state" in text


def test_empty_audit_and_empty_clip_are_shown() -> None:
    settings = Settings((), 1e-3, 0, 1.0, "float32", "cpu", {}, 0.0)
    clip = Clip("no frame", (), (), (), (), (), (), "none", None)
    bare = Audit("bare", "", None, 1.0, None, settings, (), Verdict("not decided", "Nothing.", ()), (clip,))
    page = render_report([bare], title="empty")
    assert "No difficulty was audited." in page
    assert embedded(page)["steps"] is None


def test_difficulty_without_budgets_or_examples_is_shown() -> None:
    good = two_models(count=8, sizes=(32,))[0]
    hollow = dataclasses.replace(
        good.difficulties[0], budgets=(), examples=(), limits={}, settled_correct=((0, 0), (0, 0)), alignments=()
    )
    text = render_report([dataclasses.replace(good, difficulties=(hollow,))], title="t")
    assert "no budget was run" in text
    assert "no example was followed" in text


def test_no_audit_is_an_error() -> None:
    with pytest.raises(InputError, match="at least one audit"):
        render_report([], title="t")


def test_rounding_never_claims_all_or_none() -> None:
    assert written.interval(Estimate(0.9999, 0.999, 0.99999, 10_000)) == ">99.9 % [99.9, >99.9] n=10000"
    assert written.percent(0.0001) == "<0.1 %"
    assert written.interval(Estimate(math.nan, math.nan, math.nan, 0)) == "unknown, n=0"
