"""Detectors through a whole run: what YOLOv3-tiny finds with its real weights before, it finds after."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tests.support.nominal_times import nominal_times
from tests.support.quick import quick_runs
from tests.support.yolo import DOG, int8_is_fastest, likeliest_int8_alone, yolov3_tiny

import hasten
from hasten.core.tensors import Tensors
from hasten.inputs.metrics.detection_f1 import DetectionF1
from hasten.measure.effort import EFFORTS

SHOWN = {"dog", "bicycle", "car"}
FLOATS = 8_858_734
LEAST = 0.3
"""Score above which a box counts: in int8 the bicycle has 0.39."""


@pytest.fixture
def yolo(monkeypatch: pytest.MonkeyPatch) -> Any:
    return yolov3_tiny(monkeypatch)


@contextlib.contextmanager
def first_settings() -> Iterator[None]:
    """Let runs try each pass's likeliest settings alone, which bounds them without a clock."""
    effort = dataclasses.replace(EFFORTS["normal"], depth="first")
    with patch.dict(EFFORTS, normal=effort):
        yield


def found(yolo: Any, answer: Callable[[Any], Tensors], names: list[str]) -> set[str]:
    """Return what is found on the photograph, with a score above the one that the run judges by."""
    given = answer(yolo.letterboxed(Image.open(DOG).convert("RGB"))[None])
    certain = np.asarray(given["scores"])[0] > LEAST
    return {names[int(label)] for label in np.asarray(given["labels"])[0][certain]}


def few_boxes(folder: Path) -> Path:
    """Write a detector that finds the boxes that it is given, of one class, by their scores."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        few_boxes (float[batch, 6, 5] x) => (float[batch, 6, 4] boxes, float[batch, 6] scores) {
            found = MatMul(x, w)
            boxes, logits = Split <axis = -1> (found, sizes)
            flat = Squeeze(logits, last)
            scores = Sigmoid(flat)
        }"""
    proto = onnx.parser.parse_model(text)
    weights = {"w": np.eye(5, dtype=np.float32), "sizes": np.array([4, 1]), "last": np.array([-1])}
    for name, weight in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(proto, folder / "few_boxes.onnx")
    return folder / "few_boxes.onnx"


@pytest.mark.parametrize(("rival", "status"), [("Rival", "certified"), ("WrongAndFast", "exact")])
def test_a_detector_is_judged_by_what_it_finds(tmp_path: Path, rival: str, status: str) -> None:
    rng = np.random.default_rng(0)
    corner, size, score = (rng.random((200, 6, n), np.float32) for n in (2, 2, 1))
    x = np.concatenate([corner, corner + size, 4 * score - 2], axis=2)
    true = np.concatenate([x[:, :, :4], np.where(score > 0.5, 0, -1)], axis=2)
    with quick_runs(races=False):
        result = hasten.optimize(
            few_boxes(tmp_path),
            {"x": x, "labels": true},
            metric=DetectionF1(),
            max_drop=0.2,
            engines=(f"tests.support.rivals:{rival}",),
            out=tmp_path / "boxes.hasten",
        )
    assert result.status == status, result.why
    assert result.asked is not None
    assert result.asked.noun == "F1"
    assert any("lost on" in said for said in result.tried.values())
    if status == "certified" and importlib.util.find_spec("pycocotools"):
        assert result.comparison is not None
        stated = {one.noun: one for one in result.comparison.figures}
        assert stated.keys() == {"mAP50", "mAP50-95"}
        assert all(one.before == one.after > 0.9 and one.bound is None for one in stated.values())


@pytest.mark.slow
def test_a_real_detector_finds_the_dog_the_bicycle_and_the_car_before_and_after(
    yolo: Any, tmp_path: Path
) -> None:
    detector = yolo.pretrained()
    assert detector.network.numbers == FLOATS
    with torch.no_grad():
        before = found(yolo, lambda x: detector(torch.from_numpy(x)), yolo.names())
    assert before >= SHOWN
    with (
        quick_runs(passes=True, races=False),
        nominal_times(int8_is_fastest),
        first_settings(),
        likeliest_int8_alone(),
    ):
        result = hasten.optimize(
            detector,
            yolo.LetterboxedCrops(160),
            metric=DetectionF1(threshold=LEAST),
            max_drop=0.2,
            calibration=10,
            engines=("openvino",),
            passes=("nncf_quantization",),
            out=tmp_path / "yolo.hasten",
        )
    assert result.status == "certified", (result.why, result.tried)
    tried = [said for label, said in result.tried.items() if "NNCF" in label]
    assert any("lost on" in said for said in tried), result.tried
    assert result.asked is not None
    assert result.asked.noun == "F1"
    with hasten.load(tmp_path / "yolo.hasten") as fast:
        after = found(yolo, lambda x: fast(x), yolo.names())
    assert after >= SHOWN
