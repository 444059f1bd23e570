"""The batch curve of a run: in the bundle, on the screen, and read back by whoever serves it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.support.bundles import forge
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.bundle.evidence import batch_curve
from hasten.cli import main
from hasten.testing import models

X = np.random.default_rng(0).standard_normal((100, 16), dtype=np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curve")
    with quick_runs(curve_s=300.0):
        result = hasten.optimize(
            models.linear_classifier(folder), X, out=folder / "b", engines=("onnxruntime",)
        )
    assert not [note for note in result.notes if note.startswith("batch curve")]
    return result.bundle


def kept(bundle: Path) -> Any:
    return json.loads((bundle / "evidence" / "curve.json").read_text())


def test_a_bundle_keeps_its_curve_with_raw_rounds(bundle: Path) -> None:
    records = kept(bundle)
    assert [r["batch"] for r in records if r["sessions"] == 1] == [1, 2, 4, 8, 16, 32]
    for record in records:
        assert record["p50_ns"] > 0
        assert record["throughput_per_s"] > 0
        assert len(record["rounds"]) >= 2


def test_the_curve_is_read_back_from_the_bundle(bundle: Path) -> None:
    points = batch_curve(bundle, read(bundle))
    assert [p.batch for p in points] == [r["batch"] for r in kept(bundle)]
    best = max(points, key=lambda point: point.throughput_per_s)
    assert best.batch > 1  # a product that takes microseconds is mostly the call


def test_inspect_prints_the_curve(bundle: Path) -> None:
    shown = CliRunner().invoke(main, ["inspect", str(bundle)]).output.splitlines()
    (head,) = (i for i, line in enumerate(shown) if line.startswith("batch "))
    assert shown[head].split() == ["batch", "threads", "sessions", "p50", "samples", "a", "second"]
    assert [line.split()[0] for line in shown[head + 1 :]] == ["1", "2", "4", "8", "16", "32"]
    assert shown[head - 1] == ""


def test_a_bundle_without_a_curve_has_no_points_and_prints_none(exact_bundle: Path) -> None:
    assert batch_curve(exact_bundle, read(exact_bundle)) == ()
    assert "\nbatch" not in CliRunner().invoke(main, ["inspect", str(exact_bundle)]).output


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (
            b"[" * 10**6,
            "maximum recursion depth exceeded while decoding a JSON array from a unicode string",
        ),
        (
            b"[{}]",
            "a tuple record can't be read: Object missing required field `batch` - at `$[0]`",
        ),
        (
            b'[{"batch": 1, "threads": 1, "sessions": 1, "rounds": {}}]',
            "a point has no requests, or they took no time",
        ),
    ],
)
def test_a_damaged_curve_is_one_line(bundle: Path, tmp_path: Path, data: bytes, why: str) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    forge(copy, files={"evidence/curve.json": data})
    with pytest.raises(hasten.IntegrityError) as error:
        batch_curve(copy, read(copy))
    assert str(error.value) == f"{copy}: evidence/curve.json is damaged: {why}"
    shown = CliRunner().invoke(main, ["inspect", str(copy)])
    assert (shown.exit_code, shown.stderr) == (2, f"hasten: {error.value}\n")


def test_a_curve_is_left_out_once_the_time_limit_is_reached(tmp_path: Path) -> None:
    with quick_runs(curve_s=300.0):
        result = hasten.optimize(
            models.linear_classifier(tmp_path),
            X,
            out=tmp_path / "b",
            engines=("onnxruntime",),
            time_limit_s=0.001,
        )
    assert "batch curve: left out, because the time limit was reached" in result.notes
    assert not (result.bundle / "evidence" / "curve.json").exists()
