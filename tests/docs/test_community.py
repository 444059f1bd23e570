"""The files by which the repository's host and its visitors find their way: each is what its schema asks for."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
check_jsonschema = pytest.importorskip("check_jsonschema")
jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[2]
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
SCHEMAS = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor"
SCHEMA_OF = {
    "CITATION.cff": "citation-file-format",
    ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
    ".github/workflows/ci.yml": "github-workflows",
    ".github/workflows/release.yml": "github-workflows",
    "action.yml": "github-actions",
    **{
        str(form.relative_to(ROOT)): "github-issue-forms"
        for form in FORMS
        if form.name != "config.yml"
    },
}


def read(name: str) -> dict[str, Any]:
    """Read YAML 1.2, in which "on" is no truth value."""
    text = re.sub(r"^on:", '"on":', (ROOT / name).read_text(), flags=re.MULTILINE)
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize("name", SCHEMA_OF)
def test_a_file_is_as_its_schema_says(name: str) -> None:
    schema = json.loads((SCHEMAS / f"{SCHEMA_OF[name]}.json").read_text())
    kind = jsonschema.validators.validator_for(schema)
    found = [error.message for error in kind(schema).iter_errors(read(name))]
    assert found == []


def test_a_bug_comes_with_what_it_takes_to_see_it() -> None:
    asked = {
        form.stem: " ".join(
            str(field["attributes"].get("label")) for field in read(str(form))["body"]
        )
        for form in FORMS
        if form.stem != "config"
    }
    assert set(asked) == {"bug", "wrong-answer", "unsupported", "question"}
    for name in ("bug", "wrong-answer"):
        assert "hasten doctor --json" in asked[name]
        assert "hasten inspect --json" in asked[name]


def test_the_citation_states_no_version_which_would_be_a_second_place() -> None:
    assert "version" not in read("CITATION.cff")
