"""From a file's bytes to a decision: an opened bundle with steps before and after its model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.bundles import built, stated
from tests.support.yolo import DOG, yolov3_tiny
from torch import nn

import hasten
from hasten.bundle import Part, load, write
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError
from hasten.inputs.models.torch import export
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.darknet import DarknetBoxes
from hasten.inputs.pipeline.image import Decode, Normalize, Resize, ToLayout
from hasten.inputs.pipeline.nms import Nms
from hasten.testing import models

pytestmark = pytest.mark.seconds

SIDE = 416


class Grids(nn.Module):
    """What the [yolo] layers of a network get."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {f"grid{i}": grid for i, (_, grid) in enumerate(self.network.heads(x))}


@pytest.fixture
def yolo(monkeypatch: pytest.MonkeyPatch) -> Any:
    return yolov3_tiny(monkeypatch)


def test_a_detectors_bundle_tells_from_a_photographs_bytes_where_the_dog_is(
    yolo: Any, tmp_path: Path
) -> None:
    network = yolo.pretrained().network
    sample = {"x": np.zeros((3, SIDE, SIDE), np.float32)}
    model = export(Grids(network).eval(), sample, tmp_path)
    anchors = (
        ((81.0, 82.0), (135.0, 169.0), (344.0, 319.0)),
        ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0)),
    )
    names = tuple(filter(None, yolo.names()))
    pipeline = Pipeline(
        (Decode(), Resize((SIDE, SIDE), "bilinear"), Normalize((0, 0, 0), (1, 1, 1)), ToLayout()),
        (DarknetBoxes(("grid0", "grid1"), anchors, (SIDE, SIDE), names), Nms()),
    )
    pipeline.check(model.outputs)
    part = built(tmp_path, model.path, OnnxRuntime(threads=1))
    write(tmp_path / "yolo.hasten", stated(part, None, pipeline=pipeline), {})
    with load(tmp_path / "yolo.hasten") as opened:
        assert opened.manifest.pipeline == pipeline
        told = opened.decide(DOG.read_bytes())
    assert json.loads(json.dumps(told)) == told
    assert {"dog", "bicycle", "car"} <= {one["label"] for one in told}
    dog = next(one for one in told if one["label"] == "dog")
    with Image.open(DOG) as photo:
        width, height = photo.size
    for one in told:
        x0, y0, x1, y1 = one["box"]
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
    # The dog's left shoulder and its paws, where a person sees them in the photograph.
    x0, y0, x1, y1 = dog["box"]
    for x, y in ((180, 300), (200, 480)):
        assert x0 < x < x1
        assert y0 < y < y1


def test_a_classifiers_bundle_abstains_where_it_was_told_to(tmp_path: Path, winner: Part) -> None:
    classes = ("a", "b", "c", "d")
    for least in (0.0, 1.0):
        path = tmp_path / f"least-{least}.hasten"
        pipeline = Pipeline((), (TopK(2, classes, least=least),))
        write(path, stated(winner, winner, pipeline=pipeline), {})
        with load(path) as opened:
            told = opened.decide(np.linspace(0, 1, 16, dtype=np.float32))
        likely = told if not least else told["likeliest"]
        assert [one["label"] in classes for one in likely] == [True, True]
        assert not least or told["abstained"]


def test_a_chain_that_does_not_fit_is_refused_before_a_run(tmp_path: Path) -> None:
    model = models.linear_classifier(tmp_path)
    numbers = np.random.default_rng(0)
    samples = numbers.normal(size=(80, 16)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=samples, labels=numbers.integers(0, 4, 80))
    with pytest.raises(InputError) as error:
        hasten.optimize(
            model,
            tmp_path / "data.npz",
            pipeline=Pipeline((), (Nms(),)),
            out=tmp_path / "out.hasten",
        )
    assert str(error.value) == (
        "the step nms takes boxes, but gets the model's outputs: put yolo_boxes or darknet_boxes "
        "or "
        "ssd_boxes between"
    )
    assert not (tmp_path / "out.hasten").exists()
