"""The pictures of terminals that the pages show."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "terminal.py"


def drawn(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "a"), "--columns", "30", *words],
        check=False,
        capture_output=True,
        text=True,
    )


def test_a_command_is_drawn_while_it_runs_and_as_it_ended(tmp_path: Path) -> None:
    running, end = (tmp_path / f"a-{name}.svg" for name in ("running", "done"))
    code = (
        r"printf '\033[1;31mworking\033[0m \033[2mgray\033[0m\n'; "
        f"until [ -e {running} ]; do sleep 0.05; done; "
        r"printf '\033[2J\033[Hfound: ü\n'"
    )
    done = drawn(tmp_path, "--when", "working", "--title", "hasten x", "--", "bash", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(running), str(end)]
    assert all(word in running.read_text() for word in ("working", "gray", "hasten"))
    assert "working" not in end.read_text()
    assert "ü" in end.read_text()
    assert "font-face" not in end.read_text()  # no font is loaded from elsewhere


def test_a_moment_that_never_comes_is_an_error(tmp_path: Path) -> None:
    done = drawn(tmp_path, "--when", "working", "--", "bash", "-c", "echo idle")
    assert done.returncode == 1
    assert done.stderr == "terminal.py: 'working' was never there long enough for a picture\n"


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_that_fails_is_not_drawn(tmp_path: Path, code: int) -> None:
    done = drawn(tmp_path, "--", "bash", "-c", f"exit {code}")
    assert (done.returncode == 0) == (code == 0)
    assert (tmp_path / "a-done.svg").exists() == (code == 0)
    if code:
        assert done.stderr == f"terminal.py: bash -c exit {code} ended with {code}\n"
