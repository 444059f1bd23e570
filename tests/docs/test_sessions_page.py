"""The page of sessions, run as it is written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.support.quick import quick_runs
from tests.support.servers import ServerThread, place_of

from hasten.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "sessions.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(COMMAND,) = re.findall(r"^hasten (optimize .*)$", PAGE, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_page_runs_from_the_model_to_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    making, in_python, in_the_server = BLOCKS
    told: dict[str, Any] = {}
    exec(making, told)
    with quick_runs():
        ran = CliRunner().invoke(main, shlex.split(COMMAND), catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    capsys.readouterr()
    exec(in_python, told)
    assert capsys.readouterr().out == "20 (1, 32)\n"
    with ServerThread(place_of(tmp_path / "step.hasten")) as server:
        exec(in_the_server, {**told, "server": server.host})
    assert capsys.readouterr().out == "(1, 4)\n"
