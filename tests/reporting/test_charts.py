"""Charts and the summary as files that stand alone."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import hasten
from hasten.errors import InputError
from hasten.measure.intervals import Ratio
from hasten.reporting.certificate_plot import certificate
from hasten.reporting.charts import charts
from hasten.reporting.evidence import Report
from hasten.reporting.slides import slide
from hasten.reporting.speed_plots import speeds
from hasten.reporting.style import DARK, LIGHT
from hasten.reporting.words import cut, folded, moment, plain, span, times

Change = Callable[..., Report]
HOSTILE = "</title></svg><script>alert(1)</script>\u202e\x1b[2J\u4e2d, OpenVINO"


@pytest.mark.seconds
def test_a_bundles_charts_are_written_for_light_and_dark_pages(
    exact_bundle: Path, tmp_path: Path
) -> None:
    written = hasten.plots(exact_bundle, tmp_path / "new" / "plots")
    names = {path.name for path in written}
    assert names == {path.name for path in (tmp_path / "new" / "plots").iterdir()}
    assert {"summary-light.svg", "summary-dark.png", "speeds-dark.svg"} <= names
    assert {"speeds-narrow-light.svg", "speeds-narrow-dark.png"} <= names
    for path in written:
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        else:
            assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError) as raised:
        hasten.plots(exact_bundle, exact_bundle / "plots")
    assert str(raised.value) == (
        f"{exact_bundle}/plots is in the bundle, and writing there would damage it; give "
        "another folder"
    )


def test_a_chart_for_a_phone_keeps_its_letters_and_breaks_its_labels(report: Report) -> None:
    plot = next(one for one in charts(report) if one.key == "speed-against-accuracy")
    root = ElementTree.fromstring(plot.alone(LIGHT, narrow=True)[0])
    texts = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert root.get("width") == "420"
    assert "ships: int8, 3 layers in" in texts
    assert not [text for text in texts if "…" in text]


def test_what_ships_is_on_the_chart_where_only_its_model_was_timed_in_the_search(
    report: Report, with_result: Change
) -> None:
    """With smaller pictures it is another candidate, which has no latencies of its own there."""
    won = report.result.winner.label
    outcomes = tuple(
        dataclasses.replace(one, ratio=None) if one.label == won else one
        for one in report.result.outcomes
    )
    plot = next(
        one for one in charts(with_result(outcomes=outcomes)) if one.key == "speed-against-accuracy"
    )
    root = ElementTree.fromstring(plot.alone(LIGHT)[0])
    texts = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "what ships" in texts
    assert "ships: int8, 3 layers in float" in " ".join(texts)
    row = plot.rows[[one.label for one in outcomes].index(won)]
    assert str(row[3]).startswith(f"{1 / report.result.winner.ratio.estimate:.2f} (")


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_a_chart_that_stands_alone_has_its_size_its_title_and_its_colours(
    report: Report, palette: dict[str, str]
) -> None:
    plot = next(one for one in charts(report) if one.key == "speed-against-accuracy")
    drawn, png = plot.alone(palette)
    root = ElementTree.fromstring(drawn)
    assert root.get("width") == "830"
    assert "var(--" not in drawn
    words = " ".join(text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text"))
    assert plot.title in words
    assert "ships: int8, 3 layers in float" in words
    assert palette["after"] in drawn
    paper = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))[0, 0]
    assert "#{:02x}{:02x}{:02x}".format(*paper) == palette["paper"]


def test_the_slide_is_16_by_9_and_no_long_text_leaves_it(with_result: Change) -> None:
    long = "a population that takes many words to describe, " * 20
    drawn, png = slide(with_result(population=long, bundle=Path("b" * 200))).alone(DARK)
    assert Image.open(io.BytesIO(png)).size == (1920, 1080)
    assert ElementTree.fromstring(drawn).get("width") == "1280"
    assert "…" in drawn


def test_a_strangers_label_is_cut_to_letters_that_can_be_drawn(with_result: Change) -> None:
    rows = with_result().result.rows
    hostile = tuple(dataclasses.replace(row, label=HOSTILE) for row in rows)
    report = with_result(rows=hostile, population=HOSTILE, bundle=Path(HOSTILE.replace("/", "")))
    drawn_alone = [slide(report).alone(LIGHT), *(one.alone(LIGHT) for one in charts(report))]
    for drawn, _ in drawn_alone:
        assert "<script" not in drawn
        assert not set(drawn) & set("\u202e\x1b")


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (
            "int8 (ONNX Runtime, per channel, 16-bit activations, minmax), compiled C, 2 threads",
            "int8 with 16-bit activations on compiled C, 2 threads",
        ),
        (
            "int8 (NNCF, accurate biases), 3 layers in float, OpenVINO",
            "int8, 3 layers in float on OpenVINO",
        ),
        ("int8 (NNCF), compiled C, 2 threads", "int8 on compiled C, 2 threads"),
        (
            "original, ONNX Runtime, fixed shapes for one sample",
            "original on ONNX Runtime, fixed shapes for one sample",
        ),
        ("bf16, OpenVINO", "bf16 on OpenVINO"),
        ("my own network", "my own network"),
    ],
)
def test_a_label_says_in_few_words_what_runs_where(label: str, words: str) -> None:
    assert plain(label) == words


def test_a_label_takes_two_lines_at_most() -> None:
    assert folded("int8 (NNCF), compiled C, 2 threads", 20) == "int8 on compiled C,\n2 threads"
    assert folded("bf16, OpenVINO", 20) == "bf16 on OpenVINO"
    assert folded("one two three four five", 9) == "one two\nthree…"


@pytest.mark.parametrize(
    ("speed", "words"), [(2.3, "2.30"), (4.284, "4.28"), (9.999, "10.0"), (123.4, "123")]
)
def test_a_speed_has_three_digits_everywhere(speed: float, words: str) -> None:
    assert times(speed) == words


@pytest.mark.parametrize(
    ("taken_s", "words"),
    [(59.6, "1 min 0 s"), (8, "8 s"), (484, "8 min 4 s"), (4800, "1 h 20 min")],
)
def test_a_span_of_time_is_told_in_two_units(taken_s: float, words: str) -> None:
    assert span(taken_s) == words


def test_a_time_is_told_without_its_letters_and_any_other_text_stays() -> None:
    assert moment("2026-11-24T21:27:04+00:00") == "2026-11-24 21:27 UTC"
    assert moment("yesterday") == "yesterday"


def test_a_score_that_rose_is_told_as_gained(with_result: Change) -> None:
    rung = with_result().result.ladder[0]
    assert rung.judgement is not None
    judged = dataclasses.replace(rung.judgement, estimate=-0.00048)
    plot = certificate([dataclasses.replace(rung, judgement=judged)])
    assert plot is not None
    assert "the last of them gained 0.048 points, where" in plot.title


def test_a_long_text_ends_in_an_ellipsis() -> None:
    assert cut("a_very_long_name", 8) == "a_very…"
    assert cut("short", 5) == "short"


def title(report: Report, ratio: Ratio) -> str:
    rows = report.result.rows
    changed = (*rows[:2], dataclasses.replace(rows[2], ratio=ratio))
    plot = speeds(changed, 0.02)
    assert plot is not None
    return plot.title


def test_a_title_claims_no_more_than_the_interval(report: Report) -> None:
    what = "int8, 3 layers in float on OpenVINO"
    assert (
        title(report, Ratio(0.5, 0.48, 0.52, 9)) == f"{what} is 2.00 times as fast as today's model"
    )
    within = f"{what} is as fast as today's model, within the noise"
    assert title(report, Ratio(0.985, 0.95, 1.01, 9)) == within
    plot = speeds(report.result.rows[:1], 0.02)
    assert plot is not None
    assert plot.title == "Today's model ships as it is: nothing faster may ship"
