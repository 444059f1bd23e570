"""Checks run apart: one that fails, crashes or hangs is one line, and the others go on."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hasten.cli import main
from hasten.core.devices import find_target
from hasten.evaluation.deep import page
from hasten.evaluation.deep.finding import Finding
from hasten.evaluation.deep.run import exit_code, run

SOURCE = "tests.support.deep_checks"


@pytest.fixture(autouse=True)
def _found_by_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]), prepend=":")


def test_each_check_ends_alone_and_says_why() -> None:
    heard: list[Finding] = []
    found = run("host", source=f"{SOURCE}:checks", listen=heard.append)
    assert heard == found
    told = {finding.check: (finding.state, finding.said, finding.details) for finding in found}
    where = told.pop("crashing")
    assert told == {
        "first": ("holds", "on host", ("first detail", "second detail")),
        "failing": ("fails", "bytes come back changed", ()),
        "detailed": ("fails", "5% apart", ("after 3 s",)),
        "not done": ("not done", "no GPU here", ()),
        "surprising": ("fails", "ZeroDivisionError: a bug", ()),
        "hanging": ("lost", "hung: no answer within 0.1 s", ()),
        "ending": (
            "lost",
            "its process ended with exit code 7; its last line: the runtime gave up",
            (),
        ),
        "last": ("holds", "on host", ("first detail", "second detail")),
    }
    state, said, _ = where
    assert state == "lost"
    assert said.startswith("its process was killed by SIGSEGV in crashing (deep_checks.py:")
    assert exit_code(found) == 1


def test_where_the_device_is_not_here_every_check_says_so() -> None:
    found = run("host", source=f"{SOURCE}:without_a_device")
    assert [(one.check, one.state, one.said) for one in found] == [
        ("device", "not done", "no GPU here"),
        ("other", "not done", "no GPU here"),
    ]
    assert exit_code(found) == 3


def test_what_is_left_when_the_time_is_over_is_not_done() -> None:
    found = run("host", source=f"{SOURCE}:checks", within_s=0)
    assert {(one.state, one.said) for one in found} == {
        ("not done", "the 0 s for all checks were over")
    }


def test_the_exit_code_tells_what_holds_from_what_was_not_checked() -> None:
    def code(*states: str) -> int:
        return exit_code([Finding("one", state, "") for state in states])  # type: ignore[arg-type]

    assert code("holds", "holds") == 0
    assert code("holds", "not done") == 3
    assert code("holds", "not done", "fails") == code("lost") == 1


def test_the_page_tells_each_check_in_lines_that_can_be_pasted() -> None:
    found = [
        Finding("copies", "holds", "all bytes the same", ("8 GB/s",), 0.4),
        Finding("graph", "fails", "replay 3 returns the answer to another request " * 4, (), 1.5),
    ]
    lines = page.entry(found[1]).splitlines()
    assert max(map(len, lines)) <= 110
    assert page.entry(found[0]) == (
        "holds     copies: all bytes the same (0.4\N{NO-BREAK SPACE}s)\n          8 GB/s"
    )
    assert page.ending(found) == "\n1 hold, 1 fail"
    assert page.heading("cuda").startswith("hasten doctor --deep cuda\nhasten:")


@pytest.mark.skipif(find_target("cuda").kind == "attached", reason="there is a GPU here")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_without_a_gpu_the_doctor_runs_to_its_end(flags: list[str]) -> None:
    told = CliRunner().invoke(main, ["doctor", "--deep", "cuda", *flags])
    assert told.exit_code == 3, told.output
    if flags:
        record = json.loads(told.output)
        assert record["exit_code"] == 3
        said = {one["check"]: (one["state"], one["said"]) for one in record["findings"]}
    else:
        lines = [one for one in told.output.splitlines() if one.startswith("not done")]
        said = {one.split(": ")[0][10:]: ("not done", one.split(": ", 1)[1]) for one in lines}
    assert {"device", "clocks", "pinned memory", "copies", "graph", "threads", "A/A"} <= set(said)
    assert "answers (PyTorch, compiled)" in said
    assert {state for state, _ in said.values()} == {"not done"}
    assert all(
        "isn't installed" in why or "aren't installed" in why or "no NVIDIA GPU" in why
        for _, why in said.values()
    )


def test_the_doctor_takes_one_question_at_a_time() -> None:
    told = CliRunner().invoke(main, ["doctor", "--deep", "cuda", "--ceilings"])
    assert told.exit_code == 2
    assert (
        told.output
        == "hasten: --ceilings measures this host, and --deep checks a device: give only one of "
        "them\n"
    )
