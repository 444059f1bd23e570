"""The workflow on GitHub runs what `.ci/run` runs."""

import re
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
JOB = WORKFLOW["jobs"]["part"]
PARTS = JOB["strategy"]["matrix"]["part"]


def test_the_jobs_are_the_parts_of_the_run_here() -> None:
    lines = re.findall(
        r"^make .*--keep-going (.*) \|\|", (ROOT / ".ci/run").read_text(), re.MULTILINE
    )
    here = re.findall(r"(?:suite|test|check)[\w-]*", " ".join(lines))
    assert sorted(here) == sorted(
        {"suite-all" if part in ("suite", "suite-slow") else part for part in PARTS}
    )
    assert {"suite", "suite-slow"} <= set(PARTS)  # which together are all


def test_each_part_is_a_target_of_make() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(PARTS) <= set(targets)
    assert JOB["steps"][-1]["run"] == "make ${{ matrix.part }}"


def test_what_the_jobs_run_is_there_and_may_be_run() -> None:
    scripts = [step["run"] for step in JOB["steps"] if step.get("run", "").startswith(".ci/")]
    assert scripts
    assert all((ROOT / script).stat().st_mode & 0o111 for script in scripts)
    assert set(WORKFLOW) == {
        "name",
        True,
        "concurrency",
        "permissions",
        "env",
        "jobs",
    }  # True: "on"


def test_both_try_as_many_examples() -> None:
    assert f"PYTEST_ADDOPTS={WORKFLOW['env']['PYTEST_ADDOPTS']} " in (ROOT / ".ci/run").read_text()
