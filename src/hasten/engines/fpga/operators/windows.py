"""Operators over sliding windows: unrolling of the windows, and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from hasten.core.tensors import Array
from hasten.engines.fpga.values import Values, attributes
from hasten.errors import NotCovered


def unrolled(
    values: Array, kernel: Sequence[int], settings: dict[str, Any], spatial: int, filler: float
) -> tuple[Array, tuple[int, ...]]:
    """Return the window at each place, `(places, channels, *kernel)`, and the output's shape."""
    strides = settings.get("strides", [1] * spatial)
    dilations = settings.get("dilations", [1] * spatial)
    sizes = values.shape[2:]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = _pads(settings, sizes, reach, strides)
    widths = [(0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)]
    padded = np.pad(values[0], widths, constant_values=filler)
    places = tuple(
        (n - r) // s + 1 for n, r, s in zip(padded.shape[1:], reach, strides, strict=True)
    )
    found = [
        padded[
            (
                slice(None),
                *(
                    slice(p * s, p * s + r, d)
                    for p, s, r, d in zip(place, strides, reach, dilations, strict=True)
                ),
            )
        ]
        for place in np.ndindex(*places)
    ]
    return np.array(found, dtype=object), places


def _pads(
    settings: dict[str, Any], sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> list[int]:
    """Return the padding before all axes, then after. Source: ONNX operators, Conv, auto_pad."""
    auto = settings.get("auto_pad", b"NOTSET").decode()
    if auto in ("NOTSET", "VALID"):
        return (
            list(settings.get("pads", [0] * 2 * len(sizes)))
            if auto == "NOTSET"
            else [0] * 2 * len(sizes)
        )
    before, behind = [], []
    for n, r, s in zip(sizes, reach, strides, strict=True):
        both = max(0, (-(-n // s) - 1) * s + r - n)
        less, more = both // 2, both - both // 2
        before.append(less if auto == "SAME_UPPER" else more)
        behind.append(more if auto == "SAME_UPPER" else less)
    return [*before, *behind]


def max_pool(own: Values, node: onnx.NodeProto) -> Any:
    """Return the largest number in each window; padding never counts."""
    settings = attributes(node)
    if settings.get("ceil_mode", 0) or len(node.output) > 1:
        raise NotCovered(
            f"a MaxPool with ceil_mode or indices (node {node.name!r}) has no fixed-point form"
        )
    given, kernel = own.wide(node), settings["kernel_shape"]
    lowest = float(min(v.low for v in np.ravel(given._vars)))
    patches, places = unrolled(given._vars, kernel, settings, len(kernel), lowest)
    flat = patches.reshape(*patches.shape[:2], -1)
    found = np.amax(own.array(flat), axis=-1)  # (places, channels)
    return found.transpose().reshape(1, given.shape[1], *places)


def average_pool(own: Values, node: onnx.NodeProto) -> Any:
    """Return the mean of each window."""
    settings = attributes(node)
    if settings.get("ceil_mode", 0):
        raise NotCovered(
            f"an AveragePool with ceil_mode (node {node.name!r}) has no fixed-point form"
        )
    given, kernel = own.narrow(node), settings["kernel_shape"]
    patches, places = unrolled(given._vars, kernel, settings, len(kernel), 0.0)
    flat = own.array(patches.reshape(*patches.shape[:2], -1))
    covered = np.ones((1, 1, *given.shape[2:]))
    beyond = 1.0 if settings.get("count_include_pad", 0) else 0.0
    counts = unrolled(covered, kernel, settings, len(kernel), beyond)[0].reshape(len(flat), -1)
    shares = [own.share(node, int(count)) for count in counts.astype(np.float64).sum(axis=1)]
    mean = np.sum(flat, axis=-1) * np.asarray(shares)[:, None]
    return mean.transpose().reshape(1, given.shape[1], *places)
