"""What a page says, and what can't get into it."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.pages import Reading

from hasten.reporting.charts import charts
from hasten.reporting.commands import commands
from hasten.reporting.evidence import Report, Tried
from hasten.reporting.page import POLICY, render
from hasten.reporting.result import Outcome, Row, Rung
from hasten.reporting.style import DARK, LIGHT
from hasten.reporting.svg import TONES

Change = Callable[..., Report]
HOSTILE = (
    """</title></svg><script>alert(1)</script><img src=https://a.example/x onerror="alert('1')">"""
)


def read(report: Report) -> Reading:
    return Reading.of(render(report))


def test_the_three_questions_come_first_in_their_order(page: bytes) -> None:
    reading = Reading.of(page)
    assert list(reading.lines)[:3] == ["", "summary", "answers"]
    assert reading.rows("")[0] == "doors.hasten: 2.35x faster, certified"
    assert reading.rows("answers") == [
        "How much faster?",
        "2.35x",
        "What ships is 2.35x faster (95% interval 2.31 to 2.39) than the default engine (original, ONNX "
        "Runtime): a request takes 2.35 ms at the median instead of 5.54 ms, both with 2 threads and one "
        "sample in a request.",
        "The default engine, timed twice side by side, differed from itself by 2.1%; no smaller difference "
        "is called faster.",
        "How sure are we that it is as accurate?",
        "✓ certified",
        "95% confident that top-1 accuracy falls by at most 1 point (n=2,000: 9 lost, 4 gained).",
        "Tested on 2,000 samples that the search never saw; the limit was 1 point.",
        "For photos from the front door camera.",
        "How far from what this machine can do?",
        "2.55x",
        "the shortest time possible: this machine's ceilings allow 0.9 ms.",
        "The main part of that is arithmetic.",
    ]


def test_the_summary_has_a_headline_three_numbers_the_certificate_and_a_chart(page: bytes) -> None:
    assert Reading.of(page).rows("summary")[:11] == [
        *(
            "doors.hasten",
            "2.35x faster, certified",
            "AMD EPYC, 2 threads, one sample in a request",
        ),
        *("2.35x", "as fast as today's model"),
        *("2.35 ms", "for a request at the median, instead of 5.54 ms"),
        "0.25 points",
        "lost on 2,000 samples that the search never saw (accuracy); 1 point may be lost",
        "With 95% confidence, top-1 accuracy falls by at most 1 point. It holds for photos from the front "
        "door camera.",
        "A request takes 2.35 ms at the median, instead of 5.54 ms",
    ]


def test_a_link_leads_to_each_section_and_past_the_summary(page: bytes) -> None:
    reading = Reading.of(page)
    links = [given["href"][1:] for tag, given in reading.tags if tag == "a"]
    titled = [key for key in reading.lines if key not in ("", "summary", "answers")]
    assert links == ["details", *titled]
    assert [tag for tag, _ in reading.tags].index("a") < [t for t, _ in reading.tags].index("h1")


def test_a_page_has_every_section_that_there_are_records_for(page: bytes) -> None:
    assert [key for key in Reading.of(page).lines if key] == [
        *("summary", "answers", "notes", "figures", "trials", "latencies", "certificate"),
        *("profile", "limit", "batches", "load", "failures", "environment", "again"),
    ]


@pytest.mark.usefixtures("undrawn")
def test_a_page_without_records_of_something_has_no_section_on_it(
    with_result: Change,
) -> None:
    reading = read(with_result(outcomes=(), ladder=(), notes=(), asked=None))
    assert [key for key in reading.lines if key] == [
        *("summary", "answers", "figures", "trials", "environment", "again"),
    ]
    assert "How far from what this machine can do?" not in reading.rows("answers")
    assert reading.rows("trials")[:5] == [
        *("What was tried", "candidate", "outcome", "original, ONNX Runtime", "the baseline"),
    ]


def hostile(report: Report) -> Report:
    """The report with a hostile text wherever one may come from a file."""
    result = report.result
    rows = tuple(dataclasses.replace(row, label=HOSTILE, accuracy=HOSTILE) for row in result.rows)
    assert result.asked is not None
    return dataclasses.replace(
        report,
        result=dataclasses.replace(
            result,
            why=HOSTILE,
            population=HOSTILE,
            rows=rows,
            notes=(HOSTILE,),
            tried={HOSTILE: HOSTILE},
            outcomes=tuple(
                dataclasses.replace(o, label=HOSTILE, said=HOSTILE) for o in result.outcomes
            ),
            ladder=(
                *(dataclasses.replace(r, label=HOSTILE) for r in result.ladder),
                Rung(HOSTILE, None, HOSTILE),
            ),
            asked=dataclasses.replace(result.asked, noun=HOSTILE, metric=HOSTILE),
        ),
        environment={HOSTILE: HOSTILE, "hasten": HOSTILE, "numpy": HOSTILE},
        created=HOSTILE,
        source_sha256=HOSTILE,
        sealed={"samples": HOSTILE, "sha256": HOSTILE},
        target=dataclasses.replace(report.target, processor=HOSTILE),
        profile=report.profile
        and dataclasses.replace(
            report.profile,
            winner=tuple(
                dataclasses.replace(
                    s, name=HOSTILE, operator=HOSTILE, kind=HOSTILE, precision=HOSTILE
                )
                for s in report.profile.winner
            ),
        ),
        limit=tuple(dataclasses.replace(f, binds=HOSTILE) for f in report.limit),
    )


@pytest.fixture(scope="module")
def hostile_page(report: Report) -> bytes:
    return render(hostile(report))


@pytest.mark.seconds
def test_no_text_of_a_file_becomes_markup(page: bytes, hostile_page: bytes) -> None:
    plain, reading = Reading.of(page), Reading.of(hostile_page)
    assert {tag for tag, _ in reading.tags} == {tag for tag, _ in plain.tags}
    assert {name for _, given in reading.tags for name in given} == {
        name for _, given in plain.tags for name in given
    }
    assert HOSTILE in reading.rows("notes")
    assert reading.rows("answers").count(f"For {HOSTILE}.") == 1
    assert "<script" not in hostile_page.decode()


@pytest.mark.usefixtures("undrawn")
def test_no_text_of_a_file_steers_the_readers_screen(with_result: Change) -> None:
    page = render(with_result(notes=("a\u202eb\x1b[2Jc\u2066",))).decode()
    assert "<li>a b [2Jc </li>" in page


@pytest.mark.parametrize("name", ["page", "hostile_page"])
def test_a_page_runs_nothing_and_asks_for_nothing(
    request: pytest.FixtureRequest, name: str
) -> None:
    reading = Reading.of(request.getfixturevalue(name))
    policy = [g for t, g in reading.tags if g.get("http-equiv") == "Content-Security-Policy"]
    assert [given["content"] for given in policy] == [POLICY]
    assert POLICY.startswith("default-src 'none'; style-src 'unsafe-inline'")
    for tag, given in reading.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "form")
        assert not [name for name in given if name.startswith("on") or name in ("src", "srcset")]
        assert given.get("href", "#").startswith("#")
        for value in given.values():
            assert not re.search(r"url\((?!#)|@import", value)


def test_every_reference_leads_to_the_only_one_of_its_name(page: bytes) -> None:
    reading = Reading.of(page)
    names = [given["id"] for _, given in reading.tags if "id" in given]
    assert len(names) == len(set(names))
    wanted = {given["href"][1:] for _, given in reading.tags if "href" in given}
    for _, given in reading.tags:
        wanted |= set(given.get("aria-labelledby", "").split())
        wanted |= set(re.findall(r"url\(#([^)]+)\)", " ".join(given.values())))
    assert wanted <= set(names)


def test_every_plot_says_what_it_shows_to_who_cannot_see_it(page: bytes) -> None:
    text = page.decode()
    plots = re.findall(r'<svg viewBox="[^"]+" role="img" aria-labelledby="[^"]+">(.{40})', text)
    assert len(plots) == text.count("<svg") == 2 * text.count("<figure>") == 16
    assert all(plot.startswith("<title id=") for plot in plots)
    # The summary's chart shows what the table of figures holds.
    assert text.count("<summary>The numbers</summary>") == text.count("<figure>") - 1


def test_every_plot_is_titled_by_what_it_shows(report: Report) -> None:
    assert [plot.title for plot in charts(report)] == [
        "int8, 3 layers in float on OpenVINO is 2.35 times as fast as today's model",
        "4 of 6 candidates were faster than today's model and lost at most 1 point in the search; the "
        "fastest of them was 2.33 times as fast",
        "Half of the requests took at most 2.35 ms, instead of 5.54 ms with today's model; what ships was faster "
        "in 40 of 40 rounds",
        "2 of 3 candidates passed on 2,000 samples that the search never saw; the last of them lost 0.25 points, "
        "where 1 point may be lost",
        "Most of the time is saved on arithmetic: 1.04 ms for a request, instead of 2.61 ms",
        "What ships takes 2.55 times the shortest time that this machine could take",
        "Throughput is highest with 16 samples in a request: 1,497 samples a second, one request at a time on "
        "2 threads",
    ]


def test_plots_take_every_colour_from_the_page(page: bytes) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", page.decode(), re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) == set()
    named = set(re.findall(r"var\(--(\w+)\)", drawn))
    assert named <= LIGHT.keys() == {tone.name for tone in TONES}
    assert {"ink", "line", "before", "after", "loose"} <= named


def luminance(colour: str) -> float:
    """Source: WCAG 2.2, relative luminance."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_what_is_behind_them(colours: dict[str, str]) -> None:
    assert LIGHT.keys() == DARK.keys()
    for ink in ("ink", "quiet", "exact", "good", "bad"):
        for paper in ("paper", "card"):
            assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
    assert contrast(colours["ink"], colours["band"]) >= 4.5
    for line in ("before", "exact", "after", "loose"):
        assert contrast(colours[line], colours["paper"]) >= 4.5, line
        assert contrast(colours[line], colours["band"]) >= 3, line


def status(with_result: Change, status: str, **fields: object) -> list[str]:
    return read(with_result(status=status, **fields)).rows("answers")


@pytest.mark.seconds
def test_the_figures_say_how_often_a_request_is_copied(report: Report) -> None:
    assert not any("copied" in row for row in read(report).rows("figures"))
    copies = "a request's 150,528 bytes are copied once, into OpenVINO's input buffers"
    rows = read(dataclasses.replace(report, copies=copies)).rows("figures")
    assert f"A{copies[1:]}." in rows


@pytest.mark.usefixtures("undrawn")
def test_what_is_not_certified_says_so_where_it_matters(with_result: Change) -> None:
    changed = with_result(
        status="uncertified", why="shipped by --accept-uncertified: not enough data"
    )
    reading = read(changed)
    assert reading.rows("summary")[1] == "2.35x faster, not certified"
    assert "Not certified: shipped by --accept-uncertified: not enough data." in reading.rows(
        "summary"
    )
    assert "✗ not certified" in reading.rows("answers")
    assert "✓ certified" not in reading.rows("answers")


@pytest.mark.usefixtures("undrawn")
def test_an_exact_result_says_why_nothing_else_ships(with_result: Change, report: Report) -> None:
    rows = report.result.rows[:2]
    lines = status(with_result, "exact", rows=rows, why="what ships keeps the precision")
    assert lines[lines.index("How sure are we that it is as accurate?") :][:4] == [
        "How sure are we that it is as accurate?",
        "✓ exact",
        "What ships keeps the precision.",
        "For photos from the front door camera.",
    ]


@pytest.mark.usefixtures("undrawn")
def test_a_speed_within_the_noise_is_no_headline(with_result: Change, report: Report) -> None:
    default = report.result.rows[0]
    even: Row = dataclasses.replace(default, role="fastest exact")
    reading = read(with_result(status="exact", rows=(default, even)))
    assert reading.rows("summary")[1] == "Nothing faster ships"


def test_what_failed_says_why(page: bytes) -> None:
    assert Reading.of(page).rows("failures") == [
        "What failed or was skipped, and why",
        "candidate",
        "why",
        "fixed shapes, OpenVINO",
        "skipped: every size is settled already",
        "dynamic int8 (ONNX Runtime, per channel), ONNX Runtime",
        "failed: ONNX Runtime has no ConvInteger for node conv1",
    ]


def test_the_commands_are_those_that_were_typed(page: bytes) -> None:
    lines = Reading.of(page).rows("again")
    assert "hasten optimize model.onnx --data 'eval set.npz' --max-drop 1%" in lines
    # Not from an index, as the report says nothing of one: then none may have this version.
    assert (
        "To install the same versions, in the folder of hasten's own repository at version 0.1.0:"
    ) in lines
    assert (
        "python3.11 -m venv .venv && . .venv/bin/activate\n"
        "pip install '.[optimize]' numpy==2.4.6 onnxruntime==1.32.0 torch==2.13.0"
    ) in lines


def test_what_came_from_an_index_is_installed_from_there(report: Report) -> None:
    environment = {**report.environment, "hasten installed from": "an index"}
    ways = list(commands(dataclasses.replace(report, environment=environment)))
    assert ways[0] == (
        "To install the same versions:",
        "python3.11 -m venv .venv && . .venv/bin/activate\n"
        "pip install 'hasten[optimize]==0.1.0' numpy==2.4.6 onnxruntime==1.32.0 torch==2.13.0",
    )


def test_a_bundle_of_a_gpus_onnx_runtime_is_installed_without_the_other(report: Report) -> None:
    environment = {**report.environment, "onnxruntime-gpu": "1.31.1"}
    del environment["onnxruntime"]
    _, lines = next(commands(dataclasses.replace(report, environment=environment)))
    assert lines.splitlines()[1] == (
        "pip install '.[gpu]' numpy==2.4.6 torch==2.13.0 onnxruntime-gpu==1.31.1"
    )


@pytest.mark.usefixtures("undrawn")
def test_no_word_of_a_file_adds_a_command(with_result: Change) -> None:
    environment = {"python": "3; rm", "hasten": "1; rm -rf x", "numpy": "$(rm)"}
    environment["hasten installed from"] = "an index"
    changed = with_result(bundle=Path("x; rm -rf y"))
    lines = read(dataclasses.replace(changed, environment=environment)).rows("again")
    assert (
        "python3 -m venv .venv && . .venv/bin/activate\n"
        "pip install 'hasten[optimize]==1; rm -rf x' 'numpy==$(rm)'"
    ) in lines
    assert "hasten bench 'x; rm -rf y'" in [line.splitlines()[0] for line in lines]


def test_every_candidate_is_in_the_table_with_its_intervals(report: Report, page: bytes) -> None:
    lines = Reading.of(page).rows("trials")
    assert [o.label in lines for o in report.result.outcomes] == [True] * 10
    assert "1.12 (0.09 to 2.16), n=800" in lines


@pytest.mark.usefixtures("undrawn")
def test_a_ladder_whose_rung_failed_says_so(with_result: Change) -> None:
    reading = read(with_result(ladder=(Rung("bf16", None, "it crashed"),)))
    assert "failed: it crashed" in reading.rows("certificate")


def test_many_candidates_make_no_large_page(
    with_result: Change, report: Report, page: bytes
) -> None:
    many: tuple[Outcome, ...] = report.result.outcomes * 10
    assert len(page) < 300_000
    assert len(render(with_result(outcomes=many))) < 600_000


@pytest.mark.usefixtures("undrawn")
def test_every_setting_of_a_candidate_is_shown_on_request_and_no_folder(report: Report) -> None:
    tried = tuple(
        Tried(
            ({"type": "little", "path": "/home/me/a.onnx", "files": ["/home/me/b"], "name": ""},),
            {"type": "cascade", "fast": {"type": "openvino", "precision": "bf16"}, "rank": number},
        )
        for number in range(len(report.result.outcomes))
    )
    lines = read(dataclasses.replace(report, settings=tried)).rows("trials")
    at = lines.index("Every setting")
    assert lines[at + 1 : at + 5] == [
        "candidate",
        "settings",
        "original, ONNX Runtime",
        "little(path=a.onnx, files=1 items, name=) + cascade(fast=openvino(precision=bf16), rank=0)",
    ]


@pytest.mark.usefixtures("undrawn")
def test_settings_that_are_not_of_these_candidates_are_not_shown(report: Report) -> None:
    page = render(dataclasses.replace(report, settings=(Tried((), {"type": "null"}),)))
    assert b"Every setting" not in page
