"""What the command line says of bundles that can't be used: one line, exit code 2."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hasten.cli import main
from hasten.core.records import digest


def said(*arguments: object) -> str:
    """Run a command that must end with 2, and return its one line."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert (result.exit_code, result.stdout) == (2, ""), (result.output, result.exception)
    assert result.stderr.startswith("hasten: ")
    assert result.stderr.index("\n") == len(result.stderr) - 1
    return result.stderr[len("hasten: ") : -1]


def manifest_of(bundle: Path) -> Any:
    return json.loads((bundle / "manifest.json").read_text())


def damage(bundle: Path, kind: str) -> str:
    """Spoil a bundle, and return what must be said of it after its path."""
    manifest = manifest_of(bundle)
    name = manifest["winner"]["artifact"]["path"]
    size = manifest["files"][name][1]
    if kind == "cut short":
        (bundle / name).write_bytes((bundle / name).read_bytes()[:-9])
        return f": {name} has {size - 9:,} bytes, but {size:,} were written"
    if kind == "tampered with":
        data = bytearray((bundle / name).read_bytes())
        data[-1] ^= 1
        (bundle / name).write_bytes(data)
        return f": {name} was changed after it was written"
    if kind == "missing a file":
        (bundle / name).unlink()
        return f": {name} is missing"
    if kind == "relabelled":
        manifest["status"] = "certified"
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        return ": the manifest was changed after it was written"
    if kind == "absurd":
        manifest["pipeline"] = {"steps": [{"type": "center_crop", "size": 10**9}]}
    else:
        manifest["schema"] = 99
    manifest.pop("digest")
    manifest["digest"] = digest(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    if kind == "absurd":
        return (
            ": the manifest is damaged: center_crop.size=1000000000: give sides of at least 1 "
            "pixel, and at most 67108864 pixels in all"
        )
    return " was written by a newer version of hasten (schema 99, this one reads 1); upgrade hasten"


@pytest.mark.parametrize(
    "kind", ["cut short", "tampered with", "missing a file", "relabelled", "absurd", "newer"]
)
def test_a_bundle_that_is_not_as_it_was_written(
    exact_bundle: Path, tmp_path: Path, kind: str
) -> None:
    bundle = tmp_path / "b.hasten"
    shutil.copytree(exact_bundle, bundle)
    line = f"{bundle}{damage(bundle, kind)}"
    npz = tmp_path / "eval.npz"
    np.savez(npz, x=np.ones((60, 16), np.float32))
    assert said("inspect", bundle) == line
    assert said("bench", bundle) == line
    assert said("certify", bundle, "--data", npz, "--max-drop", "5%") == line


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    assert said("inspect", tmp_path / "b") == f"no bundle at {tmp_path}/b: no such file or folder"
    assert said("inspect", tmp_path) == f"{tmp_path} is not a bundle: it has no manifest.json"
