"""Whole runs of models with operators that compiled C doesn't cover: a part is compiled, where that is proposed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from tests.support import varying
from tests.support.nominal_times import Asked, nominal_times
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.reporting.result import Result
from hasten.testing import models

pytestmark = pytest.mark.seconds

ENGINES = ["onnxruntime", "compiled"]
LABEL = "original, compiled C for most of the model and ONNX Runtime for the rest"


def split_is_fastest(asked: Asked) -> Sequence[int]:
    """Return the latencies of engines, of which the one of two parts is the fastest on any machine."""
    return (100_000,) if asked["engine"]["type"] == "split" else (400_000,)


def detector(folder: Path) -> Path:
    """Write the detector with scores that differ in more than their last bits."""
    path = varying.detector(folder)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "w_boxes":
            small = onnx.numpy_helper.to_array(tensor) / 16
            tensor.CopyFrom(onnx.numpy_helper.from_array(small, "w_boxes"))
        if tensor.name == "least":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([0.55], np.float32), "least"))
    onnx.save(model, path)
    return path


def labels(result: Result) -> list[str]:
    return [outcome.label for outcome in result.outcomes]


def test_a_detector_of_two_parts_ships_and_gives_its_boxes_to_eight_threads(
    tmp_path: Path,
) -> None:
    model = detector(tmp_path)
    with nominal_times(split_is_fastest), quick_runs():
        result = hasten.optimize(
            model,
            varying.pictures(400),
            metric="agreement@kind",
            max_drop=0.1,
            out=tmp_path / "b.hasten",
            engines=ENGINES,
        )
    assert read(tmp_path / "b.hasten").winner.label == LABEL, result.outcomes
    given = varying.pictures(60, seed=2)["picture"]
    session = onnxruntime.InferenceSession(model)
    with hasten.load(tmp_path / "b.hasten") as loaded, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda row: loaded(row[None]), given))
    for row, answer in zip(given, answers, strict=True):
        wanted = session.run(["selected", "boxes"], {"picture": row[None]})
        np.testing.assert_array_equal(answer["selected"], wanted[0])
        np.testing.assert_allclose(answer["boxes"], wanted[1], atol=1e-5)


def test_a_model_that_is_covered_is_never_cut(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((400, 16), dtype=np.float32)
    with quick_runs(races=False):
        result = hasten.optimize(
            models.linear_classifier(tmp_path),
            {"x": x},
            metric="agreement",
            max_drop=0.1,
            out=tmp_path / "b.hasten",
            engines=ENGINES,
        )
    assert "original, compiled C" in labels(result)
    assert not [label for label in labels(result) if "for the rest" in label]
