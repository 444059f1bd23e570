"""Processes that a process started, while they come and go."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from tests.support.waiting import until

from hasten.core.processes import descendants, programs

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
