"""A result on a card: in plain lines, in a box, and as HTML for a notebook."""

import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from tests.support.results import (
    CERTIFIED,
    EXACT,
    EXACT_DEFAULT,
    FASTER_EXACT,
    FPGA,
    INT8,
    NOT_COMPARED,
    NOT_ENOUGH,
    NOT_THERE,
    ON_ONE_THREAD,
    UNCERTIFIED,
    exact,
    judgement,
    result,
    row,
)

from hasten.cli.card import boxed, lines
from hasten.evaluation.benchmark import Comparison
from hasten.evaluation.seen import Recheck
from hasten.reporting.card import card
from hasten.reporting.result import Result
from hasten.reporting.summary import NO_FASTER, UNJUDGED

ALL = {
    "certified": CERTIFIED,
    "exact": FASTER_EXACT,
    "default": EXACT_DEFAULT,
    "too little data": NOT_ENOUGH,
    "uncertified": UNCERTIFIED,
    "one thread": ON_ONE_THREAD,
    "not compared": NOT_COMPARED,
    "fpga": FPGA,
    "not there": NOT_THERE,
}
EVIL = "<script>alert(1)</script>\x1b[2J"
COMPARED = Comparison(
    dataclasses.replace(row("default engine", "mine.onnx", 1.0), label=EVIL),
    row("winner", INT8, 0.42),
    2,
    EVIL,
    (EVIL,),
)


def test_a_certified_result_in_lines() -> None:
    assert lines(card(CERTIFIED)) == [
        "2.38x faster, certified",
        f"ships:     {INT8}",
        "speed:     2.38x the default engine's (95% interval 2.33 to 2.44)",
        "latency:   5 ms before, 2.1 ms after, at the median, with 2 threads",
        "certified: 95% confident that top-1 accuracy falls by at most 1 point (n=2,000: 6 lost, 0 gained), "
        "for inputs like the ones in this data",
        "size:      1.0 MB before, 1.0 MB after",
        "bundle:    my model.hasten, made in 218 s",
        "report:    hasten open 'my model.hasten'",
        "serve:     hasten serve 'my model.hasten'",
    ]


def test_what_matters_for_trust_stands_under_the_card() -> None:
    assert card(NOT_ENOUGH).notes == (
        "No inexact form, such as int8, ships: the safest one, int8 (NNCF), OpenVINO, isn't "
        "certified: not enough data: 300 samples can't show a fall of at most 1 point; about 1,100 would.",
        "Fastest uncertified: int8 (NNCF), OpenVINO is 2.38x faster (95% interval 2.33 to 2.44) than the "
        "default engine; in the search it lost 0.25 points of accuracy, and the limit is 1.",
        "For int8 (NNCF), OpenVINO give more data: about 1,100 samples that the search never sees would "
        "probably certify it, and this run had 300.",
    )
    notes = (
        "latencies are for one thread, not 2: the host was busy",
        "the time limit left 3 of 22 candidates untried",
        "images were prepared by decode, resize(size=256)",
        "the original's own accuracy is 97.0% on 600 samples of the search split",
        "the original's own accuracy is 9.0% on 600 samples of the search split; if you expected "
        "more, the labels or the preparation are wrong, and then any certificate is wrong too",
    )
    told = card(dataclasses.replace(CERTIFIED, notes=notes)).notes
    assert [note[:30] for note in told] == [
        "Latencies are for one thread, ",
        "The time limit left 3 of 22 ca",
        "The original's own accuracy is",
    ]
    assert "9.0%" in told[-1]


def test_what_isnt_certified_says_so_in_the_title_and_in_a_line() -> None:
    found = card(UNCERTIFIED)
    assert found.title == "2.38x faster, not certified"
    assert not found.good
    assert dict(found.rows)["NOT certified"] == UNCERTIFIED.why
    assert any("hasten certify 'my model.hasten'" in note for note in found.notes)


def test_where_the_default_engine_ships_nothing_is_called_faster() -> None:
    found = card(EXACT_DEFAULT)
    assert (found.title, found.good, found.bars) == ("Nothing faster ships", False, ())
    assert dict(found.rows)["exact"] == "the original model, so it needs no certificate"


def test_the_original_on_fewer_threads_isnt_compared_with_itself() -> None:
    """Two latencies of one model once stood as "before" and "after"; they differed by noise alone."""
    found = card(dataclasses.replace(EXACT_DEFAULT, threads=1, shipped_threads=1))
    rows = dict(found.rows)
    assert (found.title, found.good, found.bars) == ("Nothing faster ships", False, ())
    assert rows["speed"] == "same as the default engine, because nothing faster may ship"
    assert rows["latency"] == "5 ms at the median, with 1 thread"
    assert rows["exact"] == "the original model, so it needs no certificate"


@pytest.mark.parametrize(
    ("made", "speed"),
    [
        (
            ON_ONE_THREAD,
            "2.50x the default engine's on its 2 threads (95% interval 2.38 to 2.56)",
        ),
        (
            NOT_COMPARED,
            "1.25x the default engine's, both on 1 of its 2 threads (95% interval 1.23 to 1.27)",
        ),
    ],
)
def test_a_speed_up_names_its_threads_where_others_were_timed(made: Result, speed: str) -> None:
    assert dict(card(made).rows)["speed"] == speed


def test_without_data_no_samples_are_counted() -> None:
    made = dataclasses.replace(FASTER_EXACT, inexact=UNJUDGED)
    assert dict(card(made).rows)["exact"] == (
        "it keeps the original's precision, so it needs no certificate"
    )


def test_a_budget_that_is_missed_is_on_the_card() -> None:
    made = dataclasses.replace(CERTIFIED, budget_ns=1e6)
    assert dict(card(made).rows)["budget"] == "2.1 ms, OVER the budget of 1 ms"


@pytest.mark.parametrize("made", ALL.values(), ids=ALL)
def test_a_card_has_at_most_ten_lines(made: Result) -> None:
    assert len(card(made).rows) < 10


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("made", ALL.values(), ids=ALL)
def test_the_box_fits_the_terminal_and_keeps_every_word(made: Result, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, record=True)
    boxed(card(made), console)
    text = console.export_text()
    assert all(len(line) <= width for line in text.splitlines())
    kept = re.sub(r"[│╭╮╰╯─•\s]", "", text)
    assert all(word in kept for _, words in card(made).rows for word in words.split())
    assert all(word in kept for note in card(made).notes for word in note.split())


def test_names_on_a_card_send_a_terminal_no_commands() -> None:
    evil = dataclasses.replace(CERTIFIED, population="\x1b[2J[red]x", bundle=Path("\x1b[2J.hasten"))
    console = Console(file=io.StringIO(), width=80, record=True)
    boxed(card(evil), console)
    for text in (console.export_text(), "\n".join(lines(card(evil)))):
        assert "\x1b" not in text
        assert "[red]x" in text


class _Tags(HTMLParser):
    """Collects the tags, attributes and texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.named: set[str] = set()
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.named |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize("made", ALL.values(), ids=ALL)
def test_a_notebook_shows_the_same_card_without_scripts(made: Result) -> None:
    found = _Tags(made._repr_html_())
    assert found.tags <= {"div", "p", "span", "dl", "dt", "dd", "ul", "li"}
    assert found.named <= {"style", "class", "aria-hidden"}
    for name, text in card(made).rows:
        assert name in found.texts
        assert text in found.texts


def test_a_notebook_escapes_what_comes_from_users() -> None:
    evil = dataclasses.replace(
        result("certified", EVIL, "exact", "winner"), population=EVIL, notes=(EVIL,)
    )
    named = dataclasses.replace(
        evil, rows=tuple(dataclasses.replace(r, label=EVIL) for r in evil.rows)
    )
    recheck = Recheck("fresh data", judgement(6), 2000, 0, notes=(EVIL,))
    for made in (named, COMPARED, recheck):
        html = made._repr_html_()
        assert "<script" not in html
        assert "\x1b" not in html
        assert "&lt;script&gt;" in html


def test_a_comparison_and_a_recheck_say_what_came_out() -> None:
    texts = _Tags(COMPARED._repr_html_()).texts
    assert "The bundle is faster: 2.38x" in texts
    assert "2 threads, one sample in a request" in texts
    texts = _Tags(Recheck("fresh data", judgement(6), 2000, 3)._repr_html_()).texts
    assert "Passed: certified" in texts
    assert "2,000 samples, 3 left out" in texts
    refused = _Tags(Recheck("fresh data", judgement(90), 2000, 0)._repr_html_()).texts
    assert "Not passed: not accurate enough" in refused


def test_exactness_alone_is_called_good_where_it_is_faster() -> None:
    assert card(FASTER_EXACT).good
    assert dict(card(exact(NO_FASTER, "exact")).rows)["ships"] == EXACT
