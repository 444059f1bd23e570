"""A wheel of the code under test, as an index would have it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
_BESIDE = "pyproject.toml", "setup.py", "README.md", "LICENSE"


def tracked(folder: str) -> list[str]:
    """Return the files below a folder that git has; skip where this is no clone."""
    told = subprocess.run(
        ["git", "ls-files", "-z", folder], cwd=ROOT, check=False, capture_output=True, text=True
    )
    if told.returncode:
        pytest.skip(f"this isn't a clone of the repository: {told.stderr.strip()}")
    return [name for name in told.stdout.split("\0") if name and (ROOT / name).exists()]


def built_wheel(folder: Path) -> Path:
    """Build a wheel of hasten from the files that git has, in an empty folder."""
    for name in (*tracked("src"), *_BESIDE):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    subprocess.run(
        [sys.executable, "-c", _BUILD, folder],
        cwd=folder / "source",
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel
