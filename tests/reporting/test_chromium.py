"""The page in a real browser: nothing is asked for, nothing is reported, nothing sticks out."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.support.accessibility import violations
from tests.support.chromium import chromium, in_chromium

from hasten.certificate.drop import Drop
from hasten.measure.intervals import Ratio
from hasten.reporting.accuracy_plots import trials
from hasten.reporting.evidence import Report
from hasten.reporting.markup import element
from hasten.reporting.page import render
from hasten.reporting.result import Outcome
from hasten.reporting.style import STYLE

pytestmark = [in_chromium, pytest.mark.seconds]
SIZES = {"phone": (360, 740), "desk": (1280, 900)}
LOOKS = [("phone", "light"), ("desk", "dark")]
"""Sizes and schemes that tests look at: colours don't depend on the size, nor places on the scheme."""
SECTIONS = (
    *("summary", "answers", "notes", "figures", "trials", "latencies", "certificate"),
    *("profile", "limit", "batches", "load", "failures", "environment", "again"),
)
LONG = "a_very_long_name_without_any_break" * 20


class Browser:
    """A headless Chromium, driven through its DevTools.

    Args:
        folder: Folder for pages.
    """

    def __init__(self, folder: Path) -> None:
        self.driver = chromium("hide-scrollbars")
        self._folder = folder

    def open(self, page: bytes, size: str, scheme: str) -> None:
        """Open a page at "phone" or "desk", "light" or "dark"."""
        width, height = SIZES[size]
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if size == "phone" else 1,
            mobile=size == "phone",
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.tell("Emulation.setEmulatedMedia", features=features)
        file = self._folder / "page.html"
        file.write_bytes(page)
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        self.driver.get(file.as_uri())

    def tell(self, command: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def ask(self, script: str) -> Any:
        return self.driver.execute_script(f"return {script.strip()}")

    def console(self) -> list[str]:
        """What the browser reported since the page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> dict[str, str]:
        """What was asked for since the page was opened, and why it was blocked: "" where it wasn't."""
        entries = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        sent = {
            e["params"]["requestId"]: e["params"]["request"]["url"]
            for e in entries
            if e["method"] == "Network.requestWillBeSent"
        }
        why = {
            e["params"]["requestId"]: e["params"].get("blockedReason", "")
            for e in entries
            if e["method"] == "Network.loadingFailed"
        }
        return {url: why.get(key, "") for key, url in sent.items()}

    def pictures(self, sections: Sequence[str]) -> list[Image.Image]:
        """Sections as they are shown, cut out of one picture of the whole page."""
        width, height, *boxes = self.ask(
            "(root => [root.scrollWidth, root.scrollHeight, "
            f"...{json.dumps(sections)}.map(name => {{"
            "  const {x, y, width, height} = document.getElementById(name).getBoundingClientRect();"
            "  return [x + scrollX, y + scrollY, x + scrollX + width, y + scrollY + height];"
            "})])(document.documentElement)"
        )
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.tell("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        whole = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
        scale = whole.width / width
        return [
            whole.crop((scale * left, scale * top, scale * right, scale * bottom))
            for left, top, right, bottom in boxes
        ]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("pages"))
    yield opened
    opened.driver.quit()


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_the_page_opens_without_a_word_and_asks_for_nothing(
    browser: Browser, page: bytes, size: str, scheme: str
) -> None:
    browser.open(page, size, scheme)
    assert browser.ask("document.querySelectorAll('section').length") == len(SECTIONS)
    browser.ask("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.console() == []
    assert browser.requests() == {browser.ask("location.href"): ""}


def test_a_script_that_got_in_would_not_run(browser: Browser, page: bytes) -> None:
    script = b"<script>document.title = 'ran'</script><img src='http://127.0.0.1:9/x.png'></body>"
    browser.open(page.replace(b"</body>", script), "desk", "light")
    assert browser.ask("document.title") == "doors.hasten: 2.35x faster, certified"
    own = browser.ask("location.href")
    assert browser.requests() == {own: "", "http://127.0.0.1:9/x.png": "csp"}
    assert len(browser.console()) == 2  # of the script and of the picture


def long_names(report: Report) -> Report:
    result = report.result
    return dataclasses.replace(
        report,
        environment={LONG: LONG},
        result=dataclasses.replace(
            result,
            bundle=Path(LONG[:200]),
            why=LONG,
            notes=(LONG,),
            rows=tuple(dataclasses.replace(row, label=LONG) for row in result.rows),
            outcomes=tuple(dataclasses.replace(o, label=LONG, said=LONG) for o in result.outcomes),
        ),
    )


@pytest.fixture(scope="module")
def pages(report: Report, page: bytes) -> dict[str, bytes]:
    return {"usual": page, "long names": render(long_names(report))}


@pytest.mark.parametrize("names", ["usual", "long names"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_sticks_out_sideways(
    browser: Browser, pages: dict[str, bytes], size: str, names: str
) -> None:
    browser.open(pages[names], size, "light")
    browser.ask("document.querySelectorAll('details').forEach(each => each.open = true)")
    width = SIZES[size][0]
    assert browser.ask("document.documentElement.scrollWidth") == width
    assert browser.ask("innerWidth") == width


@pytest.mark.parametrize("size", SIZES)
def test_letters_in_plots_are_large_enough_to_read(
    browser: Browser, page: bytes, size: str
) -> None:
    browser.open(page, size, "light")
    heights = browser.ask(
        "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)"
        ".filter(height => height > 0)"
    )
    assert len(heights) > 20
    assert min(heights) >= 9.5  # of a line, in CSS pixels


@pytest.mark.parametrize("size", SIZES)
def test_no_letters_in_plots_are_cut_off(browser: Browser, page: bytes, size: str) -> None:
    browser.open(page, size, "light")
    outside = browser.ask("""
        [...document.querySelectorAll('svg')].flatMap(svg => {
            const around = svg.getBoundingClientRect();
            return [...svg.querySelectorAll('text')].filter(text => {
                const own = text.getBoundingClientRect();
                return own.width && (own.left < around.left - 1 || own.right > around.right + 1
                    || own.top < around.top - 1 || own.bottom > around.bottom + 1);
            }).map(text => text.textContent);
        })""")
    assert outside == []


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_every_section_shows_something(
    browser: Browser, page: bytes, size: str, scheme: str
) -> None:
    browser.open(page, size, scheme)
    papers = []
    for section, picture in zip(SECTIONS, browser.pictures(SECTIONS), strict=True):
        pixels = np.asarray(picture, np.int64)
        paper = pixels[-1, -1]
        papers.append(int(paper.sum()))
        marked = np.abs(pixels - paper).sum(axis=2) > 60
        assert marked.mean() > 0.005, section
        assert marked.any(axis=1).mean() > 0.1, section
    assert {paper > 384 for paper in papers} == {scheme == "light"}


OPEN = "document.querySelectorAll('details').forEach(each => each.open = true)"


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_axe_finds_nothing(browser: Browser, page: bytes, size: str, scheme: str) -> None:
    browser.open(page, size, scheme)
    browser.ask(OPEN)
    assert violations(browser.driver) == []


def test_the_summary_has_the_shape_of_a_slide(browser: Browser, page: bytes) -> None:
    browser.open(page, "desk", "light")
    box = browser.ask("document.getElementById('summary').getBoundingClientRect()")
    assert box["width"] / box["height"] == pytest.approx(16 / 9, rel=0.01)


@pytest.mark.parametrize("names", ["usual", "long names"])
def test_paper_shows_whole_tables_and_nothing_to_click(
    browser: Browser, pages: dict[str, bytes], names: str
) -> None:
    browser.open(pages[names], "desk", "light")
    paper = {"width": 718, "height": 1000, "deviceScaleFactor": 1, "mobile": False}  # A4
    browser.tell("Emulation.setDeviceMetricsOverride", **paper)
    browser.tell("Emulation.setEmulatedMedia", media="print")
    cut = browser.ask(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.ariaLabel)"
    )
    clickable = browser.ask(
        "[...document.querySelectorAll('summary, nav')].filter(e => e.checkVisibility()).length"
    )
    browser.tell("Emulation.setEmulatedMedia", media="")
    assert cut == []
    assert clickable == 0


def test_a_phone_scrolls_no_table_of_two_columns(browser: Browser, page: bytes) -> None:
    browser.open(page, "phone", "light")
    assert browser.ask("document.querySelectorAll('table.pairs').length") >= 4
    assert (
        browser.ask(
            "[...document.querySelectorAll('.pairs')].filter(e => e.parentElement.scrollWidth > e.parentElement.clientWidth + 1).map(e => e.parentElement.ariaLabel)"
        )
        == []
    )


def test_everything_is_reached_by_keyboard_and_seen_there(browser: Browser, page: bytes) -> None:
    browser.open(page, "desk", "light")
    browser.ask(OPEN)
    wanted = browser.ask("document.querySelectorAll('a, summary, [tabindex]').length")
    told = []
    for _ in range(wanted):
        for kind in ("rawKeyDown", "keyUp"):
            browser.tell(
                "Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9
            )
        told.append(
            browser.ask(
                "(e => [e.textContent.slice(0, 20), e.getBoundingClientRect().left >= 0, "
                "getComputedStyle(e).outlineStyle])(document.activeElement)"
            )
        )
    assert told[0][0] == "Skip to the details"
    assert all(seen and outline == "solid" for _, seen, outline in told)
    assert len(told) == wanted > 30


def many(report: Report, count: int, letters: int) -> bytes:
    """A page with the chart of so many candidates, whose labels are about so long."""
    rng = np.random.default_rng(count)
    outcomes = []
    for number in range(count):
        ratio, fall = 0.2 + 0.9 * rng.random(), float(0.02 * rng.random())
        label = f"int8 ({'long ' * 9}), {'x' * letters} {number}, OpenVINO"
        interval = Ratio(ratio, 0.9 * ratio, 1.1 * ratio, 6)
        drop = Drop(fall, fall - 0.003, fall + 0.003, 800)
        outcomes.append(Outcome(label, "judged", "", interval, drop))
    result = dataclasses.replace(report.result, outcomes=tuple(outcomes))
    assert result.asked is not None
    plot = trials(result, result.asked).html("")
    return f"<!doctype html><style>{STYLE}</style>{element('main', plot)}".encode()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("count", "letters"), [(3, 4), (12, 12), (60, 60)])
def test_no_words_of_a_plot_overlap(
    browser: Browser, report: Report, size: str, count: int, letters: int
) -> None:
    browser.open(many(report, count, letters), size, "light")
    assert overlaps(browser) == []
    assert (
        len(browser.ask("[...document.querySelectorAll('svg text')].map(t => t.textContent)")) > 20
    )


def test_no_words_of_the_page_s_plots_overlap(browser: Browser, page: bytes) -> None:
    browser.open(page, "desk", "light")
    assert overlaps(browser) == []


def overlaps(browser: Browser) -> list[list[str]]:
    """The pairs of words in one plot that stand on each other."""
    found: list[list[str]] = browser.ask("""
        [...document.querySelectorAll('svg')].flatMap(svg => {
            const texts = [...svg.querySelectorAll('text')].map(t => [t, t.getBoundingClientRect()])
                .filter(([, box]) => box.width);
            return texts.flatMap(([one, a], at) => texts.slice(at + 1).filter(([, b]) =>
                Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 &&
                Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4)
                .map(([other]) => [one.textContent, other.textContent]));
        })""")
    return found
