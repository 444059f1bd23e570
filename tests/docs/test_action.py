"""The action for GitHub: its file, and its shell lines, run here as a runner would."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
INSTALL, CERTIFY = ACTION["runs"]["steps"]


def test_it_is_a_composite_action_whose_inputs_are_all_used_and_only_as_variables() -> None:
    assert ACTION["runs"]["using"] == "composite"
    used = [value for step in (INSTALL, CERTIFY) for value in step["env"].values()]
    assert sorted(used) == sorted(f"${{{{ inputs.{name} }}}}" for name in ACTION["inputs"])
    assert all(
        "${{" not in step["run"] for step in (INSTALL, CERTIFY)
    )  # nothing typed runs as code
    assert [name for name, one in ACTION["inputs"].items() if one.get("required")] == [
        "bundle",
        "data",
    ]


def test_it_installs_this_repository_with_an_extra_that_there_is() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert ACTION["inputs"]["extras"]["default"] in extras
    assert INSTALL["run"] == 'python -m pip install --quiet "${GITHUB_ACTION_PATH}[${EXTRAS}]"'


def ran(folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run the second step's lines with bash as GitHub calls it."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "hasten").write_text(
        f"#!{sys.executable}\nimport sys\nfrom hasten.cli import main\nsys.exit(main())\n"
    )
    (programs / "hasten").chmod(0o755)
    given = {name.upper(): str(one.get("default", "")) for name, one in ACTION["inputs"].items()}
    environment = {
        **os.environ,
        **given,
        **{name.upper(): value for name, value in inputs.items()},
        "PATH": f"{programs}:{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "GITHUB_OUTPUT": str(folder / "output"),
    }
    (folder / "step.sh").write_text(CERTIFY["run"])
    return subprocess.run(
        [bash, "--noprofile", "--norc", "-eo", "pipefail", str(folder / "step.sh")],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.seconds
def test_its_lines_pass_and_fail_as_the_limit_does(exact_bundle: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(9).standard_normal((200, 16), dtype=np.float32)
    np.savez(tmp_path / "new.npz", x=x)
    passed = ran(
        tmp_path,
        bundle=str(exact_bundle),
        data="new.npz",
        arguments="--max-drop\n5%\n\n",
        history="history.jsonl",
        ledger="state",
    )
    assert passed.returncode == 0, passed.stderr
    assert (tmp_path / "output").read_text() == "outcome=passed\n"
    assert ElementTree.parse(tmp_path / "hasten-junit.xml").getroot().get("failures") == "0"
    assert "## hasten certify" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "history.jsonl").read_text().count("\n") == 1
    assert (tmp_path / "state" / "ledger.jsonl").is_file()

    hostile = ran(
        tmp_path, bundle='x"; touch gone; "', data="$(touch gone)", arguments="--max-drop\n5%"
    )
    assert hostile.returncode == 2
    assert (tmp_path / "output").read_text().endswith("outcome=not tested\n")
    assert not (tmp_path / "gone").exists()


def test_what_the_page_shows_of_it_are_its_inputs() -> None:
    page = (ROOT / "docs" / "how-to" / "certify.md").read_text()
    shown = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    (step,) = (one for one in shown if "hasten" in one.get("uses", ""))
    assert set(step["with"]) <= set(ACTION["inputs"])
    assert {"bundle", "data"} <= set(step["with"])
