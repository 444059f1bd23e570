"""The workflow on GitHub runs what `.ci/run` runs, and what would take too long there."""

import re
import subprocess
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
JOB = WORKFLOW["jobs"]["part"]
PARTS = JOB["strategy"]["matrix"]["part"]
MAKEFILE = (ROOT / "Makefile").read_text()
CACHES = [step["with"] for step in JOB["steps"] if step.get("uses", "").startswith("actions/cache")]


def test_the_jobs_are_the_parts_of_the_run_here_and_the_lowest_versions_of_extras() -> None:
    lines = re.findall(r"^make (.*) \|\|", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    here = [word for line in lines for word in line.split() if not word.startswith("-")]
    inside = re.search(r"^test:.*\n.*--keep-going (.*)", MAKEFILE, re.MULTILINE)
    lowest = re.search(r"^test-lowest-extras: (.*)", MAKEFILE, re.MULTILINE)
    assert inside is not None
    assert lowest is not None
    assert here.count("test") == 1
    here.remove("test")
    here[here.index("test-lowest")] = "test-lowest-suite"  # there is time for all of it there
    assert sorted([*here, *inside[1].split(), *lowest[1].split()]) == sorted(PARTS)


def test_each_part_is_a_target_of_make() -> None:
    targets = re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE)
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


def test_packages_are_kept_until_a_file_that_names_them_changes() -> None:
    (key,) = [cache["key"] for cache in CACHES if cache["path"] == "~/.cache/uv"]
    hashed = re.findall(r"'([^']+)'", key.partition("hashFiles")[2])
    named = {"pyproject.toml", "Makefile", *re.findall(r"--requirement (\S+)", MAKEFILE)}
    assert named == set(hashed)


def test_the_next_commit_begins_with_the_types_of_the_last_one() -> None:
    (cache,) = [cache for cache in CACHES if cache["path"] == ".mypy_cache"]
    assert cache["key"] == cache["restore-keys"] + "${{ github.sha }}"


def test_both_try_as_many_examples() -> None:
    assert f"PYTEST_ADDOPTS={WORKFLOW['env']['PYTEST_ADDOPTS']} " in (ROOT / ".ci/run").read_text()


def test_each_long_test_has_its_marker_in_its_own_file() -> None:
    """The long tests are looked for in files that name a marker, so none may get it from elsewhere."""
    named = re.compile(r"mark\.(slow|seconds)\b")
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "src/hasten/testing").rglob("*.py")]
    files += (ROOT / "fuzz").rglob("*.py")
    naming = {str(path.relative_to(ROOT)) for path in files if named.search(path.read_text())}
    asked = re.search(r"-m 'slow or seconds' .*\(scripts/marked (.*)\)", MAKEFILE)
    assert asked is not None
    command = [ROOT / "scripts/marked", *asked[1].split()]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert len(found) > 100
    assert naming == set(found)
