"""Processes that a process started, while they come and go."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.waiting import until

import hasten
from hasten.core.processes import descendants, interpreter, programs

COME_AND_GO = "while :; do (sleep 0 & sleep 0 & sleep 0 & wait); done"


@pytest.fixture
def busy() -> Iterator[int]:
    """A shell whose children and their children begin and end all the time."""
    with subprocess.Popen(["sh", "-c", COME_AND_GO]) as shell:
        yield shell.pid
        shell.kill()


def test_a_process_that_ends_while_it_is_looked_at_is_no_error(busy: int) -> None:
    until(lambda: bool(descendants(busy)))
    for _ in range(1000):
        descendants(busy)


def test_other_programs_are_told_from_forks() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            assert process.pid in programs(os.getpid())
        finally:
            process.kill()
    assert process.pid not in programs(os.getpid())


def test_the_current_folder_is_passed_on_only_by_a_process_that_looks_there_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    apart, alike = (sys.executable, "-P"), (sys.executable,)
    rest = [entry for entry in sys.path if entry]
    for path, wanted in (
        (rest, apart),
        (["", *rest], alike),
        ([str(tmp_path), *rest], alike),
        ([*rest, str(tmp_path)], apart),  # as the folder of a my.py is added
    ):
        monkeypatch.setattr(sys, "path", path)
        assert interpreter() == wanted
    monkeypatch.setattr(sys, "path", rest)
    tmp_path.rmdir()
    assert interpreter() == apart


def test_no_process_is_started_that_imports_from_the_current_folder() -> None:
    """All of hasten's own start by `interpreter` or with -P."""
    sources = Path(hasten.__file__).parent
    started = re.compile(r'sys\.executable,(?! "-P")|sys\.executable\]')
    found = {
        path.relative_to(sources).as_posix()
        for path in sources.rglob("*.py")
        if started.search(path.read_text())
    }
    assert found == {"core/processes.py"}
