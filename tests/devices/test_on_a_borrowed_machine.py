"""What `make test-gpu` does on a machine without a network, and within ten minutes."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

def test_that_needs_nothing():
    pass

@pytest.mark.device
def test_that_needs_a_device():
    pass
"""


@pytest.mark.parametrize(
    ("limit", "outcome"),
    [("-3", "1 passed, 1 skipped"), ("0", "1 passed, 1 skipped"), ("600", "2 passed")],
)
def test_a_limit_skips_what_needs_no_device_and_fails_nothing(
    tmp_path: Path, limit: str, outcome: str
) -> None:
    (tmp_path / "test_two.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), f"--begin-within={limit}", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert outcome in done.stdout
    assert ("not begun within" in done.stdout) == ("skipped" in outcome)


def said(*arguments: str) -> list[list[str]]:
    """Return what make would run, as words of each line."""
    if shutil.which("make") is None:
        pytest.skip("make isn't installed")
    told = subprocess.run(
        ["make", "--dry-run", "--always-make", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [shlex.split(line) for line in told.stdout.splitlines()]


def test_the_wheels_are_those_that_the_environment_and_the_benchmark_need() -> None:
    also = "ALSO=tensorrt-cu13"
    installed = [line[3:] for line in said(".venv-gpu/.test", also) if "scripts/install" in line]
    collected = [line for line in said("wheels-gpu", also) if "wheel" in line]
    whole, alone = (set(line) - {"--editable"} for line in installed)
    assert "tensorrt-cu13" in whole
    assert {"demo-packages.txt", "benchmarks/packages.txt"} <= alone
    assert any(whole <= {*line} and "--no-deps" not in line for line in collected)
    assert any(alone <= {*line} for line in collected)
