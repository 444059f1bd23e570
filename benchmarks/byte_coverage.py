"""Which convolutional networks the compiled engine takes in int8, and which of their steps stay in floats.

    python benchmarks/compiled.py --coverage [NETWORK ...]

NNCF rounds them after two samples of noise, and most weights are random, so only the graphs count. A line
says how many steps calculate with bytes, how many only copy bytes, and which ones calculate with floats,
with their multiplications, or why a network is refused. Conversions of inputs and outputs aren't counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.base import Artifact
from hasten.engines.compiled.engine import CompiledC, read
from hasten.engines.compiled.plan import Operation, Plan
from hasten.errors import CandidateError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models.source import load_model
from hasten.passes.nncf_quantization import NncfQuantization

_CONVERSIONS = ("quantize", "dequantize")
_SAMPLES = 2


@dataclass(frozen=True)
class Coverage:
    """How a network becomes a plan.

    Attributes:
        narrow: Steps that calculate with bytes.
        copies: Steps that only move bytes.
        floats: Steps that calculate with floats, by kind, with their multiplications in all.
        artifact: Artifact of the engine.
    """

    narrow: int
    copies: int
    floats: dict[str, tuple[int, int]]
    artifact: Artifact

    @classmethod
    def of(cls, artifact: Artifact) -> Coverage:
        """Count the steps of an artifact's plan."""
        plan, _ = read(artifact)
        narrow, copies = 0, 0
        counts: Counter[str] = Counter()
        work: Counter[str] = Counter()
        for one in plan.operations:
            kind = type(one).__name__.lower()
            if kind in _CONVERSIONS:
                continue
            if one.narrow:
                narrow += 1
            elif _of_bytes(plan, one):
                copies += 1
            else:
                counts[kind] += 1
                work[kind] += one.work
        floats = {kind: (count, work[kind]) for kind, count in counts.items()}
        return cls(narrow, copies, floats, artifact)

    def words(self) -> str:
        """Say it in a line."""
        told = [
            f"{count} {kind} ({work / 1e6:.2f} M)" for kind, (count, work) in self.floats.items()
        ]
        return (
            f"{self.narrow} of bytes, {self.copies} copies, in floats: {', '.join(told) or 'none'}"
        )


def _of_bytes(plan: Plan, operation: Operation) -> bool:
    """Return whether an operation reads and writes bytes alone, beside constants."""
    tensors = [plan.tensor(name) for name in (*operation.reads, *operation.writes)]
    return all(one.dtype == "uint8" for one in tensors if one.offset is None)


def timm_network(name: str, **settings: Any) -> nn.Module:
    """Return one of timm's networks with random weights."""
    import timm

    return timm.create_model(name, pretrained=False, **settings).eval()


def shufflenet() -> nn.Module:
    """Return torchvision's ShuffleNetV2 with random weights."""
    import torchvision

    return torchvision.models.shufflenet_v2_x1_0(weights=None).eval()


def yolov3_tiny_network() -> nn.Module:
    """Return YOLOv3-tiny with the weights of its package."""
    import yolov3_tiny

    return yolov3_tiny.pretrained()


def _layer(ins: int, outs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    conv = nn.Conv2d(ins, outs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outs), nn.SiLU())


class C2f(nn.Module):
    """Block of YOLOv8: a half of the channels goes through residual pairs, and all parts are joined.

    Args:
        ins: Channels that it takes.
        outs: Channels that it gives.
        pairs: Number of pairs.
    """

    def __init__(self, ins: int, outs: int, pairs: int = 1) -> None:
        super().__init__()
        half = outs // 2
        self.first = _layer(ins, outs, 1)
        self.pairs = nn.ModuleList(
            nn.Sequential(_layer(half, half), _layer(half, half)) for _ in range(pairs)
        )
        self.last = _layer(half * (2 + pairs), outs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for pair in self.pairs:
            parts.append(parts[-1] + pair(parts[-1]))
        return self.last(torch.cat(parts, 1))


class YoloV8Like(nn.Module):
    """Backbone, neck and heads as in YOLOv8, at two scales, without the decoding of boxes.

    Args:
        wide: Channels of the first layer.
    """

    def __init__(self, wide: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(_layer(3, wide, 3, 2), _layer(wide, 2 * wide, 3, 2))
        self.low = nn.Sequential(
            C2f(2 * wide, 2 * wide), _layer(2 * wide, 4 * wide, 3, 2), C2f(4 * wide, 4 * wide, 2)
        )
        self.high = nn.Sequential(_layer(4 * wide, 8 * wide, 3, 2), C2f(8 * wide, 8 * wide))
        self.narrower, self.joined = _layer(8 * wide, 4 * wide, 1), _layer(16 * wide, 8 * wide, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.up = nn.Upsample(scale_factor=2)
        self.neck = C2f(12 * wide, 4 * wide)
        self.heads = nn.ModuleList(
            nn.Sequential(_layer(ins, 2 * wide), nn.Conv2d(2 * wide, 84, 1))
            for ins in (4 * wide, 8 * wide)
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        low = self.low(self.stem(x))
        pooled = [self.narrower(self.high(low))]
        for _ in range(3):
            pooled.append(self.pool(pooled[-1]))
        high = self.joined(torch.cat(pooled, 1))
        both = self.neck(torch.cat([self.up(high), low], 1))
        return self.heads[0](both), self.heads[1](high)


class UNetLike(nn.Module):
    """Encoder and decoder with skips, of which the decoder enlarges by a transposed convolution or by copies.

    Args:
        transposed: Whether it is by a transposed convolution.
        wide: Channels of the first layer.
    """

    def __init__(self, transposed: bool, wide: int = 32) -> None:
        super().__init__()

        def block(ins: int, outs: int) -> nn.Module:
            layers = [nn.Conv2d(ins, outs, 3, padding=1, bias=False), nn.BatchNorm2d(outs)]
            return nn.Sequential(*layers, nn.ReLU())

        def up(ins: int, outs: int) -> nn.Module:
            if transposed:
                return nn.ConvTranspose2d(ins, outs, 2, 2)
            return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(ins, outs, 1))

        self.top, self.mid, self.low = (
            block(3, wide),
            block(wide, 2 * wide),
            block(2 * wide, 4 * wide),
        )
        self.pool = nn.MaxPool2d(2)
        self.up_low, self.up_mid = up(4 * wide, 2 * wide), up(2 * wide, wide)
        self.back, self.end = block(4 * wide, 2 * wide), block(2 * wide, wide)
        self.out = nn.Conv2d(wide, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        top = self.top(x)
        mid = self.mid(self.pool(top))
        low = self.low(self.pool(mid))
        back = self.back(torch.cat([self.up_low(low), mid], 1))
        return self.out(self.end(torch.cat([self.up_mid(back), top], 1)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mobilenet_v1": (partial(timm_network, "mobilenetv1_100"), 224),
    "mobilenet_v2": (partial(timm_network, "mobilenetv2_100"), 224),
    "mobilenetv3_large": (partial(timm_network, "mobilenetv3_large_100"), 224),
    "mobilenetv4_small": (partial(timm_network, "mobilenetv4_conv_small"), 224),
    "efficientnet_b0": (partial(timm_network, "efficientnet_b0"), 224),
    "efficientnet_lite0": (partial(timm_network, "efficientnet_lite0"), 224),
    "mnasnet": (partial(timm_network, "mnasnet_100"), 224),
    "ghostnet": (partial(timm_network, "ghostnet_100"), 224),
    "shufflenet_v2": (shufflenet, 224),
    "resnet18": (partial(timm_network, "resnet18"), 224),
    "resnet50": (partial(timm_network, "resnet50"), 224),
    "regnetx": (partial(timm_network, "regnetx_004"), 224),
    "regnety": (partial(timm_network, "regnety_004"), 224),
    "densenet121": (partial(timm_network, "densenet121"), 224),
    "yolov3_tiny": (yolov3_tiny_network, 416),
    "yolov8_like": (YoloV8Like, 320),
    "unet_copies": (partial(UNetLike, False), 128),
    "unet_transposed": (partial(UNetLike, True), 128),
}
"""Networks that the engine is meant for that have convolutions, and the sides of their pictures."""


def quantized(module: nn.Module, side: int, folder: Path) -> Model:
    """Write a network that NNCF quantized, by ranges of noise."""
    noise = np.random.default_rng(0).standard_normal((_SAMPLES, 3, side, side)).astype(np.float32)
    folder.mkdir(parents=True)
    model = load_model(module, lambda _: {"x": noise[0]}, folder)
    name = model.inputs[0].name
    model = model.settled_by({name: noise[:1]})
    step = NncfQuantization("performance", samples=_SAMPLES)
    return step(model, ArrayDataset({name: noise}), folder)


def coverage(model: Model, folder: Path) -> Coverage:
    """Return how a quantized model becomes a plan.

    Raises:
        CandidateError: the engine refuses it.
    """
    folder.mkdir(parents=True)
    return Coverage.of(CompiledC().build(model, Target.host(), folder))


def print_coverage(names: list[str], folder: Path) -> None:
    """Print a line for each network."""
    for name in names:
        make, side = NETWORKS[name]
        torch.manual_seed(0)
        try:
            model = quantized(make(), side, folder / name)
            told = coverage(model, folder / f"{name}-plan").words()
        except CandidateError as error:
            told = f"refused: {error}"
        print(f"{name:20} {told}", flush=True)
