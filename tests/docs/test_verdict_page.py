"""The page of verdicts: what it quotes is said somewhere, and what a run notes is explained there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from hasten.certificate.verdict import Verdict

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "hasten"
PAGE = (ROOT / "docs" / "how-to" / "what-a-verdict-means.md").read_text()
QUOTED = re.findall(r"\"([^\"\n]*)\"", PAGE.partition("## Why nothing faster ships")[2])
PLACES = (
    *("optimization", "reporting", "certificate", "lightening", "measure/probe.py"),
    "measure/race.py",
    *("measure/exactness.py", "passes/already_quantized.py", "engines/installed.py"),
    *("inputs/models/named.py", "inputs/models/frozen.py", "inputs/data/class_folders.py"),
    *("inputs/data/parts.py", "inputs/models/zip_maps.py"),
)
LEAST = 12


def texts(node: ast.AST) -> list[str]:
    """Return the fixed parts of the texts in a piece of code."""
    return [
        one.value
        for one in ast.walk(node)
        if isinstance(one, ast.Constant) and isinstance(one.value, str)
    ]


@cache
def nodes() -> tuple[ast.AST, ...]:
    """Return every piece of the code that says something of a result."""
    files = [SOURCE / place for place in PLACES]
    paths = [path for file in files for path in (file.rglob("*.py") if file.is_dir() else [file])]
    return tuple(node for path in paths for node in ast.walk(ast.parse(path.read_text())))


def test_every_verdict_has_its_line() -> None:
    assert [one.value for one in Verdict if f"\n| {one.value} |" not in PAGE] == []


@pytest.mark.seconds
def test_what_the_page_quotes_is_said_by_the_code() -> None:
    said = "\n".join(
        node.value
        for node in nodes()
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    assert len(QUOTED) > 60
    missing = {
        part.strip()
        for quote in QUOTED
        for part in quote.split("…")
        if len(part.strip()) >= LEAST and part.strip() not in said
    }
    assert missing == set()


def test_what_a_run_notes_is_on_the_page() -> None:
    """A note is explained where a part of its text, between what varies, is on the page."""
    unexplained = []
    for node in nodes():
        added = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "append" and ast.unparse(node.func.value).endswith("notes"):
                added = node.args[0]
        elif isinstance(node, ast.AugAssign) and ast.unparse(node.target).endswith("notes"):
            added = node.value if isinstance(node.value, ast.List) else None
        parts = [] if added is None else [one.strip() for one in texts(added)]
        long = [one for one in parts if len(one) >= LEAST]
        if long and not any(one in PAGE for one in long):
            unexplained.append(long)
    assert unexplained == []
