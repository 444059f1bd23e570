"""The folder: what is written comes back, and what was damaged is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.bundles import built, forge, stated

from hasten.bundle import Part, load, read, write
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError, IntegrityError
from hasten.testing import models

ENGINE = OnnxRuntime(threads=1)


def refused(bundle: Path, kind: type[InputError] = IntegrityError) -> str:
    with pytest.raises(InputError) as error:
        read(bundle)
    assert type(error.value) is kind
    return str(error.value)


# -- write, read, load


def test_a_bundle_comes_back_as_it_was_written(tmp_path: Path, winner: Part) -> None:
    path = tmp_path / "deep" / "model.hasten"
    written = write(path, stated(winner, winner), {"trials.json": {"a": 1}})
    assert read(path) == written
    assert sorted(written.files) == ["evidence/trials.json", "model/linear_classifier.onnx"]
    assert written.winner.artifact.path == Path("model/linear_classifier.onnx")
    assert [p.name for p in path.parent.iterdir()] == ["model.hasten"]


def test_an_exact_model_of_its_own_has_a_folder_of_its_own(tmp_path: Path, winner: Part) -> None:
    exact = built(tmp_path, models.small_cnn(tmp_path), ENGINE)
    written = write(tmp_path / "b", stated(winner, exact), {})
    assert sorted(written.files) == ["exact/small_cnn.onnx", "model/linear_classifier.onnx"]
    with load(tmp_path / "b", which="exact") as loaded:
        assert loaded(np.zeros((1, 3, 32, 32), np.float32))["logits"].shape == (1, 10)


def test_an_older_bundle_is_replaced(bundle: Path, winner: Part) -> None:
    write(bundle, stated(winner, None, why="newer"), {})
    assert read(bundle).why == "newer"
    assert not (bundle / "report.html").exists()
    assert [p for p in bundle.parent.iterdir() if p.name.startswith(".")] == []


def test_what_is_no_bundle_is_never_replaced(tmp_path: Path, winner: Part) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError) as error:
        write(tmp_path / "mine", stated(winner, None), {})
    path = tmp_path / "mine"
    assert str(error.value) == f"{path} exists and is not a bundle; give another out= or remove it"
    assert (path / "thesis.txt").read_text() == "years of work"


FULL = """
import resource, signal, sys
from pathlib import Path
from hasten.bundle import read, write
from hasten.errors import InputError
from dataclasses import replace
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
old = read(path)
artifact = old.winner.artifact
inside = replace(artifact, path=path / artifact.path)
winner = replace(old.winner, artifact=inside)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    write(path, replace(old, winner=winner, exact=None), {"big.json": ["x" * 100_000]})
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("most_bytes", [100, 20_000])
def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(bundle: Path, most_bytes: int) -> None:
    before = sorted(bundle.parent.iterdir())
    command = [sys.executable, "-c", FULL, str(bundle), str(most_bytes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == f"can't write {bundle}: File too large\n"
    assert sorted(bundle.parent.iterdir()) == before
    assert read(bundle).why == "sure enough"


# -- damage


def test_no_bundle_at_all_is_the_callers_error(tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert refused(path, InputError) == f"no bundle at {path}: no such file or folder"
    path.mkdir()
    assert refused(path, InputError) == f"{path} is not a bundle: it has no manifest.json"
    file = tmp_path / "model.onnx"
    file.touch()
    assert refused(file, InputError) == f"{file} is not a bundle: it has no manifest.json"


def test_a_truncated_file_is_named(bundle: Path) -> None:
    file = bundle / "model" / "linear_classifier.onnx"
    size = file.stat().st_size
    os.truncate(file, 10)
    assert refused(bundle) == (
        f"{bundle}: model/linear_classifier.onnx has 10 bytes, but {size:,} were written"
    )


def test_a_changed_file_is_named(bundle: Path) -> None:
    file = bundle / "model" / "linear_classifier.onnx"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert refused(bundle) == (
        f"{bundle}: model/linear_classifier.onnx was changed after it was written"
    )


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "report.html").unlink()
    assert refused(bundle) == f"{bundle}: report.html is missing"


def test_a_changed_manifest_is_refused(bundle: Path) -> None:
    file = bundle / "manifest.json"
    file.write_text(file.read_text().replace("sure enough", "very sure!!"))
    assert refused(bundle) == f"{bundle}: the manifest was changed after it was written"


def test_a_truncated_manifest_is_refused(bundle: Path) -> None:
    file = bundle / "manifest.json"
    os.truncate(file, 20)
    assert refused(bundle).startswith(f"{file} can't be read as JSON: ")


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": "1"}'])
def test_a_manifest_without_a_schema_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    assert refused(bundle) == f"{bundle}: the manifest is damaged: it states no schema"


def test_a_manifest_nested_without_end_is_refused(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("[" * 200_000)
    assert refused(bundle).startswith(f"{bundle / 'manifest.json'} can't be read as JSON: ")


def test_a_manifest_too_large_to_read_is_not_read(bundle: Path) -> None:
    os.truncate(bundle / "manifest.json", (4 << 20) + 1)
    assert refused(bundle) == f"{bundle}: the manifest is larger than 4 MiB"


def test_a_bundle_by_a_newer_version_says_what_to_do(bundle: Path) -> None:
    forge(bundle, lambda record: record.update(schema=2, something="new"))
    assert refused(bundle) == (
        f"{bundle} was written by a newer version of hasten (schema 2, this one reads 1); "
        "upgrade hasten"
    )


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "model/../../secret", "model/./x"])
def test_a_path_that_leads_out_is_refused(bundle: Path, name: str) -> None:
    (bundle.parent / "secret").touch()
    forge(bundle, lambda record: record["files"].update({name: ["0", 0]}))
    assert refused(bundle) == f"{bundle}: {name!r} leads out of the bundle"


def test_a_symbolic_link_is_refused_be_it_the_file_or_a_folder_on_the_way(bundle: Path) -> None:
    file = bundle / "model" / "linear_classifier.onnx"
    outside = bundle.parent / "outside"
    shutil.move(bundle / "model", outside)
    (bundle / "model").symlink_to(outside)
    name = "model/linear_classifier.onnx"
    assert refused(bundle) == f"{bundle}: {name!r} leads out of the bundle"
    (bundle / "model").unlink()
    (bundle / "model").mkdir()
    file.symlink_to(outside / file.name)
    assert refused(bundle) == f"{bundle}: {name!r} leads out of the bundle"
    file.unlink()
    file.symlink_to(file)
    assert refused(bundle) == f"{bundle}: {name} is missing"  # a link to itself is no file


def test_a_name_too_long_for_a_file_is_refused(bundle: Path) -> None:
    name = "x" * 5000
    forge(bundle, lambda record: record["files"].update({name: ["0", 0]}))
    assert refused(bundle) == f"{bundle}: {name[:100]} can't be read: File name too long"


def test_a_model_that_is_not_among_the_checked_files_is_refused(bundle: Path) -> None:
    def unlisted(record: dict[str, Any]) -> None:
        record["winner"]["artifact"]["path"] = "../built-linear_classifier/linear_classifier.onnx"

    forge(bundle, unlisted)
    with pytest.raises(IntegrityError) as error:
        load(bundle)
    stray = "../built-linear_classifier/linear_classifier.onnx"
    assert str(error.value) == f"{bundle}: {stray} is not listed in the manifest"
