"""Roundings to bytes with a step for each channel, as quantizers set before depthwise convolutions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.nodes.int8.curves import Sloped
from hasten.engines.compiled.nodes.int8.sums import Products
from hasten.engines.compiled.operators.int8.numbers import Rounding
from hasten.engines.compiled.values import Bytes
from hasten.errors import IntegrityError

if TYPE_CHECKING:
    from hasten.engines.compiled.graph import Node
    from hasten.engines.compiled.values import Value


def forms(node: Node, channels: int) -> tuple[Array, Array, bool] | None:
    """Return the steps, bytes of zero and whether bytes are signed, of a node that rounds by channel.

    Args:
        node: A QuantizeLinear or DequantizeLinear.
        channels: Number of channels, which are axis 1.
    """
    scale = node.peek(1).constant
    zero = node.peek(2).constant if node.has(2) else None
    if scale is None or zero is None or scale.shape != (channels,) or zero.shape != scale.shape:
        return None
    if node.attributes.get("axis", 1) != 1 or node.attributes.get("block_size", 0):
        return None
    if scale.dtype != np.float32 or zero.dtype not in (np.int8, np.uint8):
        return None
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        return None
    signed = zero.dtype == np.int8
    return scale, zero.astype(np.int64) + 128 * signed, bool(signed)


def rounded(value: Value, scale: Array, zero: Array) -> Bytes | None:
    """Round sums of products to bytes with a step for each channel and one zero; None for other values.

    A convolution has one byte of zero for its whole picture. Where what is reached of the channels' ranges
    has room around a common zero, as behind a ReLU, the steps stay as they are; else some grow.

    Args:
        value: Value that a QuantizeLinear rounds.
        scale: float32, step of each channel.
        zero: Byte of 0 of each channel.
    """
    sums = value.pending
    if not isinstance(sums, Products | Sloped) or not sums.last:
        return None
    if isinstance(sums, Sloped) and sums.known:
        return None
    if sums.low != 0 and np.isfinite([sums.low, sums.high]).any():
        return None
    low = np.zeros_like(scale) if sums.low == 0 else -zero * scale
    high = np.minimum((255 - zero) * scale, np.float32(sums.high))
    if (high <= 0).any():
        return None
    common = _zero(low, high, scale)
    steps = np.maximum(scale, high / (255 - common)).astype(np.float32)
    if common:
        steps = np.maximum(steps, -low / common).astype(np.float32)
    if np.isfinite(sums.high):  # the last byte of each channel is the bound, or less
        steps = np.minimum(steps, np.float32(sums.high) / (255 - common)).astype(np.float32)
    lowest = common if sums.low == 0 else 0
    try:
        tensor, last = sums.stored(steps, Rounding(common, lowest))
    except IntegrityError:  # a result may overflow
        return None
    return replace(Bytes.stored(tensor, last, common, 1.0), scales=steps)


def _zero(low: Array, high: Array, scale: Array) -> int:
    """Return the byte of 0 with which the steps grow least.

    Args:
        low: Lowest number of each channel, 0 or less.
        high: Highest number of each, above 0.
        scale: Step of each.
    """
    places = np.arange(255)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.where(low < 0, -low / places, 0.0)
        needed = np.maximum(np.maximum(below, high / (255 - places)), scale)
    # Half a step may be cut off at an end, as rounding does anyway.
    growth = np.log(np.maximum(needed / scale, 1 + 0.5 / 255))
    return int(np.nanargmin(growth.sum(1)))


def joint(scale: Array, zero: Array) -> tuple[int, float]:
    """Return the byte of 0 and the step of the range that holds those of all channels."""
    low = float((-zero * scale.astype(np.float64)).min())
    high = float(((255 - zero) * scale.astype(np.float64)).max())
    step = (high - low) / 255
    return round(-low / step), float(np.float32(step))
