"""The gallery of examples names each of them, its links lead somewhere, and its pictures are small and need no network."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("rich")

EXAMPLES = Path(__file__).parents[2] / "examples"
GALLERY = (EXAMPLES / "README.md").read_text()
PICTURES = sorted((EXAMPLES / "pictures").glob("*.svg"))
MOST_BYTES = 150_000


def test_the_gallery_has_a_section_for_each_example() -> None:
    examples = {
        path.stem
        for path in EXAMPLES.iterdir()
        if path.suffix == ".py" or (path.is_dir() and path.name not in {"pictures", "__pycache__"})
    }
    linked = set(re.findall(r"^## \[.*\]\((\w+)(?:/README\.md|\.py)\)$", GALLERY, re.MULTILINE))
    assert linked == examples


@pytest.mark.parametrize(
    "page", sorted(EXAMPLES.glob("**/README.md")), ids=lambda page: page.parent.name
)
def test_every_link_of_an_example_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_picture_is_shown_and_all_together_are_small() -> None:
    shown = re.findall(r"!\[[^\]]+\]\((pictures/[\w.-]+)\)", GALLERY)
    assert sorted(shown) == [f"pictures/{path.name}" for path in PICTURES]
    assert sum(path.stat().st_size for path in PICTURES) < MOST_BYTES
    assert [path.name for path in PICTURES if b"url(http" in path.read_bytes()] == []


def test_a_picture_shows_the_lines_that_came(tmp_path: Path) -> None:
    picture = tmp_path / "said.svg"
    passed_on = subprocess.run(
        [
            sys.executable,
            EXAMPLES / "pictures/draw.py",
            picture,
            "--title",
            "a < b",
            "--first",
            "2",
        ],
        input="one & two\nthree\nfour\n",
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert passed_on == "one & two\nthree\nfour\n"
    drawn = ElementTree.parse(picture).getroot()
    text = "".join(drawn.itertext()).replace("\xa0", " ")
    assert "one & two" in text
    assert "three" in text
    assert "four" not in text
    assert drawn.get("aria-label") == "What a < b prints"
