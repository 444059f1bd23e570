"""Runs from bytes to decision that decode pictures at a part of their size, where the certificate allows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from tests.support.models import CONVNET, built
from tests.support.quick import quick_runs

import hasten
from hasten.bundle.folder import read
from hasten.core.model import Model
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.image import CenterCrop, Decode, Normalize, Resize, ToLayout
from hasten.inputs.pipeline.smaller import decoded_smaller
from hasten.reporting.result import Result

STEPS = (
    Decode(),
    Resize(18, "bilinear"),
    CenterCrop(16),
    Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ToLayout(),
)
PIPELINE = Pipeline(STEPS, (TopK(2),))
OPTIONS: dict[str, Any] = {
    "metric": "agreement",
    "max_drop": 0.2,
    "calibration": 20,
    "engines": ("onnxruntime",),
    "end_to_end": True,
    "pipeline": PIPELINE,
}


def photographs(folder: Path, side: int = 400, suffix: str = "jpg", count: int = 90) -> Path:
    """Write parts of scikit-learn's two photographs, each of another size."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        photo = load_sample_images().images[number % 2]
        size = side - int(random.integers(0, side // 8))
        top, left = (int(random.integers(0, most - size)) for most in photo.shape[:2])
        part = Image.fromarray(photo[top : top + size, left : left + size])
        part.save(folder / f"{number:03}.{suffix}")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decoding")


@pytest.fixture(scope="module")
def model(place: Path) -> Model:
    return built(place, CONVNET)


@pytest.fixture(scope="module")
def photos(place: Path) -> Path:
    return photographs(place / "photos")


@pytest.fixture(scope="module")
def made(place: Path, model: Model, photos: Path) -> Result:
    with quick_runs(races=False, stages_s=1.0):
        return hasten.optimize(model.path, photos, out=place / "bundle", **OPTIONS)


def test_the_pictures_of_what_ships_are_decoded_smaller(made: Result) -> None:
    manifest = read(made.bundle)
    print("\n".join(made.notes), manifest.least, made.why, made.rows)
    print(hasten.reporting)
    assert manifest.least == 36
