"""The help of each command, and the docstrings of public names, keep to the language of the pages."""

import inspect
import subprocess
import sys
from pathlib import Path

import click

import hasten
from hasten.cli import main
from hasten.inputs.metrics.choice import forms
from hasten.inputs.set_metrics.choice import set_forms

ROOT = Path(__file__).parents[2]


def check(*pages: Path) -> str:
    """Return what the linter of pages says of these."""
    command = [sys.executable, str(ROOT / "scripts" / "prose"), *map(str, pages)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stderr
    return run.stdout.partition("language: ")[0]


def helps(command: click.Command, name: str) -> dict[str, str]:
    """Return the texts of a command's help, and of its own commands', by what they describe."""
    found = {name: inspect.cleandoc(command.help or "")}
    for option in command.params:
        if isinstance(option, click.Option) and option.help:
            found[f"{name} {option.opts[0]}"] = option.help
            for listed in (forms(), set_forms()):  # lists, which are no sentences
                found[f"{name} {option.opts[0]}"] = found[f"{name} {option.opts[0]}"].replace(
                    listed, "a form"
                )
    for own, below in getattr(command, "commands", {}).items():
        found |= helps(below, f"{name} {own}")
    return found


def test_help_and_docstrings_of_public_names_are_plain(tmp_path: Path) -> None:
    docs = {name: inspect.getdoc(getattr(hasten, name)) or "" for name in hasten.__all__}
    for name, texts in {"help": helps(main, "hasten"), "docstrings": docs}.items():
        page = "\n\n".join(f"## {said}\n\n{text}" for said, text in texts.items())
        (tmp_path / f"{name}.md").write_text(page)
    assert check(tmp_path / "help.md", tmp_path / "docstrings.md") == ""


def test_the_linter_reports_what_the_style_guide_says(tmp_path: Path) -> None:
    bad = {
        "The run begins anew.": "'anew': Write: again.",
        "A sentense.": "sentense ==> sentence",
        "The run " + "and the run " * 20 + "ends.": "words long",
        "The the run.": "Did you mean to repeat this word?",
    }
    good = "The run begins again. `anew`\n\n```sh\nhasten anew\n```"
    for name, text in {"bad": "\n\n".join(bad), "good": good}.items():
        (tmp_path / f"{name}.md").write_text(f"# A page\n\n{text}\n")
    said = check(tmp_path / "bad.md", tmp_path / "good.md")
    assert [one for one in bad.values() if one not in said] == []
    assert len(said.splitlines()) == len(bad)
