"""Pages, docstrings of public names, messages and help texts keep to one language, which `scripts/prose` checks."""

import importlib.util
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

import hasten
from hasten.bundle.loaded import Loaded

ROOT = Path(__file__).parents[2]


@pytest.fixture
def prose(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program scripts/prose as a module."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    loader = SourceFileLoader("prose", str(ROOT / "scripts" / "prose"))
    spec = importlib.util.spec_from_loader("prose", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def check(*pages: Path) -> str:
    """Return what the linter of pages says of these."""
    command = [sys.executable, str(ROOT / "scripts" / "prose"), *map(str, pages)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stderr
    return run.stdout.partition("language: ")[0]


def test_the_linter_reads_pages_docstrings_messages_and_help(prose: ModuleType) -> None:
    places = {text: place for page in prose.everything() for place, text in page}
    whole = "Answer one request, as a call does, without blocking the event loop."
    assert whole in (Loaded.answer.__doc__ or "")
    file, _, line = places[whole].partition(":")
    assert whole in (ROOT / file).read_text().splitlines()[int(line) - 1]
    docs = {name: getattr(hasten, name).__doc__ or "" for name in hasten.__all__}
    assert [name for name, text in docs.items() if text.splitlines()[0] not in places] == []
    assert places["Make the fastest certified version of MODEL."] == "hasten optimize --help"
    said = "`x` was made with keep_exact=False: it contains no exact model"
    assert places[said].startswith("src/hasten/bundle/loading.py:")
    assert "The run begins again." not in places
    assert prose.problems([[("src/a.py:7", "It begins anew.")]]) == [
        "src/a.py:7: 'anew': Write: again."
    ]
    assert places["# Python API"] == f"{ROOT}/docs/reference/python.md:1"


def test_the_linter_reports_what_the_style_guide_says(tmp_path: Path) -> None:
    bad = {
        "The run begins anew.": "'anew': Write: again.",
        "A sentense.": "sentense ==> sentence",
        "A neighbour.": "neighbour ==> neighbor",
        "Favours.": "Favours ==> Favors",
        "The colour.": "colour ==> color",
        "Behaviour.": "Behaviour ==> Behavior",
        "Two tumours.": "'tumours': Write: tumor.",
        "The run " + "and the run " * 20 + "ends.": "words long",
        "The the run.": "Did you mean to repeat this word?",
    }
    good = "The run begins again. `anew`\n\n```sh\nhasten anew\n```"
    for name, text in {"bad": "\n\n".join(bad), "good": good}.items():
        (tmp_path / f"{name}.md").write_text(f"# A page\n\n{text}\n")
    said = check(tmp_path / "bad.md", tmp_path / "good.md")
    assert [one for one in bad.values() if one not in said] == []
    assert len(said.splitlines()) == len(bad)
