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
    code = r"printf '\033[1;31mworking\033[0m\n'; sleep 0.2; printf '\033[2J\033[Hfound: ü\n'"
    done = drawn(tmp_path, "--when", "working", "--title", "hasten x", "--", "bash", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / f"a-{name}.svg") for name in ("done", "running")]
    running, end = ((tmp_path / f"a-{name}.svg").read_text() for name in ("running", "done"))
    assert "working" in running
    assert "hasten" in running
    assert "working" not in end
    assert "ü" in end
    assert "font-face" not in end  # no font is loaded from elsewhere


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_that_fails_is_not_drawn(tmp_path: Path, code: int) -> None:
    done = drawn(tmp_path, "--", "bash", "-c", f"exit {code}")
    assert (done.returncode == 0) == (code == 0)
    assert (tmp_path / "a-done.svg").exists() == (code == 0)
    if code:
        assert done.stderr == f"terminal.py: bash -c exit {code} ended with {code}\n"
