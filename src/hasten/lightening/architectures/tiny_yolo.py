"""Write the tiny YOLO networks as text of Darknet's .cfg files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from hasten.errors import InputError

ANCHORS = (10, 14, 23, 27, 37, 58, 81, 82, 135, 169, 344, 319)
"""Widths and heights of the anchor boxes in turn, in pixels of an image of 416 x 416."""
ANCHOR_PIXELS = 416
_PER_HEAD = 3
Layer: TypeAlias = tuple[str, dict[str, object]]


def cfg(
    model: str, classes: int, channels: int, width: float, sides: tuple[int, int] = (416, 416)
) -> str:
    """Return the .cfg text of a tiny YOLO network.

    Args:
        model: Model's name: "yolov3-tiny.cfg" or "yolov4-tiny.cfg".
        classes: Number of classes.
        channels: Number of the input's channels.
        width: Factor on the channels of all layers except the heads, rounded to multiples of 8.
        sides: Height and width of the input, in pixels; the anchors scale with the longer side.

    Raises:
        InputError: there is no such model.
    """
    layers = {"yolov3-tiny.cfg": _version_3, "yolov4-tiny.cfg": _version_4}.get(model)
    if layers is None:
        raise InputError(
            f"no tiny YOLO is called {model!r}: use yolov3-tiny.cfg or yolov4-tiny.cfg"
        )
    scale = max(sides) / ANCHOR_PIXELS
    anchors = tuple(max(1, round(one * scale)) for one in ANCHORS)
    net = {"width": sides[1], "height": sides[0], "channels": channels}
    return "\n".join(
        [_section("net", net)]
        + [_section(kind, settings) for kind, settings in layers(classes, width, anchors)]
    )


def _version_3(classes: int, width: float, anchors: Sequence[int]) -> Iterator[Layer]:
    """Yield the layers of YOLOv3-tiny.

    Source: Redmon and Farhadi, arXiv:1804.02767, in the small form that Darknet ships.
    """
    for filters in (16, 32, 64, 128, 256):
        yield _convolution(filters, 3, width)
        yield _pool(2)
    yield _convolution(512, 3, width)
    yield _pool(1)
    yield _convolution(1024, 3, width)
    yield _convolution(256, 1, width)
    yield _convolution(512, 3, width)
    yield from _head(classes, (3, 4, 5), anchors, {})
    yield "route", {"layers": "-4"}
    yield _convolution(128, 1, width)
    yield "upsample", {"stride": 2}
    yield "route", {"layers": "-1,8"}
    yield _convolution(256, 3, width)
    yield from _head(classes, (0, 1, 2), anchors, {})


def _version_4(classes: int, width: float, anchors: Sequence[int]) -> Iterator[Layer]:
    """Yield the layers of YOLOv4-tiny.

    Source: Wang et al., Scaled-YOLOv4, arXiv:2011.08036, section 3.3.
    """
    reach = {"scale_x_y": 1.05}
    yield _convolution(32, 3, width, stride=2)
    yield _convolution(64, 3, width, stride=2)
    for filters in (64, 128, 256):  # each stage convolves only the second half of its channels
        yield _convolution(filters, 3, width)
        yield "route", {"layers": "-1", "groups": 2, "group_id": 1}
        yield _convolution(filters // 2, 3, width)
        yield _convolution(filters // 2, 3, width)
        yield "route", {"layers": "-1,-2"}
        yield _convolution(filters, 1, width)
        yield "route", {"layers": "-6,-1"}
        yield _pool(2)
    yield _convolution(512, 3, width)
    yield _convolution(256, 1, width)
    yield _convolution(512, 3, width)
    yield from _head(classes, (3, 4, 5), anchors, reach)
    yield "route", {"layers": "-4"}
    yield _convolution(128, 1, width)
    yield "upsample", {"stride": 2}
    yield "route", {"layers": "-1,23"}
    yield _convolution(256, 3, width)
    yield from _head(classes, (1, 2, 3), anchors, reach)


def _convolution(filters: int, size: int, width: float, stride: int = 1) -> Layer:
    return "convolutional", {
        "batch_normalize": 1,
        "filters": max(8, round(filters * width / 8) * 8),
        "size": size,
        "stride": stride,
        "pad": 1,
        "activation": "leaky",
    }


def _pool(stride: int) -> Layer:
    return "maxpool", {"size": 2, "stride": stride}


def _head(
    classes: int, mask: Sequence[int], anchors: Sequence[int], more: Mapping[str, object]
) -> Iterator[Layer]:
    filters = _PER_HEAD * (5 + classes)
    linear = {"filters": filters, "size": 1, "stride": 1, "pad": 1, "activation": "linear"}
    yield "convolutional", dict(linear)
    shown = {"mask": ",".join(map(str, mask)), "anchors": ",".join(map(str, anchors))}
    yield "yolo", {**shown, "classes": classes, "num": len(anchors) // 2, **more}


def _section(kind: str, settings: Mapping[str, object]) -> str:
    return "\n".join([f"[{kind}]", *(f"{name}={value}" for name, value in settings.items()), ""])
