"""Whole runs in which the model takes over the normalization of pixels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from tests.support.models import CONVNET, built
from tests.support.quick import quick_runs

import hasten
from hasten.bundle.folder import read
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.pipeline.base import Pipeline, Step
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.image import CenterCrop, Decode, Normalize, Resize, ToLayout
from hasten.optimization.folding import Prepared, fold, same_decision

NORMALIZE = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STEPS = (Decode(), Resize(18, "bilinear"), CenterCrop(16), NORMALIZE, ToLayout())
SMALLER = """
<ir_version: 10, opset_import: ["": 20]>
smaller (float[batch, 3, 16, 16] picture) => (float[batch, 5] scores)
<float[5, 3, 3, 3] w1, float[5] b1>
{
    c = Conv <strides = [4, 4]> (picture, w1, b1)
    p = GlobalAveragePool (c)
    scores = Flatten (p)
}
"""
PIPELINE = Pipeline(STEPS, (TopK(2),))
OPTIONS: dict[str, Any] = {"metric": "agreement", "max_drop": 0.2, "calibration": 20}


def pictures(folder: Path, count: int = 90) -> Path:
    """Write smooth pictures of many sizes, as photos are."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        rough = Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8))
        size = (int(random.integers(20, 60)), int(random.integers(20, 60)))
        rough.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("folding")


@pytest.fixture(scope="module")
def model(place: Path) -> Model:
    return built(place, CONVNET)


@pytest.fixture(scope="module")
def photos(place: Path) -> Path:
    return pictures(place / "photos")


@pytest.fixture(scope="module")
def bundle(place: Path, model: Model, photos: Path) -> Path:
    """A bundle in int8, made end to end."""
    out = place / "bundle"
    with quick_runs(passes=True):
        hasten.optimize(
            model.path,
            photos,
            pipeline=PIPELINE,
            end_to_end=True,
            out=out,
            engines=("onnxruntime", "openvino"),
            passes=("nncf_quantization", "static_quantization"),
            **OPTIONS,
        )
    return out


def answers(model: Model, prepared: Array) -> Array:
    (scores,) = onnxruntime.InferenceSession(str(model.path)).run(None, {"x": prepared[None]})
    return np.asarray(scores)


def test_the_bundle_takes_pixels_and_decides_as_the_original_does(
    bundle: Path, model: Model, photos: Path
) -> None:
    manifest = read(bundle)
    assert manifest.pipeline is not None
    assert manifest.pipeline.steps == (*STEPS[:3], ToLayout("HWC", "uint8"))
    assert manifest.pipeline.folded == STEPS[3:]
    assert manifest.source_sha256 == model.sha256
    with hasten.load(bundle, which="exact") as exact:
        assert [spec.dtype for spec in exact.inputs] == ["uint8"]
        for file in sorted(photos.iterdir())[:5]:
            decision = exact.decide(file.read_bytes())
            scores = answers(model, PIPELINE(file))[0]
            assert [one["class"] for one in decision] == list(np.argsort(-scores)[:2])
            assert exact.decide(file) == decision
    assert all(request["x"].dtype == np.uint8 for request in hasten.load(bundle).requests)


def test_the_result_says_what_was_folded_and_what_preparing_took(bundle: Path) -> None:
    notes = (bundle / "evidence" / "result.json").read_text()
    assert (
        "the model takes pixels as uint8 and normalizes them itself; preparing a picture" in notes
    )


@pytest.mark.parametrize("pipeline", [None, PIPELINE, Pipeline(STEPS)])
def test_certify_takes_the_pipeline_of_the_original_or_none(
    bundle: Path, photos: Path, pipeline: Pipeline | None
) -> None:
    outcome = hasten.certify(bundle, photos, pipeline=pipeline, max_drop=0.2)
    assert outcome.kind == "regression check"


def test_certify_refuses_another_normalization_than_the_models_own(
    bundle: Path, photos: Path
) -> None:
    other = Pipeline((*STEPS[:3], Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ToLayout()))
    with pytest.raises(InputError) as error:
        hasten.certify(bundle, photos, pipeline=other, max_drop=0.2)
    assert str(error.value) == (
        "the bundle's model normalizes pixels itself, and the given pipeline normalizes them "
        "differently: give the pipeline that the bundle was made with, or none"
    )


def test_the_rival_is_given_what_it_takes(
    bundle: Path, model: Model, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "def predict(x):\n"
        "    assert x.dtype == 'float32' and x.shape == (1, 3, 16, 16), (x.dtype, x.shape)\n"
        "    assert x.min() < 0, 'not normalized'\n"
        "    return x[:, :, 0, 0]\n"
    )
    for against in (model.path, f"{tmp_path / 'mine.py'}:predict"):
        for data in (photos, None):
            with quick_runs():
                found = hasten.bench(bundle, against=against, data=data)
            assert found.speedup > 0
            assert any("already normalized" in note for note in found.notes)
    with quick_runs():
        assert not any("already normalized" in note for note in hasten.bench(bundle).notes)


def test_data_that_come_prepared_leave_the_model_as_it_is(model: Model, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((60, 3, 16, 16), np.float32)
    with quick_runs():
        result = hasten.optimize(
            model.path, (x, None), end_to_end=True, out=tmp_path / "b", **OPTIONS
        )
    assert result.notes[0] == (
        "pixels are normalized outside the model: the data is already prepared, not a folder of "
        "images"
    )
    with hasten.load(tmp_path / "b") as loaded:
        assert loaded.inputs[0].dtype == "float32"


def test_smaller_models_are_folded_too(
    model: Model, photos: Path, place: Path, tmp_path: Path
) -> None:
    smaller = built(tmp_path / "small", SMALLER)
    with quick_runs():
        hasten.optimize(
            model.path,
            photos,
            small_model=smaller.path,
            pipeline=Pipeline(STEPS),
            end_to_end=True,
            engines=("onnxruntime",),
            out=tmp_path / "b",
            **OPTIONS,
        )
    trials = json.loads((tmp_path / "b" / "evidence" / "trials.json").read_text())
    smaller_ones = [one for one in trials if one["candidate"]["passes"]]
    assert smaller_ones
    assert not any(one["failure"] for one in smaller_ones)


@dataclass(frozen=True)
class Inverted(Normalize):
    """A user's own step that a graph would take for `Normalize`, and that computes otherwise."""

    def __call__(self, value: Array) -> Array:
        return -super().__call__(value)

    def joined(self, following: Step) -> Step | None:
        return None


def test_a_model_whose_answers_would_change_is_not_folded(
    model: Model, photos: Path, tmp_path: Path
) -> None:
    pipeline = Pipeline((*STEPS[:3], Inverted(NORMALIZE.mean, NORMALIZE.std), ToLayout()))
    given = Prepared(model, pipeline, ImageFolder(photos, pipeline, "x"))
    made, note = fold(given, [OnnxRuntime], Target.host().with_threads(1), tmp_path)
    assert made is given
    assert note.startswith("pixels are normalized outside the model: answers differ by ")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([{"class": 1, "score": 0.5}], [{"class": 1, "score": 0.5000001}], True),
        ([{"class": 1, "score": 0.5}], [{"class": 2, "score": 0.5}], False),
        ([{"class": 1, "score": 0.5}], [], False),
        ([{"class": 1, "score": 0.5}], [{"class": 1, "score": 0.6}], False),
        ({"label": "cat"}, {"label": "hen"}, False),
        (np.ones(3), np.ones(3) + 1e-6, True),
        (np.ones(3), np.ones(4), False),
    ],
)
def test_decisions_are_the_same_but_for_rounding(one: Any, other: Any, same: bool) -> None:
    assert same_decision(one, other) is same
