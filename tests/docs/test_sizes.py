"""An environment that only serves is small, with hasten alone and with what a bundle needs."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from tests.support.servers import bundle_of
from tests.support.wheel import ROOT, built_wheel

import hasten
from hasten.bundle import read, requirements
from hasten.engines.base import Engine
from hasten.testing import models

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="wheels have other sizes elsewhere"),
]
MB = 10**6
ALONE_BYTES = 130 * MB
"""NumPy takes 70 MB of it, and what the environment begins with, pip and setuptools, 25 MB."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def alone(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with hasten alone; don't install into it, but into a copy."""
    folder = tmp_path_factory.mktemp("alone") / "environment"
    venv.create(folder, with_pip=True)
    uv = Path(sys.executable).with_name("uv")
    if uv.exists():  # else scripts/install gets one
        (folder / "bin" / "uv").symlink_to(uv)
    install(folder, wheel)
    return folder


def install(folder: Path, *wanted: str | Path) -> None:
    """Install packages into an environment as pip does."""
    subprocess.run(
        [ROOT / "scripts" / "install", folder, *wanted],
        cwd=ROOT,
        env=os.environ | {"UV_COMPILE_BYTECODE": "1", "UV_LINK_MODE": "copy"},
        check=True,
        capture_output=True,
    )


def size_bytes(folder: Path) -> int:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(path.stat().st_size for path in files if path.name not in ("uv", "uvx"))


def test_hasten_alone_is_small(alone: Path) -> None:
    size = size_bytes(alone)
    assert size < ALONE_BYTES, f"{size / MB:.0f} MB"


@pytest.mark.parametrize(
    ("engine", "exact", "bound"),
    [("compiled", True, 300 * MB), ("openvino", False, 330 * MB)],
)
def test_what_a_bundle_needs_is_small(
    wheel: Path, alone: Path, tmp_path: Path, engine: str, exact: bool, bound: int
) -> None:
    """The README's first bundle is compiled C, with its original on ONNX Runtime."""
    model = models.linear_classifier(tmp_path)
    bundle = bundle_of(
        tmp_path, model, engine=Engine.member(engine)(), exact=model, keep_exact=exact
    )
    first, *others = requirements(read(bundle))
    assert first == f"hasten=={hasten.__version__}"
    assert exact == any(line.startswith("onnxruntime==") for line in others)
    needs = tmp_path / "needs.txt"
    needs.write_text("\n".join([str(wheel), *others]))
    folder = shutil.copytree(alone, tmp_path / "environment", symlinks=True)
    install(folder, "--requirement", needs)
    size = size_bytes(folder)
    assert size < bound, f"{size / MB:.0f} MB"
