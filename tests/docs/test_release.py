"""A release: the wheel holds every file, the version stands once, the changelog builds, the workflow runs what is there."""

import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from tests.support.wheel import built_wheel, tracked

import hasten

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TYPES = {each["directory"] for each in PROJECT["tool"]["towncrier"]["type"]}
FRAGMENTS = sorted(path for path in (ROOT / "changes").iterdir() if path.name != "template.md")
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job.get("steps", ())]


@pytest.fixture
def release() -> ModuleType:
    """The module scripts/release.py."""
    spec = importlib.util.spec_from_file_location("release", ROOT / "scripts" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.seconds
def test_the_wheel_holds_each_file_of_the_package_and_no_other(tmp_path: Path) -> None:
    sources = tracked("src")
    wheel = built_wheel(tmp_path)
    assert wheel.name == f"hasten-{hasten.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        described = archive.read(metadata).decode().partition("\n\n")[2]
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {name.removeprefix("src/") for name in sources}
    # The package index shows the README on a page of its own, where relative addresses lead nowhere.
    picture = "docs/pictures/speed-against-accuracy-light.svg"
    assert (
        f'src="{PROJECT["project"]["urls"]["Source"]}/raw/v{hasten.__version__}/{picture}"'
        in described
    )
    addresses = re.findall(r'(?:\]\(|(?:src|srcset|href)=")([^)"]+)', described)
    assert [one for one in addresses if not re.match("https?://|#", one)] == []


def test_the_version_stands_in_one_place(release: ModuleType) -> None:
    assert "version" not in PROJECT["project"]
    assert "version" in PROJECT["project"]["dynamic"]
    assert release.stated_version() == hasten.__version__


def test_every_version_of_python_that_is_named_is_one_that_is_supported() -> None:
    told = [
        line.rpartition(" :: ")[2]
        for line in PROJECT["project"]["classifiers"]
        if re.search(r":: 3\.\d+$", line)
    ]
    assert PROJECT["project"]["requires-python"] == f">={told[0]}"
    versions = next(
        step["with"]["python-version"].split() for step in STEPS if "3.13" in str(step.get("with"))
    )
    assert sorted(versions) == told  # each is tried before a release


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda path: str(path.name))
def test_every_fragment_is_a_list_with_a_type_that_the_changelog_has(fragment: Path) -> None:
    name, _, rest = fragment.name.partition(".")
    assert name
    assert rest.removesuffix(".md") in TYPES, (
        f"{fragment.name} isn't read: call it changes/NAME.TYPE.md, where TYPE is one of {sorted(TYPES)}"
    )
    items = fragment.read_text().splitlines()
    assert all(line.startswith(("- ", "  ")) for line in items)
    assert items[0].startswith("- ")


def test_the_draft_of_the_changelog_has_every_item_and_its_links_lead_somewhere() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "9.9.9"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    draft = made[made.index("## 9.9.9") :]
    lines = [line for path in FRAGMENTS for line in path.read_text().splitlines()]
    assert [line for line in lines if line not in draft] == []
    assert set(re.findall(r"^### (\w+)$", draft, re.MULTILINE)) <= {
        each["name"] for each in PROJECT["tool"]["towncrier"]["type"]
    }
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", draft)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_notes_of_a_release_are_its_section_of_the_changelog(release: ModuleType) -> None:
    changelog = (
        "# Changes\n\n## 0.2.0 (2027-01-01)\n\n### Added\n\n- b\n\n## 0.1.0 (2026-12-01)\n\n- a\n"
    )
    assert release.notes("0.2.0", changelog) == "### Added\n\n- b\n"
    assert release.notes("0.1.0", changelog) == "- a\n"
    with pytest.raises(SystemExit, match=r"no section for 0\.3\.0"):
        release.notes("0.3.0", changelog)


def test_a_tag_with_another_version_is_refused(release: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"the tag v99\.0 doesn't name the version"):
        release.check_tag("v99.0", hasten.__version__)


def test_a_release_starts_by_a_tag_and_after_the_checks() -> None:
    assert WORKFLOW[True] == {"push": {"tags": ["v*"]}}  # True: "on"
    jobs = WORKFLOW["jobs"]
    assert jobs["check"]["uses"] == "./.github/workflows/ci.yml"
    checks = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert "workflow_call" in checks[True]

    def before(name: str) -> set[str]:
        needed = jobs[name].get("needs", [])
        direct = {needed} if isinstance(needed, str) else set(needed)
        return direct.union(*map(before, direct))

    assert all("check" in before(name) for name in jobs if name != "check")
    assert {"build", "documentation"} <= before("publish")
    assert "publish" in before("announce")


def test_only_the_jobs_that_need_a_right_have_it() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    rights = {
        name: job["permissions"]
        for name, job in WORKFLOW["jobs"].items()
        if job.get("permissions") is not None
    }
    assert rights == {
        "publish": {"id-token": "write"},
        "pages": {"id-token": "write", "pages": "write"},
        "announce": {"contents": "write"},
    }
    assert WORKFLOW["jobs"]["publish"]["environment"] == {"name": "pypi"}


def test_every_action_has_a_version_and_nothing_from_outside_is_put_into_a_shell() -> None:
    used = [step["uses"] for step in STEPS if "uses" in step]
    assert [each for each in used if not re.search(r"@(v\d+|release/v\d+)$", each)] == []
    assert [step["run"] for step in STEPS if "${{" in step.get("run", "")] == []


def test_the_workflow_runs_targets_of_make_that_are_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    run = {name for step in STEPS for name in re.findall(r"\bmake ([\w-]+)", step.get("run", ""))}
    assert {"release", "docs"} <= run
    assert run <= targets


def test_the_target_release_and_the_script_know_the_same_options(release: ModuleType) -> None:
    rule = re.search(r"^release:.*\n(\t.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert rule is not None
    told = subprocess.run(
        [sys.executable, str(release.__file__), "--help"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert {f"--{each}" for each in re.findall(r"--(\w+)", rule[1])} <= set(
        re.findall(r"--\w+", told)
    )
