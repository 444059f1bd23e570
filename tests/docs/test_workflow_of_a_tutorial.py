"""The workflow in the tutorial about CI asks the action for what it takes."""

import re
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]


def test_the_workflow_gives_the_action_inputs_that_it_has() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    page = (ROOT / "docs" / "tutorials" / "certificate-in-ci.md").read_text()
    block = re.search(r'```yaml title=".github/workflows/certify.yml"\n(.*?)```', page, re.DOTALL)
    assert block is not None
    steps = yaml.safe_load(block[1])["jobs"]["certify"]["steps"]
    (step,) = [step for step in steps if step["uses"] == "OWNER/hasten@main"]
    assert set(step["with"]) <= set(action["inputs"])
    assert {name for name, one in action["inputs"].items() if one.get("required")} <= set(
        step["with"]
    )
