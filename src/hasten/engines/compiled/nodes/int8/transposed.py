"""Transposed convolutions of bytes, computed by an ordinary one whose results are put between each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product as pairs

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.graph import Node
from hasten.engines.compiled.nodes.convolutions import picture, two
from hasten.engines.compiled.nodes.int8.pending import Sums
from hasten.engines.compiled.nodes.int8.sums import Products, bias_of, give_products, operand
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.compiled.operators.int8.numbers import Rounding
from hasten.engines.compiled.operators.int8.numbers16 import Rounding16
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.tensors import Access, product
from hasten.engines.compiled.values import Levels, Value, ordered

_MOST_PLACES = 16
"""Results for each input pixel: a copy is generated for each."""


@dataclass(frozen=True)
class Interleaved(Sums):
    """Sums of the results that lie between input pixels, one group of channels for each place between two.

    With strides of `s`, the result at `o` is the one at place `(o + cut) % s` of pixel `(o + cut) // s`.

    Attributes:
        products: Sums of all places, with the channels in the order group, row, column, channel of a group.
        strides: Number of places along the height and the width.
        cut: Results that are left out at the top and at the left.
        groups: Number of groups.
    """

    products: Products | None = None
    strides: tuple[int, int] = (1, 1)
    cut: tuple[int, int] = (0, 0)
    groups: int = 1

    def stored(self, scale: float, rounding: Rounding | Rounding16) -> tuple[str, bool]:
        assert self.products is not None
        tensor, last = self.products.stored(scale, rounding)
        if self.strides == (1, 1):
            return tensor, last
        graph, (down, across), groups = self.node.graph, self.strides, self.groups
        channels = self.shape[1]
        each, places = channels // groups, down * across
        pixel = channels * places
        row = two(self.products.shape[2:], 1)[1] * pixel
        high, wide = two(self.shape[2:], 1)
        made = graph.new(graph.tensors[tensor].dtype, self.shape, None)
        given = replace(made, tensor=tensor)
        for top, left in pairs(range(min(down, high)), range(min(across, wide))):
            y, above = divmod(top + self.cut[0], down)
            x, before = divmod(left + self.cut[1], across)
            start = y * row + x * pixel + (above * across + before) * each
            graph.map(
                [Step("copy", (0,), made.dtype)],
                [(given, (row, pixel, places * each, 1), start)],
                made,
                into=Access(
                    made.tensor,
                    (down * wide * channels, across * channels, each, 1),
                    (top * wide + left) * channels,
                ),
                shape=(-((top - high) // down), -((left - wide) // across), groups, each),
            )
        return made.tensor, True


def transposed(node: Node) -> bool:
    """Take a transposed convolution of bytes or words by constant integers."""
    given, weight = node.peek(0), node.peek(1)
    value, levels = operand(given), weight.levels
    attributes = node.attributes
    if value is None or levels is None or given.shape[0] != 1:
        return False
    sizes = picture(node, given)
    ones, none = [1] * len(sizes), [0] * len(sizes)
    strides = two(attributes.get("strides", ones), 1)
    pads = attributes.get("pads", [*none, *none])
    before, after = (two(pads[at : at + len(sizes)], 0) for at in (0, len(sizes)))
    kernel = two(weight.shape[2:], 1)
    more = two(attributes.get("output_padding", none), 0)
    groups = int(attributes.get("group", 1))
    each = weight.shape[1]
    bias, scale = bias_of(node, 2, groups * each), _by_output(levels, groups, each)
    plain = attributes.get("auto_pad", "NOTSET") == "NOTSET" and "output_shape" not in attributes
    if bias is None or scale is None or not plain or max(attributes.get("dilations", ones)) > 1:
        return False
    if weight.shape[0] != given.shape[1] or product(strides) > _MOST_PLACES:
        return False
    size = two(sizes, 1)
    # By axis, of the pixels that count for a result: the first and the last that is the nearest one.
    high, wide = (
        (n - 1) * s + k - b - a + m
        for n, s, k, b, a, m in zip(size, strides, kernel, before, after, more, strict=True)
    )
    first = [b // s for b, s in zip(before, strides, strict=True)]
    last = [(b + o - 1) // s for b, o, s in zip(before, (high, wide), strides, strict=True)]
    taps = [-(-k // s) for k, s in zip(kernel, strides, strict=True)]
    margins = (
        *(t - 1 - f for t, f in zip(taps, first, strict=True)),
        *(e - n + 1 for e, n in zip(last, size, strict=True)),
    )
    if min(high, wide) < 1 or min(margins) < 0:
        return False
    places = product(strides)
    bare = Conv8(
        ordered(node.graph, value.tensor, value.last, given.shape, True), "", "", "", "",
        channels=(given.shape[1], groups * each * places),
        groups=groups,
        size=size,
        kernel=(taps[0], taps[1]),
        strides=(1, 1),
        dilations=(1, 1),
        pads=margins,
        zero=value.zero,
        rounding=None,
    )  # fmt: skip
    rows = [e - f + 1 for e, f in zip(last, first, strict=True)]
    whole = (1, groups * each * places, *rows[-len(sizes) :])
    numbers = _by_place(levels.numbers, groups, kernel, strides)
    spread = Levels(numbers, _each_place(scale, groups, places), 0)
    each_bias = _each_place(bias, groups, places)
    if not give_products(node, value, spread, numbers, each_bias, whole, bare, True):
        return False
    found = node.graph.values[node.proto.output[0]].pending
    assert isinstance(found, Products)
    cut = (before[0] - first[0] * strides[0], before[1] - first[1] * strides[1])
    shape = (1, groups * each, *(high, wide)[-len(sizes) :])
    pending = Interleaved(shape, node, products=found, strides=strides, cut=cut, groups=groups)
    node.give(Value("", "float32", shape, 0, pending=pending))
    return True


def _by_output(levels: Levels, groups: int, each: int) -> Array | None:
    """Return the scale of each output channel; None where its weights have several."""
    if levels.axis is None:
        return np.broadcast_to(levels.scale, (groups * each,))
    if levels.axis == 1:
        return np.tile(levels.scale, groups)
    alone = levels.axis == 0 and len(levels.scale) == groups
    return np.repeat(levels.scale, each) if alone else None


def _each_place(numbers: Array, groups: int, places: int) -> Array:
    """Return numbers of output channels for those of each place, in the order of `Interleaved`."""
    return np.tile(numbers.reshape(groups, 1, -1), (1, places, 1)).reshape(-1)


def _by_place(
    weight: Array, groups: int, kernel: tuple[int, int], strides: tuple[int, int]
) -> Array:
    """Return the weights of one ordinary convolution with the results of all places.

    Args:
        weight: int8 of shape (inputs, outputs of a group, ...).
        groups: Number of groups.
        kernel: Height and width of the kernel.
        strides: Number of places along both.

    Returns:
        int8 of shape (groups * places * outputs of a group, rows, columns, inputs of a group): those of a place
        are every `strides`-th ones, the last first, with zeros where the kernel ends.
    """
    inputs, each = weight.shape[:2]
    ends = [-k % s for k, s in zip(kernel, strides, strict=True)]
    split = weight.reshape(groups, inputs // groups, each, *kernel)
    full = np.pad(split, ((0, 0), (0, 0), (0, 0), (0, ends[0]), (0, ends[1])))
    rows, columns = (size // s for size, s in zip(full.shape[3:], strides, strict=True))
    parts = full.reshape(groups, inputs // groups, each, rows, strides[0], columns, strides[1])
    # (groups, inputs, outputs, rows, places, columns, places) -> (groups, places, places, outputs, rows, columns, inputs)
    turned = parts[:, :, :, ::-1, :, ::-1].transpose(0, 4, 6, 2, 3, 5, 1)
    return np.ascontiguousarray(turned.reshape(-1, rows, columns, inputs // groups))
