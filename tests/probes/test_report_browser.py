"""The report in a real browser, offline: it draws, its legend switches curves, its gallery plays, it fits a phone."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_fixture import two_models, unjudged

from homeostat.probes.report import render_report

sync_api = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")
NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for path in map(shutil.which, NAMES) if path), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)} is on the PATH")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, headless=True, args=list(FLAGS))
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("report")
    both = {"two": render_report(two_models(), title="Two"), "bare": render_report([unjudged()], title="Bare")}
    for name, text in both.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in both}


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    """A function that opens a report; whatever the browser complains about fails the test at its end."""
    complaints: list[str] = []
    contexts = []

    def open_page(name: str, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True, has_touch=width < 600
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url[:5] == "http:" else None)
        page.goto(pages[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def shown(page: Any, plot: str) -> list[Any]:
    """Which traces of a plot are visible, with what they show."""
    return page.evaluate(
        "selector => document.querySelector(selector).data"
        ".map(trace => [trace.meta.difficulty, trace.meta.part, trace.visible])",
        plot,
    )


def test_every_plot_is_drawn_and_names_the_point_under_the_pointer(opened: Any) -> None:
    page = opened("two")
    plots = page.locator(".plot")
    assert plots.count() == 10
    for place in range(plots.count()):
        assert plots.nth(place).locator("svg.main-svg").count() >= 1
        assert plots.nth(place).locator("path.js-line, path.point").count() > 5
    plots.first.locator("path.point").first.hover(force=True)
    sync_api.expect(plots.first.locator(".hovertext")).to_contain_text("exact accuracy 0 % [0, 5.7] n=64")


def test_legend_switches_a_curve_and_its_band_off_and_on(opened: Any) -> None:
    page = opened("two")
    key = page.locator('#accuracy .key[data-difficulty="2"]')
    first = ".plot.accuracy"
    lines = page.locator(first).first.locator("path.js-line")
    before, drawn = shown(page, first), lines.count()
    picture = page.locator(first).first.screenshot()

    key.click()
    assert key.get_attribute("aria-pressed") == "false"
    assert {part for number, part, visible in shown(page, first) if not visible} == {"band", "line", "cone"}
    assert {number for number, _, visible in shown(page, first) if not visible} == {2}
    assert any(number == 2 and not visible for number, _, visible in shown(page, ".plot.residual"))
    assert lines.count() < drawn
    assert page.locator(first).first.screenshot() != picture

    key.click()
    assert key.get_attribute("aria-pressed") == "true"
    assert shown(page, first) == before
    assert lines.count() == drawn


def test_switch_shows_accuracy_per_symbol_and_the_other_steps(opened: Any) -> None:
    page = opened("two")
    values = "() => document.querySelector('.plot.accuracy').data[1].y.join()"
    exact = page.evaluate(values)
    page.get_by_role("button", name="Per symbol").click()
    assert page.evaluate(values) != exact
    medians = (
        "() => document.querySelectorAll('.plot.fact')[1].data.filter(t => t.meta.part === 'median').map(t => t.x[0])"
    )
    first = page.evaluate(medians)
    page.get_by_role("button", name="Last change").click()
    assert page.evaluate(medians) != first


def test_gallery_plays(opened: Any) -> None:
    page = opened("two")
    player = page.locator(".player").first
    picture = "canvas => canvas.toDataURL()"
    canvas = player.locator(".stage canvas")
    step, before = player.locator(".step").inner_text(), canvas.evaluate(picture)
    player.locator(".speed select").select_option("16")
    player.get_by_role("button", name="Play").click()
    sync_api.expect(player.locator("input")).to_have_value(re.compile(r"[3-9]|\d\d"))
    player.get_by_role("button", name="Pause").click()
    assert player.locator(".step").inner_text() != step
    assert canvas.evaluate(picture) != before

    player.focus()
    page.keyboard.press("End")
    assert player.locator(".answer").inner_text() == "answer right"
    assert page.locator(".player").nth(1).locator(".answer").inner_text() == "answer wrong"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert player.locator(".step").inner_text() == "step 4"
    assert player.locator("input").get_attribute("aria-valuetext").startswith("step 4, answer wrong, residual ")

    player.locator(".choice select").select_option(index=1)
    assert "maze" in canvas.get_attribute("aria-label")
    assert player.locator(".cells").inner_text().split() == ["free", "wall", "path"]


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("two", 390, "light"), ("bare", 390, "dark"), ("two", 1280, "dark")]
)
def test_page_never_scrolls_sideways(opened: Any, name: str, width: int, scheme: str) -> None:
    page = opened(name, width, scheme)
    for closed in page.locator("summary").all():
        closed.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_what_cannot_be_drawn_is_said(opened: Any) -> None:
    page = opened("bare")
    assert page.locator(".plot.accuracy").is_hidden()
    assert "not judged" in page.locator("#accuracy .nothing").inner_text()
    assert "No residual is finite" in page.locator("#residual .nothing").first.inner_text()
    page.get_by_role("button", name="Cost").click()
    assert page.evaluate("document.querySelector('.plot.settled').data[1].x.join()") == "2.5,25"
