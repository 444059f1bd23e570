"""What `hasten certify` leaves for a pipeline: JUnit XML, Markdown, and a history."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hasten.certificate.looks import Look
from hasten.certificate.verdict import Judgement, Verdict
from hasten.cli import main
from hasten.errors import InputError
from hasten.evaluation.gate import Entry, Files, entry_of, junit, read_history, summary
from hasten.evaluation.seen import Recheck


def outcome(verdict: Verdict = Verdict.CERTIFIED, look: Look | None = None) -> Recheck:
    judgement = Judgement(
        verdict, "net", "top1", "exact", 0.01, 0.95, 2000, None, 3, 1, 0.004, 0.001
    )
    return Recheck("fresh data", judgement, used=2000, left_out=0, look=look)


def test_a_limit_that_holds_is_a_test_that_passes() -> None:
    root = ElementTree.fromstring(junit("b.hasten", outcome(), 1.5))
    assert (root.tag, root.attrib) == (
        "testsuites",
        {"tests": "1", "failures": "0", "errors": "0", "time": "1.500"},
    )
    case = root.find("testsuite/testcase")
    assert case is not None
    assert case.attrib == {"classname": "hasten.certify", "name": "b.hasten", "time": "1.500"}
    assert [child.tag for child in case] == ["system-out"]


def test_one_that_does_not_hold_fails_with_its_verdict() -> None:
    failed = outcome(Verdict.NOT_ACCURATE_ENOUGH)
    root = ElementTree.fromstring(junit("b.hasten", failed, 0.0))
    failure = root.find("testsuite/testcase/failure")
    assert failure is not None
    assert failure.get("type") == "not accurate enough"
    assert failure.get("message") == failed.in_words()
    assert root.get("failures") == "1"


def test_no_test_is_an_error_and_odd_characters_are_well_formed() -> None:
    root = ElementTree.fromstring(junit("<b>&\x00", 'no such file: "\x1b[31m<x>"', 0.0))
    error = root.find("testsuite/testcase/error")
    assert error is not None
    assert error.get("message") == 'no such file: "\ufffd[31m<x>"'
    assert (root.get("errors"), root.get("failures")) == ("1", "0")


def test_the_summary_says_what_was_asked_and_what_came_out() -> None:
    look = Look("0", 2, 1, 0.05, 0.0005, "according to a ledger kept since today")
    text = summary("b.hasten", outcome(look=look))
    assert text.startswith(
        "## hasten certify: `b.hasten` passed\n\nAsked: a fall of at most 1 point. "
    )
    assert "Verdict: **certified** (fresh data)." in text
    assert "\n- second look at these data: tested at 0.05% instead of 5%" in text
    assert summary("b", "no such file: x|y").splitlines()[2] == "no such file: x\\|y"


def test_the_trend_shows_the_newest_first() -> None:
    history = [
        Entry(f"day {i}", f"{i:040x}", "b|c", "certified", "fresh data", True, 0.001, 0.01, 2000, 2)
        for i in range(30)
    ]
    rows = [line for line in summary("b", outcome(), history).splitlines() if line[:3] == "| 0"]
    assert len(rows) == 10
    assert rows[0] == (
        "| 000000000000 | day 29 | b\\|c | certified | 0.10% | 1% | 2,000 | fresh data (look 2) |"
    )


def test_a_history_grows_by_a_line_and_what_is_no_line_of_it_stays(tmp_path: Path) -> None:
    files = Files(summary=tmp_path / "s.md", history=tmp_path / "h.jsonl", commit="abc")
    files.write("some/b.hasten", outcome(), 1.0)
    with (tmp_path / "h.jsonl").open("a") as file:
        file.write('{"odd": 1}\ncut sho')
    files.write("some/b.hasten", outcome(Verdict.NOT_ENOUGH_DATA), 1.0)
    files.write("some/b.hasten", "it has no certificate", 1.0)
    lines = (tmp_path / "h.jsonl").read_text().splitlines()
    assert lines[1:3] == ['{"odd": 1}', "cut sho"]
    entries, unread = read_history(tmp_path / "h.jsonl")
    assert unread == 2
    assert [(one.commit, one.bundle, one.passed) for one in entries] == [
        ("abc", "b.hasten", True),
        ("abc", "b.hasten", False),
    ]
    text = (tmp_path / "s.md").read_text()
    assert text.count("## hasten certify") == 3
    assert "2 lines of the history can't be read, and were left as they are." in text


def test_the_look_is_in_the_history() -> None:
    assert entry_of("b", outcome(), "").look == 0
    assert entry_of("b", outcome(look=Look("0", 3, 0, 0.05, 0.05, "")), "").look == 3


@pytest.mark.parametrize("place", ["none/j.xml", "."])
def test_where_nothing_can_be_written_it_ends_before_the_test(tmp_path: Path, place: str) -> None:
    with pytest.raises(InputError) as error:
        Files(junit=tmp_path / place).check()
    assert str(error.value) == (
        f"can't write {tmp_path / place}: choose a file in an existing folder"
    )


# -- by the command


def certify(bundle: Path, data: Path, *words: object) -> Result:
    told = ["certify", str(bundle), "--data", str(data), "--max-drop", "5%", *map(str, words)]
    return CliRunner().invoke(main, told, env={"GITHUB_SHA": "f" * 40})


def test_the_command_writes_all_three_beside_its_exit_code(
    exact_bundle: Path, tmp_path: Path
) -> None:
    x = np.random.default_rng(9).standard_normal((200, 16), dtype=np.float32)
    np.savez(tmp_path / "new.npz", x=x)
    junit_file, text, history = (tmp_path / name for name in ("j.xml", "s.md", "h.jsonl"))
    files = ("--junit", junit_file, "--summary", text, "--history", history)
    ended = certify(exact_bundle, tmp_path / "new.npz", *files)
    assert ended.exit_code == 0, ended.output
    assert ElementTree.parse(junit_file).getroot().get("failures") == "0"
    (line,) = history.read_text().splitlines()
    assert (json.loads(line)["commit"], json.loads(line)["n"]) == ("f" * 40, 200)
    assert "| ffffffffffff |" in text.read_text()

    ended = certify(exact_bundle, tmp_path / "none.npz", *files)
    assert ended.exit_code == 2
    root = ElementTree.parse(junit_file).getroot()
    assert root.get("errors") == "1"
    assert "could not be tested" in text.read_text()
    assert len(history.read_text().splitlines()) == 1
