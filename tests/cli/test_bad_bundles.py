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


HIDDEN = "\u00ad\u061c\u200b\u200c\u200d\u200e\u200f\u2060\u2064\ufeff\U000e0041"


def inspected(bundle: Path, **fields: Any) -> str:
    """Return what `inspect` says of a bundle with other fields in its manifest."""
    record = manifest_of(bundle)
    record.update(fields)
    record.pop("digest")
    (bundle / "manifest.json").write_text(json.dumps({**record, "digest": digest(record)}))
    result = CliRunner().invoke(main, ["inspect", str(bundle)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_inspect_writes_out_what_nobody_sees(exact_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "b.hasten"
    shutil.copytree(exact_bundle, bundle)
    record = manifest_of(bundle)
    record["winner"]["label"] = f"a{HIDDEN}b"
    record["target"]["processor"] += HIDDEN
    shown = inspected(
        bundle,
        winner=record["winner"],
        target=record["target"],
        why=f"sure{HIDDEN}",
        created=HIDDEN,
        certificate={"population": f"dogs{HIDDEN}"},
    )
    assert (
        shown.count(
            "\\xad\\u061c\\u200b\\u200c\\u200d\\u200e\\u200f\\u2060\\u2064\\ufeff\\U000e0041"
        )
        >= 5
    )
    assert all(line.isprintable() for line in shown.splitlines())


def test_inspect_shows_records_of_other_types(exact_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "b.hasten"
    shutil.copytree(exact_bundle, bundle)
    shown = inspected(bundle, certificate={"population": ["cats"]}, sealed={"look": {"a": 1}})
    assert "\npopulation:   ['cats']\n" in shown
    assert "\nlook:         {'a': 1}\n" in shown
