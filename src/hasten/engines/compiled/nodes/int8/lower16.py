"""Roundings to words of 16 bits, and operators over words.

What has no form of words, such as a softmax or a largest number of windows, is calculated in floats.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hasten.engines.compiled.nodes.convolutions import two
from hasten.engines.compiled.nodes.int8 import sums
from hasten.engines.compiled.nodes.int8.curves import ONE_BY_ONE, Sloped
from hasten.engines.compiled.nodes.int8.pending import PendingNode
from hasten.engines.compiled.nodes.int8.transposed import Interleaved
from hasten.engines.compiled.operators.int8.conversions16 import Quantize16
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.compiled.operators.int8.numbers import Rounding
from hasten.engines.compiled.operators.int8.numbers16 import LOWEST, WORDS, Rounding16
from hasten.engines.compiled.operators.int8.words import MOST_PRODUCT, MOST_RATIO, Add16, Multiply16
from hasten.engines.compiled.tensors import product
from hasten.engines.compiled.values import (
    Bytes,
    Levels,
    Value,
    Words,
    byte_codes,
    ordered,
    word_codes,
)
from hasten.engines.layers import node_name
from hasten.errors import IntegrityError

if TYPE_CHECKING:
    from hasten.engines.compiled.graph import Node

_MOST_TAPS = 1 << 16
"""Pixels of an average beyond which it is calculated in floats."""


def _form(node: Node) -> tuple[float, int, str] | None:
    """Return the scale, the word of zero and the type of words, of a node that quantizes to 16 bits."""
    scale = node.peek(1).constant
    zero = node.peek(2).constant if node.has(2) else np.zeros((), byte_type(node))
    if scale is None or zero is None or scale.size != 1 or scale.dtype != np.float32:
        return None
    if zero.dtype not in (np.int16, np.uint16):
        return None
    if not (np.isfinite(scale).all() and scale.min() > 0):
        return None
    less = LOWEST if zero.dtype == np.uint16 else 0
    return float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]) + less, str(zero.dtype)


def quantize(node: Node) -> bool:
    """Round a value to words; give a value of words, which a DequantizeLinear makes numbers of."""
    value, form = node.peek(0), _form(node)
    if form is None or value.dtype != "float32" or value.constant is not None:
        return False
    scale, zero, dtype = form
    made = None
    if value.words is not None:
        made = value.words.rounded(node.graph, value.shape, zero, scale)
    elif isinstance(value.pending, PendingNode):
        with suppress(IntegrityError):  # it is beyond what a sum's rounding takes
            made = _rounded(value.pending, zero, scale)
    elif (found := sums.stored(value)) is not None:
        with suppress(IntegrityError):
            made = _rounded(sums.converted(node, found, value.shape), zero, scale)
    if made is None:
        made = _of_floats(node, node.input(0), zero, scale)
    node.give(Value("", dtype, value.shape, value.batch, words=made))
    return True


def byte_type(node: Node) -> str:
    """Return the type of bytes where a node that quantizes, or the other way, has no zero point."""
    if node.proto.op_type == "DequantizeLinear":
        return node.peek(0).dtype
    import onnx

    wanted = int(node.attributes.get("output_dtype", 0)) or onnx.TensorProto.UINT8
    return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(wanted)))


def _rounded(pending: PendingNode, zero: int, scale: float) -> Words | None:
    """Append operations that round sums to words of a scale; return None where there are none."""
    pending.node.graph.source = node_name(pending.node.proto)
    low, high = (int(one) for one in word_codes(np.array([pending.low, pending.high]), zero, scale))
    rounding = Rounding16(zero, low, high)
    if isinstance(pending, sums.Products | Sloped | Interleaved):
        return Words.stored(*pending.stored(scale, rounding), zero, scale)
    if isinstance(pending, _OfWords):
        return Words.stored(*pending.stored(scale, rounding), zero, scale)
    return None


def _of_floats(node: Node, value: Value, zero: int, scale: float) -> Words:
    """Append the operation that rounds floats."""
    graph = node.graph
    last = len(value.shape) == 4 and value.shape[0] == 1
    rows = value.shape[1] if last else 1
    tensor = graph.new("int16", value.shape, None).tensor
    pixels = product(value.shape) // rows
    graph.add(Quantize16(graph.tensor(value), tensor, rows, pixels, scale, Rounding16(zero)))
    return Words.stored(tensor, last, zero, scale)


def dequantize(node: Node) -> bool:
    """Give the numbers that words stand for."""
    value, form = node.peek(0), _form(node)
    if form is None or value.dtype != form[2]:
        return False
    scale, zero, dtype = form
    if value.words is not None:
        made = value.words.read_as(zero, scale)
    elif value.constant is None and dtype == "int16":
        made = Words.stored(value.tensor, False, zero, scale)
    else:
        return False
    node.give(made.given(value.shape, value.batch))
    return True


def taken(node: Node) -> bool:
    """Lower a node over words, if that is possible; return whether it was."""
    given = [node.graph.values[name] for name in node.proto.input if name]
    if not any(value.words is not None for value in given):
        return False
    found = _TAKEN.get(node.proto.op_type)
    return _one_by_one(node) or (found is not None and found(node))


def _one_by_one(node: Node) -> bool:
    """Take an operator over values that depend on the same word: its results are a table."""
    if node.proto.op_type not in ONE_BY_ONE:
        return False
    named = {name: node.graph.values[name] for name in node.proto.input if name}
    moving = [value for value in named.values() if value.constant is None]
    words = [value.words for value in moving if value.words is not None]
    if len(words) < len(moving) or len({(one.root, one.last) for one in words}) > 1:
        return False
    shape = moving[0].shape
    if len({value.shape for value in moving}) > 1 or moving[0].dtype != "float32":
        return False
    if any(
        value.constant is not None
        and (value.constant.size != 1 or value.constant.ndim > len(shape))
        for value in named.values()
    ):
        return False
    numbers = {
        name: one.constant.reshape(()) for name, one in named.items() if one.constant is not None
    }
    numbers |= {name: one.words.table for name, one in named.items() if one.words is not None}
    with np.errstate(all="ignore"):
        found = node.evaluated(numbers)
    if found is None or found[0].shape != (WORDS,) or not np.isfinite(found[0]).all():
        return False
    made = Words(words[0].root, words[0].last, np.asarray(found[0], np.float32))
    node.give(made.given(shape, moving[0].batch))
    return True


@dataclass(frozen=True)
class _OfWords(PendingNode):
    """Sums, products or parts of words that nothing has rounded yet."""

    @abstractmethod
    def stored(self, scale: float, rounding: Rounding16) -> tuple[str, bool]:
        """Append operations that round them to words; return the tensor, and whether channels are last.

        Raises:
            IntegrityError: the scales don't allow it.
        """

    def rounded(self, zero: int, scale: float) -> Bytes:
        """Append operations that round them to bytes: to words that are bytes first, so that they are rounded once."""
        low, high = (int(one) for one in byte_codes(np.array([self.low, self.high]), zero, scale))
        tensor, last = self.stored(scale, Rounding16(zero, low, high))
        bytes_ = Words.stored(tensor, last, 0, 1.0)
        made = sums.converted(self.node, bytes_, self.shape).stored(1.0, Rounding(0))
        return Bytes.stored(*made, zero, scale)


def to_bytes(node: Node, zero: int, scale: float) -> Bytes | None:
    """Append the operation that rounds words to bytes of a scale; return None where no tensor holds them."""
    value = node.peek(0)
    found = sums.operand(value)
    if not isinstance(found, Words):
        return None
    with suppress(IntegrityError):  # it is beyond what a sum's rounding takes
        made = sums.converted(node, found, value.shape).stored(scale, Rounding(zero))
        return Bytes.stored(*made, zero, scale)
    return None


@dataclass(frozen=True)
class _Both(_OfWords):
    """Sum, difference or product of two tensors of words.

    Attributes:
        values: The two operands.
        names: Their tensors, with the channels in the same place.
        last: Whether that is the last.
        gate: Whether the second has one number for each channel.
        sign: 1 for a sum, -1 for a difference, 0 for a product.
    """

    values: tuple[Words, ...] = ()
    names: tuple[str, str] = ("", "")
    last: bool = True
    gate: bool = False
    sign: int = 0

    def stored(self, scale: float, rounding: Rounding16) -> tuple[str, bool]:
        graph, (first, second) = self.node.graph, self.values
        zeros, size = (first.zero, second.zero), product(self.shape)
        if self.sign:
            ratios = (first.scale / scale, self.sign * second.scale / scale)
            if max(map(abs, ratios)) > MOST_RATIO:
                raise IntegrityError(f"ratios of scales of {ratios[0]:g} and {ratios[1]:g}")
            made = graph.new("int16", self.shape, None).tensor
            graph.add(Add16(*self.names, made, size, zeros, ratios, rounding))
            return made, self.last
        ratio = first.scale * second.scale / scale
        if not 0 < ratio <= MOST_PRODUCT:
            raise IntegrityError(f"a ratio of scales of {ratio:g}")
        channels = self.shape[1] if self.last and len(self.shape) > 1 else self.shape[-1]
        made = graph.new("int16", self.shape, None).tensor
        given = (*self.names, made, size // channels, channels, self.gate)
        graph.add(Multiply16(*given, zeros, ratio, rounding))
        return made, self.last


def _both(sign: int) -> Callable[[Node], bool]:
    """Return the lowering of a sum (1), a difference (-1) or a product (0) of words."""

    def lower(node: Node) -> bool:
        first, second = node.peek(0), node.peek(1)
        if not sign and product(first.shape) < product(second.shape):
            first, second = second, first
        values = (sums.operand(first), sums.operand(second))
        if not (isinstance(values[0], Words) and isinstance(values[1], Words)):
            return False
        shape, graph, last = first.shape, node.graph, values[0].last
        names = [values[0].tensor, values[1].tensor]
        gate = first.shape != second.shape
        if gate:
            lead = (1,) * (len(shape) - len(second.shape))
            if sign or len(shape) < 3 or shape[0] != 1:
                return False
            if (*lead, *second.shape) != (1, shape[1], *(1 for _ in shape[2:])):
                return False
            names[0], last = ordered(graph, names[0], last, shape, True), True
        else:
            names[1] = ordered(graph, names[1], values[1].last, shape, last)
        made = _Both(
            *(shape, node), values=(values[0], values[1]), names=(names[0], names[1]),
            last=last, gate=gate, sign=sign,
        )  # fmt: skip
        node.give(Value("", "float32", shape, 0, pending=made))
        return True

    return lower


@dataclass(frozen=True)
class _Joined(_OfWords):
    """Tensors of words of several scales, one behind the other along an axis.

    Attributes:
        parts: The tensors, with their shapes.
        axis: The axis.
    """

    parts: tuple[tuple[Words, tuple[int, ...]], ...] = ()
    axis: int = 1

    def stored(self, scale: float, rounding: Rounding16) -> tuple[str, bool]:
        if (rounding.low, rounding.high) != (Rounding16(0).low, Rounding16(0).high):
            raise IntegrityError("bounds of a concatenation")
        graph, last = self.node.graph, self.axis == 1
        rounded = []
        for value, shape in self.parts:
            made = value.rounded(graph, shape, rounding.zero, scale)
            wide = shape[1] if last else product(shape[self.axis :])
            rounded.append((ordered(graph, made.tensor, made.last, shape, last), wide))
        return sums.joined(graph, rounded, self.shape), last


def _concat(node: Node) -> bool:
    """Take tensors of words one behind the other along an axis."""
    given = [node.peek(place) for place in range(len(node.proto.input))]
    shape, axis = sums.concatenated(node, [value.shape for value in given])
    parts = tuple((value.words, value.shape) for value in given if value.words is not None)
    if len(parts) < len(given) or any(value.batch != 0 for value in given) or not shape:
        return False
    pending = _Joined(shape, node, parts=parts, axis=axis)
    node.give(Value("", "float32", shape, 0, pending=pending))
    return True


def _global_average(node: Node) -> bool:
    """Take an average over whole pictures, as sums of products with 1."""
    given = node.peek(0)
    value, taps = sums.operand(given), product(given.shape[2:])
    if not isinstance(value, Words) or not sums.is_picture(given) or taps > _MOST_TAPS:
        return False
    channels, kernel = given.shape[1], two(given.shape[2:], 1)
    name = ordered(node.graph, value.tensor, value.last, given.shape, True)
    bare = Conv8(
        name, "", "", "", "",
        channels=(channels, channels), groups=channels, size=kernel, kernel=kernel, strides=(1, 1),
        dilations=(1, 1), pads=(0, 0, 0, 0), zero=value.zero, rounding=None,
    )  # fmt: skip
    ones = np.ones((channels, *kernel, 1), np.int8)
    levels = Levels(ones, np.array([1 / taps]), None)
    shape = (*given.shape[:2], *(1 for _ in given.shape[2:]))
    return sums.give_products(node, value, levels, ones, np.zeros(channels), shape, bare, True)


_TAKEN: Mapping[str, Callable[[Node], bool]] = {
    "Add": _both(1),
    "Sub": _both(-1),
    "Mul": _both(0),
    "Concat": _concat,
    "GlobalAveragePool": _global_average,
    "ReduceMean": sums.mean(_global_average),
}
