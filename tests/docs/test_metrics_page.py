"""The page of metrics: its Python blocks say what is so, and its commands are read."""

import doctest
import re
import shlex
from pathlib import Path

import pytest

from hasten.cli import main
from hasten.inputs.metrics import named_metric
from hasten.inputs.metrics.base import Metric
from hasten.inputs.set_metrics import parse_set_metric

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text()
COMMANDS = re.findall(r"^hasten (.*)$", PAGE, re.MULTILINE)
OWN = re.search(r"^```python\n(# my\.py\n.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a reader of the page works in."""
    assert OWN is not None
    (tmp_path / "my.py").write_text(OWN[1])
    (tmp_path / "vocab.txt").write_text("a\nb\n \n")
    (tmp_path / "tags.txt").write_text("O\nB-PER\nI-PER\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_blocks_give_what_they_say(folder: Path) -> None:
    pytest.importorskip("rapidfuzz")
    flags = doctest.NORMALIZE_WHITESPACE
    page = doctest.DocTestParser().get_doctest(PAGE.replace("```", ""), {}, "metrics.md", None, 0)
    assert len(page.examples) > 30
    said: list[str] = []
    doctest.DocTestRunner(optionflags=flags).run(page, out=said.append)
    assert said == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_read_and_names_metrics_that_there_are(folder: Path, command: str) -> None:
    words = shlex.split(command)
    assert words[0] == "optimize"
    above = main.context_class(main, info_name="hasten", **main.context_settings)
    with main.commands["optimize"].make_context("optimize", words[1:], parent=above) as context:
        named, reported = context.params["metric"], context.params["report"]
    assert named or reported
    if named:
        named_metric(named)
    for text in reported:
        parse_set_metric(text)


def test_every_metric_has_an_example(folder: Path) -> None:
    named = {re.split("[:@]", text)[0] for text in re.findall(r"--metric (\S+)", PAGE)}
    own = {name for name, path in Metric.registry.items() if path.startswith("hasten.")}
    alone = {name for name in own if f'parse_metric("{name}' in PAGE}
    assert own - named - alone - {"custom", "all_of", "each_output", "top5"} == set()
