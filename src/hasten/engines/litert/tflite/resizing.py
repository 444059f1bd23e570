"""Rule for Resize, which makes images larger or smaller."""

from __future__ import annotations

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.litert.tflite.converter import Converter
from hasten.engines.litert.tflite.graph import Node


def resize(c: Converter, node: Node) -> None:
    mode, settings = node.settings.get("mode", b"nearest").decode(), node.settings
    before, after = c.shape(node.inputs[0], node), c.shape(node.outputs[0], node)
    if mode not in ("nearest", "linear") or settings.get("antialias", 0) or len(before) != 4:
        raise node.refused(
            "only nearest and linear, of images and without antialias, are supported"
        )
    if before[:2] != after[:2]:
        raise node.refused("it changes more than the height and the width")
    kind, code = {
        "nearest": ("ResizeNearestNeighbor", "RESIZE_NEAREST_NEIGHBOR"),
        "linear": ("ResizeBilinear", "RESIZE_BILINEAR"),
    }[mode]
    for corners, centres in ((False, False), (False, True), (True, False)):
        same = [
            np.allclose(
                _sources(c, node, old, new, scale), _own_sources(mode, old, new, corners, centres)
            )
            for old, new, scale in zip(before[2:], after[2:], _scales(c, node), strict=True)
        ]
        if all(same):
            options = c.writer.options(kind, alignCorners=corners, halfPixelCenters=centres)
            sizes = c.weights(node, np.array(after[2:], np.int32), "sizes")
            c.elementwise(node, code, [c.nhwc(node.inputs[0], node), sizes], "nhwc", options)
            return
    raise node.refused("its coordinates can't be expressed")


def _scales(c: Converter, node: Node) -> list[float]:
    """Return the factors of the height and the width; 0 where the new sizes are given instead."""
    if "axes" in node.settings:
        raise node.refused("its axes attribute isn't supported")
    given = c.graph.argument(node, 1 if c.graph.opset < 11 else 2)
    return [0.0, 0.0] if given is None or given.size != 4 else [float(n) for n in given[2:]]


def _sources(c: Converter, node: Node, before: int, after: int, scale: float) -> Array:
    """Return, for each position of a resized axis, the position in the old axis that ONNX reads."""
    how = node.settings.get("coordinate_transformation_mode", b"half_pixel").decode()
    if c.graph.opset < 11:
        how = "asymmetric"
    i, ratio = np.arange(after), 1 / scale if scale else before / after
    places: Array
    if how == "align_corners":
        places = i * (before - 1) / max(after - 1, 1)
    elif how == "asymmetric":
        places = i * ratio
    elif how == "half_pixel" or (how == "pytorch_half_pixel" and after > 1):
        places = (i + 0.5) * ratio - 0.5
    else:
        raise node.refused(f"{how} isn't supported")
    if node.settings.get("mode", b"nearest") == b"linear":
        return np.asarray(np.clip(places, 0, before - 1))
    nearest = node.settings.get("nearest_mode", b"round_prefer_floor").decode()
    if c.graph.opset < 11:
        nearest = "floor"
    rounded = {
        "round_prefer_floor": np.ceil(places - 0.5),
        "round_prefer_ceil": np.floor(places + 0.5),
        "floor": np.floor(places),
        "ceil": np.ceil(places),
    }[nearest]
    return np.clip(rounded, 0, before - 1)


def _own_sources(mode: str, before: int, after: int, corners: bool, centres: bool) -> Array:
    """Return, for each position of a resized axis, the position that LiteRT reads."""
    i, ratio = np.arange(after), before / after
    places: Array
    if corners:
        places = i * (before - 1) / max(after - 1, 1)
        return np.asarray(np.floor(places + 0.5)) if mode == "nearest" else places
    half = 0.5 if centres else 0.0
    places = np.floor((i + half) * ratio) if mode == "nearest" else (i + half) * ratio - half
    return np.asarray(np.clip(places, 0, before - 1))
