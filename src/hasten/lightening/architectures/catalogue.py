"""List light architectures as data: their sources, their settings and their published accuracy."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from hasten.errors import InputError

Task: TypeAlias = Literal["classify", "detect"]
Library: TypeAlias = Literal["timm", "torchvision", "darknet"]

POINTS_PER_HALVING = 5.0
"""ImageNet points that a light network loses roughly when its multiply-adds are halved: at half the
width mobilenetv2_100 loses 4.3, lcnet_100 loses 5.1, and mobilenetv3_small_100 loses 8 per halving.
Source: timm, results/results-imagenet.csv."""


@dataclass(frozen=True)
class Architecture:
    """Entry of the catalogue.

    Attributes:
        name: Name, such as "mobilenetv2", or "mobilenetv2-s8" for the variant for small images,
            whose first strides are 1, so that sides shrink 8 times, not 32 times, in all.
        task: Task: "classify" returns logits `(n, classes)`; "detect" returns boxes, scores and
            labels.
        library: Library whose code is used; "darknet" is our own reader of Darknet's files.
        model: Model's name in the library.
        widths: Factors on the number of channels on offer.
        stride: Ratio of the input's side to the side of the last feature map.
        usual: Ratio of these sides in the published network, with all its strides.
        accuracy: Published accuracy in percent, top-1 on ImageNet or box AP on COCO, at width 1,
            the usual stride and square inputs of `pixels`.
        madds: Multiply-adds of one such input, as `multiply_adds` counts them.
        heft: Latency relative to a MobileNetV2 of as many multiply-adds: a first guess for
            unmeasured networks, measured once, in int8 on an x86-64 with AMX.
        pixels: Side of the input for `accuracy` and `madds`, in pixels.
        source: Source of the accuracy.
    """

    name: str
    task: Task
    library: Library
    model: str
    widths: tuple[float, ...]
    stride: int
    usual: int
    accuracy: float
    madds: float
    heft: float
    pixels: int
    source: str

    @property
    def least(self) -> int:
        """Least side of the input, in pixels, at which the last feature map has 2 x 2 positions."""
        return 2 * self.stride

    @property
    def family(self) -> str:
        """Name without the stride."""
        return self.name.removesuffix(f"-s{self.stride}")

    def estimate(self, height: int, width: int, factor: float) -> float:
        """Estimate the multiply-adds of one input, within a fifth for most architectures.

        Args:
            height: Height of the image after resizing, in pixels.
            width: Width of the image after resizing, in pixels.
            factor: Factor on the number of channels.
        """
        positions = height * width / self.pixels**2 * (self.usual / self.stride) ** 1.9
        return float(self.madds * positions * factor**1.7)

    def promise(self, madds: float) -> float:
        """Estimate the accuracy in the published setting with fewer multiply-adds, in percent.

        The estimate is only good for ranking candidates.
        """
        return self.accuracy + POINTS_PER_HALVING * min(0.0, math.log2(madds / self.madds))


def _lines(
    name: str,
    library: Library,
    model: str,
    widths: tuple[float, ...],
    strides: tuple[int, ...],
    accuracy: float,
    madds: float,
    heft: float,
    source: str,
    task: Task = "classify",
    pixels: int = 224,
) -> Iterator[Architecture]:
    """Yield the entries of an architecture: as published, and with its first strides left out."""
    for stride in strides:
        full = name if stride == strides[0] else f"{name}-s{stride}"
        yield Architecture(
            full,
            task,
            library,
            model,
            widths,
            stride,
            strides[0],
            accuracy,
            madds,
            heft,
            pixels,
            source,
        )


_USUAL = (0.35, 0.5, 0.75, 1.0)
_ALL = (32, 16, 8)
_TIMM = "timm, results/results-imagenet.csv"
# fmt: off
CATALOGUE: tuple[Architecture, ...] = (
    *_lines("mobilenetv2", "timm", "mobilenetv2_100", (*_USUAL, 1.4), _ALL, 73.0, 301e6, 1.0, _TIMM),
    *_lines("mobilenetv3-small", "timm", "mobilenetv3_small_100", _USUAL, _ALL, 67.7, 57e6, 2.2, _TIMM),
    *_lines("mobilenetv3-large", "timm", "mobilenetv3_large_100", _USUAL, _ALL, 75.8, 217e6, 1.6, _TIMM),
    *_lines("mobilenetv4-small", "timm", "mobilenetv4_conv_small", (*_USUAL, 1.4), _ALL, 73.8, 186e6, 1.0, "arXiv:2404.10518"),
    *_lines("mobilenetv4-medium", "timm", "mobilenetv4_conv_medium", (0.5, 0.75, 1.0), _ALL, 79.9, 1080e6, 1.3, "arXiv:2404.10518", pixels=256),
    *_lines("efficientnet-lite0", "timm", "efficientnet_lite0", _USUAL, _ALL, 75.5, 385e6, 1.1, _TIMM),
    *_lines("efficientnet-b0", "timm", "efficientnet_b0", _USUAL, _ALL, 77.7, 386e6, 2.7, _TIMM),
    *_lines("lcnet", "timm", "lcnet_100", (*_USUAL, 1.5), _ALL, 72.1, 156e6, 0.8, _TIMM),
    *_lines("ghostnet", "timm", "ghostnet_100", (0.5, 0.75, 1.0, 1.3), _ALL, 74.0, 141e6, 3.0, _TIMM),
    *_lines("mobileone-s0", "timm", "mobileone_s0", (1.0,), _ALL, 71.4, 275e6, 0.8, "arXiv:2206.04040"),
    *_lines("mobileone-s1", "timm", "mobileone_s1", (1.0,), _ALL, 75.9, 825e6, 0.8, "arXiv:2206.04040"),
    *_lines("shufflenetv2", "torchvision", "shufflenet_v2_x1_0", (0.5, 1.0, 1.5, 2.0), _ALL, 69.4, 145e6, 1.7, "torchvision, ShuffleNet_V2_X1_0_Weights"),
    *_lines("resnet10", "timm", "resnet10t", (0.25, 0.5, 0.75, 1.0), _ALL, 68.4, 1097e6, 0.6, _TIMM),
    *_lines("resnet18", "timm", "resnet18d", (0.25, 0.5, 0.75, 1.0), _ALL, 73.8, 3395e6, 0.8, _TIMM, pixels=288),
    *_lines("convnext-atto", "timm", "convnext_atto", (0.4, 0.6, 0.8, 1.0, 1.2), _ALL, 77.0, 904e6, 4.8, _TIMM, pixels=288),
    *_lines("convnextv2-atto", "timm", "convnextv2_atto", (0.4, 0.6, 0.8, 1.0, 1.2), _ALL, 77.8, 904e6, 6.0, _TIMM, pixels=288),
    *_lines("vit-tiny", "timm", "deit_tiny_patch16_224", (0.5, 0.75, 1.0, 2.0), (16, 8, 4), 72.2, 1254e6, 4.4, _TIMM),
    *_lines("yolov3-tiny", "darknet", "yolov3-tiny.cfg", _USUAL, (32,), 16.6, 2782e6, 0.6, "arXiv:2011.08036", "detect", 416),
    *_lines("yolov4-tiny", "darknet", "yolov4-tiny.cfg", _USUAL, (32,), 22.0, 3454e6, 0.7, "arXiv:2011.08036, abstract", "detect", 416),
    *_lines("ssdlite", "torchvision", "ssdlite320_mobilenet_v3_large", (0.5, 0.75, 1.0), (32,), 21.3, 563e6, 1.6, "torchvision, SSDLite320_MobileNet_V3_Large_Weights", "detect", 320),
)
# fmt: on


def find(name: str) -> Architecture:
    """Return the architecture with this name.

    Raises:
        InputError: there is none; names similar ones, or else all families.
    """
    found = next((one for one in CATALOGUE if one.name == name), None)
    if found is None:
        known = list(dict.fromkeys(one.family for one in CATALOGUE))
        names = [one.name for one in CATALOGUE]
        alike = difflib.get_close_matches(name, list(dict.fromkeys([*known, *names])), 4)
        raise InputError(
            f"the catalogue has no architecture {name!r}; "
            + (f"similar names are {', '.join(alike)}" if alike else f"it has {', '.join(known)}")
        )
    return found
