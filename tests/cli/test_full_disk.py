"""Runs on a disk that is really full: a file system of a few kilobytes, mounted for the test alone."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hasten.testing import models

pytestmark = pytest.mark.seconds

MOUNT = 'mount -t tmpfs -o size="$SIZE" tmpfs "$DISK"'
RUN = '"$@" --out "$DISK/b.hasten"; code=$?; ls -A "$DISK"; [ $code = 0 ] || echo "exit code $code"'
GROWN = 'mount -o remount,size=64m "$DISK"'


def on_disk_of(size: str, folder: Path, *script: str) -> subprocess.CompletedProcess[str]:
    """Run shell lines where `$DISK` has so much room, and `"$@"` is the command to optimize."""
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    unshare = shutil.which("unshare")
    shell = [unshare or "unshare", "-rm", "sh", "-c"]
    environment = {"SIZE": size, "DISK": str(disk), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    environment["HASTEN_LEDGER"] = "off"
    if unshare is None or subprocess.run([*shell, MOUNT], env=environment, check=False).returncode:
        pytest.skip("this host lets nobody mount a small disk: unshare -rm and mount -t tmpfs")
    return subprocess.run(
        [
            *(*shell, "; ".join((MOUNT, *script)), "sh"),
            *(sys.executable, "-m", "tests.support.quick", "optimize"),
            *(str(folder / "linear_classifier.onnx"), "--data", str(folder / "eval.npz")),
            *("--max-drop", "5%", "--engine", "onnxruntime", "--engine", "openvino"),
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    models.linear_classifier(tmp_path)
    x = np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32)
    np.savez(tmp_path / "eval.npz", x=x)
    return tmp_path


def test_a_disk_too_full_to_begin_gives_one_line_and_leaves_nothing(place: Path) -> None:
    done = on_disk_of("16k", place, RUN)
    assert done.stderr == (
        f"hasten: can't write {place}/disk/b.hasten.work/search: No space left on device\n"
    )
    assert done.stdout == "exit code 2\n"


def test_a_disk_full_in_a_candidates_process_stops_the_run_to_be_resumed(place: Path) -> None:
    folder = re.escape(f"{place}/disk/b.hasten.work/artifacts/")
    said = rf"^hasten: can't write {folder}[0-9a-f]{{12}}-\d: No space left on device$"
    for size in (52, 50, 54, 48, 56):  # kB; which one ends there depends on what a run writes first
        shutil.rmtree(place / "disk", ignore_errors=True)
        done = on_disk_of(f"{size}k", place, RUN, GROWN, RUN.replace('"$@"', '"$@" --resume'))
        if re.search(said, done.stderr, re.MULTILINE):
            break
    assert len(re.findall(said, done.stderr, re.MULTILINE)) == 1
    first, _, resumed = done.stdout.partition("exit code 2\n")
    assert first == "b.hasten.work\n"  # no bundle, half or whole
    assert "exit code" not in resumed
    assert resumed.endswith("b.hasten\n")
    assert "original, OpenVINO: failed" not in done.stderr
