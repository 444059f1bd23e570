"""What the pages say of the repository is there."""

import re
import tomllib
from pathlib import Path

import pytest

from hasten.core.records import Value
from hasten.engines.base import Engine
from hasten.inputs.metrics.base import Metric
from hasten.inputs.pipeline.base import PostStep, Step
from hasten.inputs.set_metrics.base import SetMetric
from hasten.passes.base import Pass

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("design/*.md"), *ROOT.glob("docs/**/*.md")],
    key=lambda page: str(page),
)
OWN = "hasten."
CONFLICT = re.compile(r"^(<<<<<<<|\|\|\|\|\|\|\||>>>>>>>) ", re.MULTILINE)
NAMED = re.compile(r"`([a-z_0-9]+(?:/[a-z_0-9]+)*(?:\.py|/))`")


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_file_and_room_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    saved = re.findall(r'title="([^"]+)"', text)  # files that the reader saves
    named = [name for name in NAMED.findall(text) if name not in saved]
    places = (ROOT, ROOT / "src" / "hasten", page.parent)
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_no_page_holds_an_unfinished_merge() -> None:
    folders = ("changes", "design", "docs", "examples")
    pages = [
        *ROOT.glob("*.md"),
        *(page for name in folders for page in (ROOT / name).rglob("*.md")),
    ]
    conflicts = [str(page.relative_to(ROOT)) for page in pages if CONFLICT.search(page.read_text())]
    assert conflicts == []


@pytest.mark.parametrize(
    ("family", "name", "title"),
    [
        (Engine, "families.md", "## Engines"),
        (Pass, "families.md", "## Passes"),
        (Metric, "metrics.md", "## Which one"),
        (SetMetric, "metrics.md", "## Metrics over a set"),
        (Step, "families.md", "## Pipeline steps"),
        (PostStep, "families.md", "## Steps after the model"),
    ],
)
def test_every_member_of_a_family_has_its_line(family: type[Value], name: str, title: str) -> None:
    page = (ROOT / "docs" / "reference" / name).read_text()
    section = page.partition(title)[2].partition("\n## ")[0]
    own = [name for name, path in family.registry.items() if OWN in path]
    assert [name for name in own if not re.search(rf"`{name}[`\[:]", section)] == []


def test_each_extra_has_its_line() -> None:
    page = (ROOT / "docs" / "how-to" / "install.md").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    parts = {"demo", "docs", "onnxruntime-gpu", "release", "test"}  # no user asks for these by name
    asked = [name for name in extras if name not in parts and not name.endswith("-any")]
    assert [name for name in asked if f"`{name}`" not in page] == []
