"""A bundle's records as a report reads them: the run's own page, and damaged ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.bundles import forge
from tests.support.pages import Reading

import hasten
from hasten.bundle.manifest import UNCERTIFIED_YET
from hasten.core.records import from_record, to_record
from hasten.errors import InputError, IntegrityError
from hasten.optimization.measured.screening import SCREEN_ROUNDS
from hasten.reporting import evidence
from hasten.reporting.drawing import Plot
from hasten.reporting.evidence import Report, gathered
from hasten.reporting.page import render

RESULT = "evidence/result.json"
POINT = {"batch": 1, "threads": 1, "sessions": 1, "p50_ns": 1, "throughput_per_s": 1}


@pytest.fixture
def bundle(certified_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(certified_bundle, tmp_path / "b.hasten")
    return tmp_path / "b.hasten"


def refused(bundle: Path) -> str:
    """What is said of a bundle that can't be read, after its path."""
    with pytest.raises(IntegrityError) as raised:
        gathered(bundle)
    line = str(raised.value)
    assert line.startswith(f"{bundle}: ")
    assert "\n" not in line
    return line.removeprefix(f"{bundle}: ")


def change_result(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((bundle / RESULT).read_bytes())
    change(record)
    forge(bundle, files={RESULT: json.dumps(record).encode()})


def test_a_runs_page_tells_what_became_of_every_candidate(certified_bundle: Path) -> None:
    report = gathered(certified_bundle)
    fates = [outcome.fate for outcome in report.result.outcomes]
    assert sorted(fates) == ["baseline", *["failed"] * 4, "judged"]
    (judged,) = [o for o in report.result.outcomes if o.fate == "judged"]
    assert judged.ratio is not None
    assert judged.ratio.low <= judged.ratio.estimate <= judged.ratio.high < 1
    assert judged.ratio.rounds == SCREEN_ROUNDS
    assert judged.drop is not None
    assert (judged.drop.lost, judged.drop.gained, judged.drop.draws) == (0, 0, 60)
    assert judged.rung == 0
    reading = Reading.of((certified_bundle / "report.html").read_bytes())
    assert [key for key in reading.lines if key] == [
        *("summary", "answers", "notes", "figures", "trials", "latencies", "certificate"),
        *("comparison", "failures", "environment", "again"),
    ]
    assert "failed: the faulty engine can't build, as it was told" in reading.rows("failures")


def test_a_runs_page_says_how_python_asked_for_it(certified_bundle: Path) -> None:
    lines = Reading.of((certified_bundle / "report.html").read_bytes()).rows("again")
    folder = certified_bundle.parent
    assert (
        "import hasten\n\nhasten.optimize(\n"
        f"    model='{folder}/linear_classifier.onnx',\n"
        "    data=data,  # an object of type numpy ndarray\n"
        "    max_drop=0.05,\n"
        "    metric='agreement',\n"
        f"    out='{folder}/b.hasten',\n"
        "    engines=['tests.support.rivals:Unlucky'],\n"
        "    trial_limit_s=3.0,\n"
        ")"
    ) in lines


def test_records_read_back_as_they_were(report: Report) -> None:
    assert from_record(Report, json.loads(json.dumps(to_record(report)))) == report


def test_a_run_that_has_not_finished_has_no_report(bundle: Path) -> None:
    forge(bundle, lambda record: (record["files"].pop(RESULT), record.update(why=UNCERTIFIED_YET)))
    with pytest.raises(InputError) as raised:
        gathered(bundle)
    assert str(raised.value) == (
        f"{bundle} has no evidence of a finished run, so there is nothing to report: continue "
        "the run with resume=True, or make the bundle again"
    )


def test_a_bundle_packed_without_its_evidence_has_no_report(bundle: Path) -> None:
    """Its run has finished: nothing could be continued."""
    forge(bundle, lambda record: record["files"].pop(RESULT))
    with pytest.raises(InputError) as raised:
        gathered(bundle)
    assert str(raised.value) == (
        f"{bundle} has no evidence of its run, so there is nothing to report: take the bundle that it was packed from, "
        "since packing can leave the evidence out"
    )


@pytest.mark.parametrize(
    "name", ["result", "figures", "profile", "limit", "curve", "stages", "cold"]
)
def test_evidence_that_is_no_record_is_damaged(bundle: Path, name: str) -> None:
    forge(bundle, files={f"evidence/{name}.json": b'{"rounds": [[]], "p50_ns"'})
    assert refused(bundle).startswith(f"evidence/{name}.json is damaged: ")


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("figures", {"rounds": {"w": {"0": [0]}}, "refused": 0, "threads": 1}),
        ("figures", {"rounds": {"w": {"0": [1e300]}}, "refused": 0, "threads": 1}),
        ("figures", {"rounds": {}, "refused": -1, "threads": 1}),
        ("limit", [{"name": "winner", "floor_ns": 0, "ratio": 2}]),
        ("limit", [{"name": "winner", "floor_ns": 10, "ratio": -2}]),
        ("curve", [{"batch": 0, "threads": 1, "sessions": 1, "p50_ns": 1, "throughput_per_s": 1}]),
        ("profile", {"exact": [], "winner": [{"name": "a", "operator": "b"}]}),
        ("profile", {"exact": "a", "winner": []}),
        (
            "stages",
            {
                "before": [{"name": "model", "p50_ns": 1, "p99_ns": 2, "share": 1.5}],
                "after": [],
                "files": 1,
                "threads": 1,
            },
        ),
        ("limit", [{"name": "winner", "floor_ns": 1, "ratio": 2}] * 2000),
        ("curve", [{**POINT, "batch": batch} for batch in range(1, 2001)]),
        ("curve", [{**POINT, "threads": threads} for threads in range(1, 501)]),
        ("figures", {"rounds": {"w": {str(10**400): [1]}}, "refused": 0, "threads": 1}),
        ("cold", {"rows": []}),
        ("cold", {"rows": [{"label": "a", "stages_ns": []}]}),
        ("cold", {"rows": [{"label": "a", "stages_ns": [[1, 2, 3]]}]}),
    ],
)
def test_evidence_that_no_run_writes_is_damaged(bundle: Path, name: str, record: Any) -> None:
    forge(bundle, files={f"evidence/{name}.json": json.dumps(record).encode()})
    assert refused(bundle).startswith(f"evidence/{name}.json is damaged: ")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda r: r.update(status="exact"),
            "its status is exact, but the manifest's is certified",
        ),
        (lambda r: r.update(rows=[]), "it has no row of what ships"),
        (
            lambda r: r["rows"][0]["ratio"].update(low=0),
            "it has an interval that isn't one, or a figure that is out of range",
        ),
        *(
            (
                lambda r, name=name: r.update({name: {**r["rows"][0]["ratio"], "estimate": 0}}),
                "it has an interval that isn't one, or a figure that is out of range",
            )
            for name in ("whole", "on_all")
        ),
        (
            lambda r: r["outcomes"][-1]["drop"].update(high=2),
            "it has an interval that isn't one, or a figure that is out of range",
        ),
        (
            lambda r: r["asked"].update(max_drop=0),
            "it has an interval that isn't one, or a figure that is out of range",
        ),
        (
            lambda r: r["ladder"][0]["judgement"].update(n=10**60),
            "it has a number that is infinite or too large",
        ),
        (
            lambda r: r.update(outcomes=r["outcomes"] * 3000),
            "it has 18,000 candidates; at most 10,000 are shown",
        ),
        (
            lambda r: r.update(outcomes=r["outcomes"][-1:] * 1001),
            "it has 1,001 timed candidates; at most 1,000 are shown",
        ),
        (
            lambda r: r.update(rows=r["rows"] * 1000),
            "it has 3,000 rows; at most 100 are shown",
        ),
        (
            lambda r: r.update(ladder=r["ladder"] * 200),
            "it has 200 rungs; at most 100 are shown",
        ),
        (
            lambda r: r["rows"][1].update(label="x" * 5_000_000),
            "it has a text of 5,000,000 letters; at most 100,000 are shown",
        ),
    ],
)
def test_a_result_that_no_run_comes_to_is_damaged(
    bundle: Path, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    change_result(bundle, change)
    assert refused(bundle) == f"{RESULT} is damaged: {why}"


def test_raw_rounds_say_which_process_of_each_model_took_them(certified_bundle: Path) -> None:
    figures = gathered(certified_bundle).figures
    assert figures is not None
    assert figures.schema == evidence.FIGURES_SCHEMA
    taken = {figures.processes[number] for number in figures.rounds["baseline"]}
    assert {0, 1, 2} <= taken
    assert figures.refused_rounds == {}  # on one thread none is


@pytest.mark.seconds
def test_figures_and_rows_of_an_older_version_are_read_and_shown(bundle: Path) -> None:
    figures = json.loads((bundle / "evidence/figures.json").read_bytes())
    for added in ("schema", "processes", "refused_rounds"):
        del figures[added]
    forge(bundle, files={"evidence/figures.json": json.dumps(figures).encode()})

    def older(record: dict[str, Any]) -> None:
        for row in record["rows"]:
            del row["mean_ratio"], row["p99_ratio"]

    change_result(bundle, older)
    report = gathered(bundle)
    assert report.figures is not None
    assert (report.figures.schema, report.figures.processes) == (1, {})
    assert b"mean latency " not in render(report)


def test_a_role_without_a_latency_is_left_out(bundle: Path) -> None:
    figures = {
        "rounds": {"w": {"0": [1]}, "d": {"0": []}},
        "refused": 0,
        "threads": 1,
        "roles": {"winner": "w", "default engine": "d"},
    }
    forge(bundle, files={"evidence/figures.json": json.dumps(figures).encode()})
    reading = Reading.of(render(gathered(bundle)))
    assert "Half of the requests to what ships took at most 0.001 µs" in reading.rows("latencies")


def test_a_role_is_drawn_without_control_characters(bundle: Path) -> None:
    change_result(bundle, lambda r: r["rows"][0].update(role="default engine\x1b[31m"))
    assert b"default engine [31m" in render(gathered(bundle))


def test_evidence_is_bounded_before_it_is_read(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "_RESULT_BYTES", 100)
    size = (bundle / RESULT).stat().st_size
    assert refused(bundle) == f"{RESULT} has {size:,} bytes; at most 100 are read"


def test_records_of_an_older_version_make_a_page_with_less(bundle: Path) -> None:
    def older(record: dict[str, Any]) -> None:
        for name in ("outcomes", "ladder", "asked"):
            del record[name]

    change_result(bundle, older)
    reading = Reading.of(render(gathered(bundle)))
    assert [key for key in reading.lines if key] == [
        *("summary", "answers", "notes", "figures", "trials", "latencies", "comparison"),
        *("environment", "again"),
    ]


def test_a_name_that_is_no_text_is_shown_as_far_as_it_is(bundle: Path) -> None:
    change_result(bundle, lambda record: record.update(notes=["a\udc80b", "c\U0001f600d\\ud800"]))
    assert gathered(bundle).result.notes == ("a\ufffdb", "c\U0001f600d\\ufffd")


@pytest.mark.seconds
def test_a_report_is_written_beside_the_bundle_as_the_run_wrote_it(bundle: Path) -> None:
    file = bundle.parent / "b.hasten.html"
    file.write_bytes((bundle / "report.html").read_bytes() + b" ")  # an older report is replaced
    assert hasten.report(bundle) == file
    assert file.read_bytes() == (bundle / "report.html").read_bytes()


def test_a_report_replaces_nothing_but_a_report(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "index.html"
    other.write_text("<!doctype html><html><title>mine</title></html>")
    with pytest.raises(InputError) as raised:
        hasten.report(bundle, other)
    assert str(raised.value) == (
        f"{other} exists and isn't a report; give another out= or remove it"
    )
    assert "mine" in other.read_text()


def test_a_report_never_damages_its_bundle(bundle: Path) -> None:
    place = bundle / "report.html"
    before = place.read_bytes()
    with pytest.raises(InputError) as raised:
        hasten.report(bundle, place)
    assert str(raised.value) == (
        f"{place} is in the bundle, and writing there would damage it; give another out="
    )
    assert place.read_bytes() == before


def test_a_report_that_can_not_be_written_says_why(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Plot, "_svg")  # and says so before it draws
    with pytest.raises(InputError) as raised:
        hasten.report(bundle, tmp_path / "nowhere" / "r.html")
    assert str(raised.value) == (
        f"can't write {tmp_path}/nowhere/r.html: No such file or directory"
    )
