"""Every place that names the project's home names the one in pyproject.toml, so that one replacement changes it."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
PLACES = re.compile(
    r"github\.com/([\w.-]+)/hasten\b|\b([\w-]{1,39})\.github\.io/hasten\b|uses: ([\w.-]+)/hasten@"
)
PLACEHOLDER = "OWNER"
"""Stands in a workflow that people copy: an owner whom nobody has registered yet could run code there."""


def test_the_urls_have_one_form() -> None:
    found = re.fullmatch(r"https://github\.com/([\w-]+)/hasten", URLS["Homepage"])
    assert found is not None
    assert {
        "Homepage": f"https://github.com/{found[1]}/hasten",
        "Documentation": f"https://{found[1]}.github.io/hasten",
        "Source": f"https://github.com/{found[1]}/hasten",
        "Changelog": f"https://github.com/{found[1]}/hasten/blob/main/CHANGELOG.md",
        "Issues": f"https://github.com/{found[1]}/hasten/issues",
    } == URLS


def test_every_file_that_names_the_home_names_the_same_owner() -> None:
    owner = URLS["Homepage"].split("/")[3]
    told = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    if told.returncode:
        pytest.skip(f"this isn't a clone of the repository: {told.stderr.strip()}")
    named: dict[str, set[str]] = {}
    for name in filter(None, told.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and path != Path(__file__):
            data = path.read_bytes()
            text = data.decode("utf-8", errors="ignore") if b"/hasten" in data else ""
            for found in PLACES.finditer(text):
                named.setdefault(next(filter(None, found.groups())), set()).add(name)
    assert {"pyproject.toml", "mkdocs.yml", "CITATION.cff"} <= named.pop(owner)
    copied = named.pop(PLACEHOLDER, set())
    assert all(".github/" not in name for name in copied)
    assert named == {}, f"these files name another home than {URLS['Homepage']}"
