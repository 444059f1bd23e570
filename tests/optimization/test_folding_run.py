"""Whole runs in which the model takes over the normalization of pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from tests.support.models import CONVNET, built
from tests.support.nominal_times import Asked, nominal_times
from tests.support.quick import quick_runs

import hasten
from hasten.bundle.folder import read
from hasten.core.model import Model
from hasten.core.objects import import_path
from hasten.core.progress import Progress
from hasten.core.registry import Registry
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.data.splits import Splits, split
from hasten.inputs.pipeline.base import Pipeline, Step
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.image import CenterCrop, Decode, Normalize, Resize, ToLayout
from hasten.measure.deadline import Deadline
from hasten.optimization.folding import same_decision
from hasten.reporting.result import Result

pytestmark = pytest.mark.seconds

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
BEFORE = ["decode, resize, center_crop", "normalize, to_layout"]
OPTIONS: dict[str, Any] = {"metric": "agreement", "max_drop": 0.2, "calibration": 20}


AS_GIVEN = "the bundle holds the model as it was given, and times are those of the form that takes pixels as uint8"


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


def int8_is_faster(asked: Asked) -> Sequence[int]:
    operators = {node.op_type for node in onnx.load(asked["artifact"]["path"]).graph.node}
    return (10_000,) if "QuantizeLinear" in operators else (40_000,)


@pytest.fixture(scope="module", params=["scripted", pytest.param("raced", marks=pytest.mark.slow)])
def bundle(request: pytest.FixtureRequest, place: Path, model: Model, photos: Path) -> Path:
    """A bundle made end to end: in int8, or with whichever of two engines and two passes is the fastest."""
    out: Path = place / request.param
    options: dict[str, Any] = {**OPTIONS, "pipeline": PIPELINE, "end_to_end": True, "out": out}
    if request.param == "raced":
        engines, passes = ("onnxruntime", "openvino"), ("nncf_quantization", "static_quantization")
        with quick_runs(passes=True):
            hasten.optimize(model.path, photos, engines=engines, passes=passes, **options)
        return out
    options |= {"engines": ("onnxruntime",), "passes": ("static_quantization",), "effort": "quick"}
    with quick_runs(passes=True, races=False), nominal_times(int8_is_faster):
        hasten.optimize(model.path, photos, **options)
    return out


def answers(model: Model, prepared: Array) -> Array:
    (scores,) = onnxruntime.InferenceSession(str(model.path)).run(None, {"x": prepared[None]})
    return np.asarray(scores)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_of_gray_pictures_takes_one_channel_of_pixels(
    channels: int, place: Path, model: Model, photos: Path
) -> None:
    """With three means, one channel of gray becomes the three that the model takes."""
    if channels == 1:
        text = CONVNET.replace("float[batch, 3", "float[batch, 1").replace(
            "16, 3, 3, 3", "16, 1, 3, 3"
        )
        (place / "gray").mkdir()  # the model of three channels stays
        model = built(place / "gray", text)
    normalize = NORMALIZE if channels == 3 else Normalize((0.1307,), (0.3081,))
    steps = (Decode(colors="gray"), *STEPS[1:3], normalize, ToLayout())
    out = place / f"gray-{channels}"
    with quick_runs(races=False):
        hasten.optimize(
            model.path,
            photos,
            pipeline=Pipeline(steps, (TopK(2),)),
            end_to_end=True,
            out=out,
            engines=("onnxruntime",),
            **OPTIONS,
        )
    manifest = read(out)
    assert manifest.pipeline is not None
    assert manifest.pipeline.folded == steps[3:]
    assert manifest.winner.artifact.inputs[0].shape[1:] == (16, 16, 1)
    with hasten.load(out, which="exact") as exact:
        for file in sorted(photos.iterdir())[:5]:
            scores = answers(model, Pipeline(steps)(file))[0]
            found = exact.decide(file.read_bytes())
            assert [one["class"] for one in found] == np.argsort(-scores)[:2].tolist()


def test_the_bundle_takes_pixels_and_decides_as_the_original_does(
    bundle: Path, model: Model, photos: Path
) -> None:
    manifest = read(bundle)
    assert manifest.pipeline is not None
    assert manifest.pipeline.steps == (*STEPS[:3], ToLayout("HWC", "uint8"))
    assert manifest.pipeline.folded == STEPS[3:]
    assert manifest.source_sha256 == model.sha256
    if bundle.name == "scripted":
        assert manifest.winner.label.startswith("int8")
    assert manifest.winner.artifact.inputs[0].dtype == "uint8"
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
        "the model takes pixels as uint8 and normalizes them itself; no answer changed on 21 samples of the "
        "search split; preparing a picture" in notes
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
            with quick_runs(races=False):
                found = hasten.bench(bundle, against=against, data=data)
            assert found.speedup > 0
            assert any("already normalized" in note for note in found.notes)
    with quick_runs(races=False):
        assert not any("already normalized" in note for note in hasten.bench(bundle).notes)


def test_data_that_come_prepared_leave_the_model_as_it_is(model: Model, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((60, 3, 16, 16), np.float32)
    with quick_runs(races=False):
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
    with quick_runs(races=False):
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
    with quick_runs(races=False):
        result = hasten.optimize(
            model.path, photos, pipeline=pipeline, end_to_end=True, out=tmp_path / "b", **OPTIONS
        )
    assert (
        "pixels are normalized outside the model: with pixels normalized inside, 21 answers changed of "
        "21 in the search" in result.notes
    )
    with hasten.load(tmp_path / "b") as loaded:
        assert loaded.inputs[0].dtype == "float32"


@pytest.fixture(autouse=True)
def plug_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a plug-in that look to a run like `Normalize`."""
    own = {"inverted": import_path(Inverted), "shifted": import_path(Shifted)}
    known = Registry("step", "hasten.steps", {**Step.registry, **own})
    monkeypatch.setattr(Step, "registry", known)


SHIFT = 2e-5
COUNT = 1000


@dataclass(frozen=True)
class Shifted(Normalize):
    """A user's own step whose numbers differ from those of the graph by far less than rounding may explain."""

    def __call__(self, value: Array) -> Array:
        return super().__call__(value) + np.float32(SHIFT)

    def joined(self, following: Step) -> Step | None:
        return None


CLOSE = Pipeline((Decode(), Shifted((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), ToLayout()))
MEANS = """
<ir_version: 10, opset_import: ["": 20]>
means (float[batch, 3, 8, 8] picture) => (float[batch, 2] scores)
<float[3, 2] weight = {1, 0, 0, 0, 0, 0}, float[2] bias = {0, CLASS}>
{
    p = GlobalAveragePool (picture)
    f = Flatten (p)
    scores = Gemm (f, weight, bias)
}
"""


@pytest.fixture(scope="module")
def reds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand pictures whose means of red differ, from dark to bright."""
    folder = tmp_path_factory.mktemp("thousand") / "photos"
    folder.mkdir()
    for number in range(COUNT):
        pixels = np.full((8, 8, 3), 60, np.uint8)
        pixels.reshape(-1, 3)[: number % 64, 0] += 1
        pixels[:, :, 0] += number // 64
        pixels[:, :, 1] = np.random.default_rng(number).integers(0, 256, (8, 8))
        Image.fromarray(pixels).save(folder / f"{number:04}.png")
    return folder


def with_one_close_call(folder: Path, file: Path) -> Path:
    """Write a model that decides of one picture otherwise where 2e-5 is missing from its numbers."""
    mean = float(CLOSE(file)[0].astype(np.float64).mean())
    folder.mkdir()
    return built(folder, MEANS.replace("CLASS", repr(mean - SHIFT / 2))).path


def run(model: Path, photos: Path, out: Path, **more: Any) -> Result:
    with quick_runs(races=False):
        return hasten.optimize(
            model,
            photos,
            pipeline=CLOSE,
            end_to_end=True,
            out=out,
            engines=("onnxruntime",),
            **{**OPTIONS, **more},
        )


@pytest.fixture(scope="module")
def drawn(reds: Path) -> Splits:
    """The division of the pictures that every run makes."""
    return split(ImageFolder(reds, CLOSE, "picture"), calibration=20, seed=0)


def test_one_answer_in_a_thousand_that_changes_in_the_search_leaves_the_model_as_it_is(
    reds: Path, drawn: Splits, tmp_path: Path
) -> None:
    file = sorted(reds.iterdir())[drawn.search.indices[100]]
    result = run(with_one_close_call(tmp_path / "m", file), reds, tmp_path / "b")
    searched = len(drawn.search)
    assert (
        "pixels are normalized outside the model: with pixels normalized inside, 1 answer changed of "
        f"{searched} in the search" in result.notes
    )
    assert not any("takes pixels as uint8" in note for note in result.notes)
    manifest = read(tmp_path / "b")
    assert manifest.pipeline == CLOSE


def test_one_that_changes_on_the_sealed_data_alone_ships_the_model_as_it_was_given(
    reds: Path, drawn: Splits, tmp_path: Path
) -> None:
    file = sorted(reds.iterdir())[drawn.sealed.indices[100]]
    model = with_one_close_call(tmp_path / "m", file)
    result = run(model, reds, tmp_path / "b")
    searched, sealed = len(drawn.search), len(drawn.sealed)
    assert any(f"no answer changed on {searched} samples of the search" in n for n in result.notes)
    assert any(
        f"kept every answer in the search, but 1 answer changed of {sealed} sealed ones, so nothing "
        "that was made from it is certified" in note
        for note in result.notes
    )
    assert AS_GIVEN in result.notes
    assert result.status == "exact"
    manifest = read(tmp_path / "b")
    assert manifest.pipeline == CLOSE
    assert manifest.exact == manifest.winner
    with hasten.load(tmp_path / "b") as loaded:
        assert loaded.inputs[0].dtype == "float32"
        (scores,) = loaded(CLOSE(file)[None]).values()
        assert scores.argmax() == 0
        assert [request["picture"].dtype for request in loaded.requests] == [np.float32] * len(
            loaded.requests
        )


def test_without_time_for_the_sealed_data_the_model_ships_as_it_was_given(
    reds: Path, drawn: Splits, tmp_path: Path
) -> None:
    assert len(drawn.sealed) > 2 * 64  # so that the time is looked at before all are answered
    (tmp_path / "m").mkdir()
    model = built(tmp_path / "m", MEANS.replace("CLASS", "-9.0")).path
    real = Deadline.most_s

    def most_s(self: Deadline) -> float:
        return 0.0 if self.stage == "certify" else real(self)

    with patch.object(Deadline, "most_s", most_s):
        result = run(model, reds, tmp_path / "b")
    assert any("before the sealed data was answered" in note for note in result.notes)
    assert AS_GIVEN in result.notes
    assert result.status == "exact"
    assert read(tmp_path / "b").pipeline == CLOSE


def test_where_no_answer_changes_the_sealed_ones_are_compared_silently(
    reds: Path, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    model = built(tmp_path / "m", MEANS.replace("CLASS", "-9.0")).path
    result = run(model, reds, tmp_path / "b")
    assert not any("sealed ones" in note for note in result.notes)
    manifest = read(tmp_path / "b")
    assert manifest.pipeline is not None
    assert manifest.pipeline.folded == CLOSE.steps[1:]


@pytest.mark.parametrize("part", ["search", "sealed"])
def test_a_resumed_run_keeps_what_it_found_out_about_folding(
    part: str, reds: Path, drawn: Splits, tmp_path: Path
) -> None:
    file = sorted(reds.iterdir())[getattr(drawn, part).indices[100]]
    model = with_one_close_call(tmp_path / "m", file)

    class StopError(Exception):
        pass

    said: list[str] = []

    def stop(progress: Progress) -> None:
        said.append(progress.doing)
        if progress.stage == "figures":
            raise StopError

    with pytest.raises(StopError):
        run(model, reds, tmp_path / "b", listen=stop)
    assert "comparing answers with pixels normalized inside" in said
    said.clear()
    result = run(model, reds, tmp_path / "b", resume=True, listen=lambda p: said.append(p.doing))
    assert "comparing answers with pixels normalized inside" not in said
    assert "reading the sealed data, once" not in said
    assert read(tmp_path / "b").pipeline == CLOSE
    found = "1 answer changed of"
    assert any(found in note for note in result.notes)


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


def test_the_stages_and_cold_starts_are_in_the_bundle_and_its_report(
    tmp_path: Path, model: Model, photos: Path
) -> None:
    out = tmp_path / "bundle"
    with quick_runs(stages_s=0.1, starts=1):
        result = hasten.optimize(
            model.path,
            photos,
            pipeline=PIPELINE,
            end_to_end=True,
            out=out,
            engines=("onnxruntime",),
            **OPTIONS,
        )
    assert any(note.startswith("the model takes pixels as uint8") for note in result.notes)
    ways = json.loads((out / "evidence" / "stages.json").read_text())
    ends = ["model", "top_k"]
    assert [stage["name"] for stage in ways["before"]] == [*BEFORE, *ends]
    assert [stage["name"] for stage in ways["after"]] == [BEFORE[0], "to_layout", *ends]
    for side in ("before", "after"):
        assert sum(stage["share"] for stage in ways[side]) == pytest.approx(1)
    assert ways["files"] == 90 - read(out).sealed["samples"]
    rows = json.loads((out / "evidence" / "cold.json").read_text())["rows"]
    assert [row["label"].rpartition(", ")[2] for row in rows] == ["filled cache", "no cache"]
    assert all(len(row["stages_ns"]) == 1 for row in rows)
    page = (out / "report.html").read_text()
    for head in ("Where the time goes", "Cold start"):
        assert f"{head}</h2>" in page
    with quick_runs():
        hasten.report(out, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page


def test_a_time_limit_leaves_stages_and_cold_starts_out_and_says_so(
    tmp_path: Path, model: Model, photos: Path
) -> None:
    out = tmp_path / "bundle"
    with quick_runs(stages_s=1e6, starts=1000):
        result = hasten.optimize(
            model.path,
            photos,
            pipeline=PIPELINE,
            end_to_end=True,
            time_limit_s=300.0,
            out=out,
            engines=("onnxruntime",),
            **OPTIONS,
        )
    assert {
        "the time limit left no time for the times of the stages",
        "the time limit left no time for cold starts",
    } <= set(result.notes)
    assert not (out / "evidence" / "stages.json").exists()
    assert not (out / "evidence" / "cold.json").exists()
    assert "Cold start</h2>" not in (out / "report.html").read_text()
