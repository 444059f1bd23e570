"""Operators whose results are sums of bytes, to be rounded by a QuantizeLinear that follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.graph import Node
from hasten.engines.compiled.nodes.convolutions import picture, two, window_of
from hasten.engines.compiled.nodes.int8.pending import Sums
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.compiled.operators.int8.convolutions16 import Conv16
from hasten.engines.compiled.operators.int8.definition import MOST_LENGTH, MOST_SIZE
from hasten.engines.compiled.operators.int8.elementwise import Add8, Gate8, Multiply8, Table8
from hasten.engines.compiled.operators.int8.numbers import (
    Gate,
    Rounding,
    Sum8,
    check_scales,
    check_slopes,
)
from hasten.engines.compiled.operators.int8.numbers16 import Rounding16
from hasten.engines.compiled.operators.int8.pools import Pool8
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.tensors import Access, product
from hasten.engines.compiled.values import Bytes, Levels, Value, Words, ordered
from hasten.engines.layers import node_name
from hasten.errors import IntegrityError

if TYPE_CHECKING:
    from hasten.engines.compiled.graph import Graph

_MOST_BIAS = float(1 << 30)
"""Largest magnitude of a bias, which leaves as much for the products."""
_LEAST_UNIT = 1e-30
"""Smallest real number that one unit of a sum stands for."""


BY_CHANNEL = frozenset({"Add", "BatchNormalization", "Div", "Mul", "Sub"})
"""Operators that may multiply each channel by a constant, and add another."""
_ONE = 64
"""Weight of a byte in a sum that is one byte's, so that what is added is rounded to a part of a step."""


@dataclass(frozen=True)
class Products(Sums):
    """Sums of products with constant weights.

    Attributes:
        conv: The convolution without its scales, its result and its rounding.
        bias: float64, real number added to each channel's sum.
        scale: float64, real number that one unit of each channel's sum stands for.
        most: int64, largest magnitude of each channel's sum.
        last: Whether the result has the channels last, and not first in rows of a matrix.
    """

    conv: Conv8 | None = None
    scale: Array | None = None
    most: Array | None = None
    last: bool = True

    def stored(
        self, scale: float | Array, rounding: Rounding | Rounding16, slope: Array | None = None
    ) -> tuple[str, bool]:
        """Append operations that round them; return the tensor, and whether channels are last.

        Args:
            scale: Real number that one step of the result stands for, or one for each channel.
            rounding: Zero and bounds of the result, which is bytes or words.
            slope: float32, what sums below 0 are multiplied by: one, or one for each channel. None for 1.
        """
        assert self.conv is not None
        assert self.scale is not None
        assert self.most is not None
        graph = self.node.graph
        ratio = _ratio(self.most, self.scale / np.asarray(scale, np.float32))
        slopes = ""
        if slope is not None:
            each = np.ascontiguousarray(np.broadcast_to(slope, ratio.shape))
            check_slopes(self.most, ratio, each)
            slopes = graph.store(each)
        wide = isinstance(rounding, Rounding16)
        made = graph.new("int16" if wide else "uint8", self.shape, None)
        bare = replace(self.conv, scale=graph.store(ratio), output=made.tensor, slope=slopes)
        if isinstance(rounding, Rounding16):
            graph.add(Conv16.of(bare, words=rounding))
        else:
            graph.add(replace(bare, rounding=rounding))
        return made.tensor, self.last

    def floats(self) -> Value:
        assert self.conv is not None
        assert self.scale is not None
        graph = self.node.graph
        if np.isfinite([self.low, self.high]).any():
            return super().floats()
        graph.source = node_name(self.node.proto)
        value = graph.values[self.node.proto.output[0]]
        made = graph.new("float32", self.shape, value.batch)
        scale = graph.store(self.scale.astype(np.float32))
        graph.add(replace(self.conv, scale=scale, output=made.tensor))
        pixels = product(self.shape[2:])
        if not self.last or pixels == 1:
            return made
        turned = graph.new("float32", self.shape, value.batch)
        read = (made, (1, self.shape[1]), 0)
        graph.map([Step("copy", (0,), "float32")], [read], turned, shape=(self.shape[1], pixels))
        return turned


@dataclass(frozen=True)
class _Both(Sums):
    """Sum, difference or product of two tensors of bytes.

    Attributes:
        values: The two operands, of which the second may be a gate with one number for each channel.
        names: Their tensors, with the channels in the same place.
        last: Whether that is the last.
        sign: 1 for a sum, -1 for a difference, 0 for a product.
    """

    values: tuple[Bytes, ...] = ()
    names: tuple[str, str] = ("", "")
    last: bool = True
    gate: bool = False
    sign: int = 0

    def stored(self, scale: float, rounding: Rounding) -> tuple[str, bool]:
        graph = self.node.graph
        first, second = self.values
        zeros = (first.zero, second.zero)
        size = product(self.shape)
        if self.sign:
            ratios = (first.scale / scale, self.sign * second.scale / scale)
            summed = Sum8.near(ratios, zeros, rounding)
            made = graph.new("uint8", self.shape, None).tensor
            graph.add(Add8(self.names[0], self.names[1], made, size, summed))
            return made, self.last
        channels = self.shape[1] if self.last and len(self.shape) > 1 else 1
        whole = first.scale * second.scale / scale
        ratio = _ratio(np.array([255 * 255]), np.array([whole]))
        made = graph.new("uint8", self.shape, None).tensor
        pixels = size // channels
        if self.gate and (gate := Gate.near(float(whole), zeros, rounding)):
            graph.add(Gate8(self.names[0], self.names[1], made, pixels, channels, gate))
            return made, self.last
        bare = Multiply8(
            self.names[0], self.names[1], graph.store(ratio), made, pixels, channels,
            self.gate, zeros, rounding,
        )  # fmt: skip
        graph.add(bare)
        return made, self.last


@dataclass(frozen=True)
class _Averages(Sums):
    """Averages over windows of a picture of bytes.

    Attributes:
        value: Bytes of the picture that is averaged.
        pool: The pool without its scale, its result and its rounding.
    """

    value: Bytes | None = None
    pool: Pool8 | None = None

    def stored(self, scale: float, rounding: Rounding) -> tuple[str, bool]:
        assert self.pool is not None
        assert self.value is not None
        graph, taps = self.node.graph, product(self.pool.kernel)
        ratio = _ratio(np.array([255 * taps]), np.array([self.value.scale / scale / taps]))
        made = graph.new("uint8", self.shape, None).tensor
        name = graph.store(ratio)
        graph.add(replace(self.pool, scale=name, output=made, rounding=rounding))
        return made, True


@dataclass(frozen=True)
class _Joined(Sums):
    """Tensors of bytes of several scales, one behind the other along an axis.

    Attributes:
        parts: The tensors, with their shapes.
        axis: The axis.
    """

    parts: tuple[tuple[Bytes, tuple[int, ...]], ...] = ()
    axis: int = 1

    def stored(self, scale: float, rounding: Rounding) -> tuple[str, bool]:
        graph = self.node.graph
        last = self.axis == 1
        rounded = []
        for value, shape in self.parts:
            codes = value.rounded(graph, shape, rounding.zero, scale)
            name = codes.tensor
            if rounding.low > 0 or rounding.high < 255:
                cut = np.clip(np.arange(256), rounding.low, rounding.high).astype(np.uint8)
                made = graph.new("uint8", shape, None).tensor
                graph.add(Table8(name, graph.store(cut), made, product(shape)))
                name = made
            wide = product(shape[self.axis :]) if not last else shape[1]
            rounded.append((ordered(graph, name, codes.last, shape, last), wide))
        return joined(graph, rounded, self.shape), last


def joined(graph: Graph, parts: list[tuple[str, int]], shape: tuple[int, ...]) -> str:
    """Append copies of the rows of tensors of one type, one behind the other, into one; return it.

    Args:
        graph: Plan so far.
        parts: Tensors, each with the length of its rows.
        shape: Shape of the result.
    """
    made = graph.new(graph.tensors[parts[0][0]].dtype, shape, None)
    whole, start = sum(wide for _, wide in parts), 0
    for name, wide in parts:
        source = replace(made, tensor=name)
        graph.map(
            [Step("copy", (0,), made.dtype)],
            [(source, (wide, 1), 0)],
            made,
            into=Access(made.tensor, (whole, 1), start),
            shape=(product(shape) // whole, wide),
        )
        start += wide
    return made.tensor


def _ratio(most: Array, ratio: Array) -> Array:
    """Return factors of sums as float32.

    Args:
        most: Largest magnitude of each sum.
        ratio: The factors.

    Raises:
        IntegrityError: a result is beyond what is rounded.
    """
    with np.errstate(over="ignore", under="ignore"):
        found = ratio.astype(np.float32)
    check_scales(most, found)
    return found


def stored(value: Value, *, by_channel: bool = False) -> Bytes | None:
    """Return a value's bytes where a tensor holds them, for one row of a batch.

    Args:
        value: The value.
        by_channel: Whether each channel may have a scale of its own.
    """
    found = value.bytes
    if found is None or not found.tensor or value.batch != 0:
        return None
    return found if found.scales is None or by_channel else None


def operand(value: Value, *, by_channel: bool = False) -> Bytes | Words | None:
    """Return a value's bytes or words where a tensor holds them; see `stored`."""
    words = value.words
    if words is None or not words.tensor or value.batch != 0:
        return stored(value, by_channel=by_channel)
    return words


def is_picture(value: Value) -> bool:
    """Whether a value is a picture or a sequence, channels as axis 1, that isn't too large."""
    if len(value.shape) not in (3, 4) or value.shape[0] != 1:
        return False
    return value.shape[1] <= MOST_SIZE and max(value.shape[2:]) <= MOST_LENGTH


def _picture(value: Value) -> Bytes | None:
    """Return the bytes of a picture or a sequence."""
    return stored(value) if is_picture(value) else None


def bias_of(node: Node, place: int, outs: int, factor: float = 1.0) -> Array | None:
    """Return the constant that is added, as float64; None where it isn't one number for each output."""
    if not node.has(place):
        return np.zeros(outs)
    found = node.peek(place).constant
    if found is None or found.size not in (1, outs) or found.shape[-1:] not in ((), (1,), (outs,)):
        return None
    return np.broadcast_to(found.astype(np.float64).reshape(-1) * factor, (outs,))


def _coarser(weight: Array, unit: Array, bias: Array) -> tuple[Array, Array]:
    """Return weights and units such that each bias is a number of 31 bits in its channel's unit.

    A channel whose weights are next to nothing has a tiny unit, in which its bias would be a huge number.
    """
    least = np.maximum(np.abs(bias) / _MOST_BIAS, _LEAST_UNIT)
    if (unit >= least).all():
        return weight, unit
    coarse = np.maximum(unit, least)
    along = (-1, *(1 for _ in weight.shape[1:]))
    return np.rint(weight * (unit / coarse).reshape(along)).astype(np.int8), coarse


def give_products(
    node: Node, value: Bytes | Words, levels: Levels, weight: Array, bias: Array, shape: tuple[int, ...],
    bare: Conv8, last: bool, factor: float = 1.0,
) -> bool:  # fmt: skip
    """Give sums of products, unless a sum may overflow.

    Args:
        node: Node that asks.
        value: Bytes or words that are multiplied by the weights.
        levels: Scales of the weights.
        weight: int8 of shape (outputs, height, width, inputs of a group).
        bias: Real numbers that are added.
        shape: Shape of the result.
        bare: The convolution without its constants.
        last: Whether the result has the channels last.
        factor: Number that products are multiplied by.
    """
    outs = len(weight)
    scale: Array | float = value.scale
    if isinstance(value, Bytes) and value.scales is not None:  # each output reads one input only
        scale = np.repeat(value.scales, outs // len(value.scales))
    unit = np.broadcast_to(levels.scale.astype(np.float64), (outs,)) * scale * factor
    if not (np.isfinite(unit).all() and (unit > 0).all() and np.isfinite(bias).all()):
        return False
    weight, unit = _coarser(weight, unit, bias)
    numbers = np.rint(bias / unit).astype(np.int32)
    if not bare.within_bounds:
        return False
    bare = value.reading(bare)
    most = bare.most_sums(weight, numbers)
    try:
        _ratio(most, unit)
    except IntegrityError:  # it is of floats then
        return False
    graph = node.graph
    conv = replace(
        bare,
        weight=graph.store(np.ascontiguousarray(weight)),
        bias=graph.store(numbers),
    )
    pending = Products(shape, node, conv=conv, scale=unit, most=most, last=last)
    node.give(Value("", "float32", shape, 0, pending=pending))
    return True


def converted(node: Node, value: Bytes | Words, shape: tuple[int, ...]) -> Products:
    """Return bytes or words as sums of one product, with a weight of 1, which any rounding may follow.

    Args:
        node: Node that rounds them.
        value: Bytes or words that a tensor holds.
        shape: Their shape.
    """
    graph = node.graph
    by_channel = value.last and len(shape) > 2
    channels = shape[1] if by_channel else shape[-1]
    size = two(shape[2:], 1) if by_channel else (1, product(shape[:-1]))
    bare = Conv8(
        value.tensor, "", graph.store(np.zeros(channels, np.int32)), "", "",
        channels=(channels, channels), groups=channels, size=size,
        kernel=(1, 1), strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0), zero=value.zero,
        rounding=None,
    )  # fmt: skip
    conv = replace(value.reading(bare), weight=graph.store(np.ones(channels, np.int8)))
    most = np.full(channels, 1 << 16)
    scale = np.full(channels, value.scale)
    return Products(shape, node, conv=conv, scale=scale, most=most, last=value.last)


def conv(node: Node) -> bool:
    """Take a convolution of bytes or words by constant integers."""
    given, weight = node.peek(0), node.peek(1)
    outs, ins = weight.shape[:2]
    value, levels = operand(given, by_channel=ins == 1), weight.levels
    if value is None or levels is None or given.shape[0] != 1 or levels.axis not in (None, 0):
        return False
    bias = bias_of(node, 2, outs)
    groups = int(node.attributes.get("group", 1))
    if bias is None or ins * groups != given.shape[1] or outs % groups:
        return False
    sizes = picture(node, given)
    window = window_of(node, sizes, weight.shape[2:])
    graph = node.graph
    bare = Conv8(
        ordered(graph, value.tensor, value.last, given.shape, True), "", "", "", "",
        channels=(given.shape[1], outs),
        groups=groups,
        size=two(sizes, 1),
        kernel=two(window.kernel, 1),
        strides=two(window.strides, 1),
        dilations=two(window.dilations, 1),
        pads=(*two(window.before, 0), *two(window.after, 0)),
        zero=value.zero,
        rounding=None,
    )  # fmt: skip
    numbers = levels.numbers.reshape(outs, ins, *two(window.kernel, 1)).transpose(0, 2, 3, 1)
    shape = (1, outs, *window.output)
    return give_products(node, value, levels, numbers, bias, shape, bare, True)


def _rows(
    node: Node,
    value: Bytes | Words,
    levels: Levels,
    matrix: Array,
    bias: Array,
    factor: float = 1.0,
) -> bool:
    """Give the product of rows of bytes with a matrix of shape (outputs, inputs)."""
    given = node.peek(0)
    outs, ins = matrix.shape
    if given.shape[-1] != ins:
        return False
    rows = product(given.shape[:-1])
    bare = Conv8(
        ordered(node.graph, value.tensor, value.last, given.shape, False), "", "", "", "",
        channels=(ins, outs), groups=1, size=(rows, 1), kernel=(1, 1), strides=(1, 1),
        dilations=(1, 1), pads=(0, 0, 0, 0), zero=value.zero, rounding=None,
    )  # fmt: skip
    shape = (*given.shape[:-1], outs)
    weight = matrix[:, None, None, :]
    return give_products(node, value, levels, weight, bias, shape, bare, False, factor)


def gemm(node: Node) -> bool:
    """Take a product of a row of bytes with constant integers."""
    given, weight = node.peek(0), node.peek(1)
    value, levels = operand(given), weight.levels
    if value is None or levels is None or node.attributes.get("transA", 0):
        return False
    turned = bool(node.attributes.get("transB", 0))
    if levels.axis not in (None, 0 if turned else 1):
        return False
    matrix = levels.numbers if turned else levels.numbers.T
    bias = bias_of(node, 2, len(matrix), float(node.attributes.get("beta", 1.0)))
    factor = float(node.attributes.get("alpha", 1.0))
    return bias is not None and _rows(node, value, levels, matrix, bias, factor)


def matmul(node: Node) -> bool:
    """Take a product of rows of bytes with a constant matrix of integers."""
    given, weight = node.peek(0), node.peek(1)
    value, levels = operand(given), weight.levels
    if value is None or levels is None or levels.numbers.ndim != 2 or len(given.shape) < 2:
        return False
    if levels.axis not in (None, 1):
        return False
    matrix = levels.numbers.T
    return _rows(node, value, levels, matrix, np.zeros(len(matrix)))


def both(sign: int) -> Callable[[Node], bool]:
    """Return the lowering of a sum (1), a difference (-1) or a product (0) of bytes."""

    def lower(node: Node) -> bool:
        return _both(node, sign)

    return lower


def _both(node: Node, sign: int) -> bool:
    first, second = node.peek(0), node.peek(1)
    if stored(first) is None or stored(second) is None:
        return False
    if not sign and product(first.shape) < product(second.shape):
        first, second = second, first
    gate = not sign and first.shape != second.shape
    values = (first.bytes, second.bytes)
    assert values[0] is not None
    assert values[1] is not None
    shape, graph = first.shape, node.graph
    if gate:
        pixels = (1,) * (len(shape) - 2)
        if len(shape) < 3 or len(second.shape) > len(shape) or shape[0] != 1:
            return False
        whole = (1,) * (len(shape) - len(second.shape)) + second.shape
        if whole != (1, shape[1], *pixels):
            return False
        last = True
        names = (ordered(graph, values[0].tensor, values[0].last, shape, True), values[1].tensor)
    elif first.shape == second.shape:
        last = values[0].last
        names = (values[0].tensor, ordered(graph, values[1].tensor, values[1].last, shape, last))
    else:
        return False
    pending = _Both(
        *(shape, node), values=(values[0], values[1]), names=names, last=last, gate=gate, sign=sign
    )
    node.give(Value("", "float32", shape, 0, pending=pending))
    return True


def by_channel(node: Node) -> bool:
    """Take a picture of bytes whose channels are multiplied by constants, or to which some are added."""
    first = node.peek(0)
    at = 0 if first.constant is None else 1
    given = node.peek(at)
    value = operand(given) if is_picture(given) else None
    if value is None:
        return False
    line = _normalization(node) if node.proto.op_type == "BatchNormalization" else _line(node, at)
    if line is None:
        return False
    channels = given.shape[1]
    factor, added = (np.broadcast_to(one, (channels,)) for one in line)
    if not np.isfinite(factor).all():
        return False
    weight = (_ONE * np.sign(factor)).astype(np.int8)
    bare = Conv8(
        ordered(node.graph, value.tensor, value.last, given.shape, True), "", "", "", "",
        channels=(channels, channels), groups=channels, size=two(given.shape[2:], 1),
        kernel=(1, 1), strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0), zero=value.zero,
        rounding=None,
    )  # fmt: skip
    levels = Levels(weight, np.maximum(np.abs(factor), _LEAST_UNIT) / _ONE, 0)
    numbers = weight[:, None, None, None]
    return give_products(node, value, levels, numbers, added, given.shape, bare, True)


def _normalization(node: Node) -> tuple[Array, Array] | None:
    """Return the factor and the summand of each channel of a BatchNormalization."""
    constants = [node.peek(place).constant for place in range(1, 5)]
    if any(one is None for one in constants) or any(map(node.wants, range(1, 5))):
        return None
    factor, added, mean, spread = (np.asarray(one, np.float64) for one in constants)
    with np.errstate(all="ignore"):
        factor = factor / np.sqrt(spread + node.attributes.get("epsilon", 1e-5))
    return factor, added - factor * mean


def _line(node: Node, at: int) -> tuple[Array, Array] | None:
    """Return the factor and the summand of each channel of an operator with a constant.

    Args:
        node: The node.
        at: Place of the input that isn't constant.
    """
    kind, shape = node.proto.op_type, node.peek(at).shape
    constant = node.peek(1 - at).constant
    if constant is None or constant.ndim > len(shape) or constant.size not in (1, shape[1]):
        return None
    spread = (1,) * (len(shape) - constant.ndim) + constant.shape
    if spread != (1, constant.size, *(1 for _ in shape[2:])):
        return None
    numbers = constant.astype(np.float64).reshape(-1)
    one, none = np.ones(1), np.zeros(1)
    if kind == "Add":
        return one, numbers
    if kind == "Sub":
        return (-one, numbers) if at else (one, -numbers)
    if kind == "Mul":
        return numbers, none
    with np.errstate(all="ignore"):
        return None if at else (1 / numbers, none)


def _pool(value: Bytes, given: Value, graph: Graph, kernel: tuple[int, int]) -> Pool8:
    """Return a pool of a picture by a window, without its scale, its result and its rounding."""
    name = ordered(graph, value.tensor, value.last, given.shape, True)
    sizes = two(given.shape[2:], 1)
    return Pool8(
        name, "", "", given.shape[1], sizes, kernel, (1, 1), (0, 0, 0, 0), value.zero, None
    )


def global_average(node: Node) -> bool:
    """Take an average over whole pictures."""
    given = node.peek(0)
    value = _picture(given)
    if value is None:
        return False
    shape = (*given.shape[:2], *(1 for _ in given.shape[2:]))
    pool = _pool(value, given, node.graph, two(given.shape[2:], 1))
    pending = _Averages(shape, node, value=value, pool=pool)
    node.give(Value("", "float32", shape, 0, pending=pending))
    return True


def global_largest(node: Node) -> bool:
    """Take the largest byte of whole pictures."""
    given = node.peek(0)
    value = _picture(given)
    if value is None:
        return False
    shape = (*given.shape[:2], *(1 for _ in given.shape[2:]))
    bare = _pool(value, given, node.graph, two(given.shape[2:], 1))
    _largest(node, value, bare, shape)
    return True


def _largest(node: Node, value: Bytes, bare: Pool8, shape: tuple[int, ...]) -> None:
    """Give the largest byte of each window."""
    made = node.graph.new("uint8", shape, None).tensor
    node.graph.add(replace(bare, output=made))
    kept = Bytes.stored(made, True, value.zero, value.scale)
    node.give(Value("", "float32", shape, 0, bytes=kept))


def mean(whole: Callable[[Node], bool]) -> Callable[[Node], bool]:
    """Return the lowering of an average over axes, where these are whole pictures, by that of such averages."""
    return lambda node: _mean(node, whole)


def _mean(node: Node, whole: Callable[[Node], bool]) -> bool:
    given = node.peek(0)
    axes = node.attributes.get("axes")
    if axes is None and node.has(1) and node.peek(1).constant is not None:
        axes = [int(one) for one in np.ravel(np.asarray(node.peek(1).constant))]
    rank = len(given.shape)
    if axes is None or sorted(int(axis) % rank for axis in axes) != list(range(2, rank)):
        return False
    if not whole(node):
        return False
    if not node.attributes.get("keepdims", 1):
        made = node.graph.values[node.proto.output[0]]
        assert made.pending is not None
        shape = given.shape[:2]
        node.give(replace(made, shape=shape, pending=replace(made.pending, shape=shape)))
    return True


def pool(node: Node) -> bool:
    """Take the largest byte, or the average, of windows."""
    given = node.peek(0)
    value = _picture(given)
    if value is None or node.wants(1):
        return False
    sizes = given.shape[2:]
    window = window_of(node, sizes, [int(one) for one in node.attributes["kernel_shape"]])
    ends = tuple(
        (o - 1) * s + k - n - b
        for n, b, o, s, k in zip(
            *(sizes, window.before, window.output, window.strides, window.kernel), strict=True
        )
    )
    largest = node.proto.op_type == "MaxPool"
    counted = bool(node.attributes.get("count_include_pad", 0)) and all(
        end <= after for end, after in zip(ends, window.after, strict=True)
    )
    if max(window.dilations) > 1:
        return False
    if not largest and not counted and max(*window.before, *ends) > 0:
        return False
    bare = replace(
        _pool(value, given, node.graph, two(window.kernel, 1)),
        strides=two(window.strides, 1),
        pads=(*two(window.before, 0), *two([max(0, end) for end in ends], 0)),
    )
    shape = (*given.shape[:2], *window.output)
    if not largest:
        pending = _Averages(shape, node, value=value, pool=bare)
        node.give(Value("", "float32", shape, 0, pending=pending))
        return True
    _largest(node, value, bare, shape)
    return True


def concat(node: Node) -> bool:
    """Take tensors of bytes one behind the other along an axis."""
    given = [node.peek(place) for place in range(len(node.proto.input))]
    shape, axis = concatenated(node, [value.shape for value in given])
    if any(value.bytes is None or value.batch != 0 for value in given) or not shape:
        return False
    parts = tuple((value.bytes, value.shape) for value in given if value.bytes is not None)
    if any(one.scales is not None for one, _ in parts):
        return axis == 1 and _concat_by_channel(node, shape, parts)
    pending = _Joined(shape, node, parts=parts, axis=axis)
    node.give(Value("", "float32", shape, 0, pending=pending))
    kinds = {(one.zero, one.scale) for one, _ in parts}
    if len(kinds) == 1 and all(one.tensor for one, _ in parts):
        zero, scale = kinds.pop()
        tensor, last = pending.stored(scale, Rounding(zero))
        kept = Bytes.stored(tensor, last, zero, scale)
        node.give(Value("", "float32", shape, 0, bytes=kept))
    return True


def concatenated(node: Node, shapes: list[tuple[int, ...]]) -> tuple[tuple[int, ...], int]:
    """Return the shape of tensors one behind the other, and the axis; no shape where that isn't one row's."""
    first = shapes[0]
    axis = node.axis(int(node.attributes["axis"]), len(first))
    if axis == 0 or product(first[:1]) != 1:
        return (), axis
    if any(
        len(one) != len(first) or _without(one, axis) != _without(first, axis) for one in shapes
    ):
        return (), axis
    return (*first[:axis], sum(one[axis] for one in shapes), *first[axis + 1 :]), axis


def _concat_by_channel(
    node: Node, shape: tuple[int, ...], parts: tuple[tuple[Bytes, tuple[int, ...]], ...]
) -> bool:
    """Take channels of tensors with steps of their own one behind the other, where one byte is the zero of all."""
    zeros = {one.zero for one, _ in parts}
    if len(zeros) > 1 or not all(one.tensor for one, _ in parts):
        return False
    zero = zeros.pop()
    steps = [
        np.full(given[1], one.scale, np.float32) if one.scales is None else one.scales
        for one, given in parts
    ]
    counted = tuple((one.read_as(zero, 1.0), given) for one, given in parts)
    tensor, last = _Joined(shape, node, parts=counted, axis=1).stored(1.0, Rounding(zero))
    kept = replace(Bytes.stored(tensor, last, zero, 1.0), scales=np.concatenate(steps))
    node.give(Value("", "float32", shape, 0, bytes=kept))
    return True


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]
