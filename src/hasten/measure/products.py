"""The operators that do a network's arithmetic: how many products each needs, and of which elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Product:
    """One node that multiplies.

    Attributes:
        operands: Shapes of what it multiplies, in the operator's order.
        output: Shape of its first output.
        attributes: Of the node, by name.
    """

    operands: tuple[Shape, ...]
    output: Shape
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Count:
    """What a product takes at the least.

    Attributes:
        multiplications: Each with its addition.
        needed: How many elements of each operand.
    """

    multiplications: int
    needed: tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    """An operator that multiplies.

    Attributes:
        inputs: Positions of what it multiplies among a node's inputs.
        count: From shapes and attributes; None where they don't tell.
    """

    inputs: tuple[int, ...]
    count: Callable[[Product], Count | None]


@dataclass(frozen=True)
class Taps:
    """Along one axis: where a kernel's taps meet a signal, and not the padding around it.

    Attributes:
        pairs: How many (position, tap) there are.
        touched: How many elements of the signal any tap meets.
        used: How many taps meet any.
    """

    pairs: int
    touched: int
    used: int


def taps(
    signal: int, positions: int, kernel: int, *, stride: int, dilation: int, padding: int
) -> Taps:
    """Count along one axis of a convolution.

    Args:
        signal: Length of what the kernel moves over.
        positions: At how many places it stops.
        kernel: Its taps.
        stride: From one place to the next.
        dilation: From one tap to the next.
        padding: Before the signal.
    """
    met = np.zeros(signal, np.bool_)
    pairs = used = 0
    for tap in range(kernel):
        shift = tap * dilation - padding
        first = max(0, -(shift // stride))  # the first place at which this tap is inside
        last = min(positions - 1, (signal - 1 - shift) // stride)
        if first <= last:
            pairs += last - first + 1
            used += 1
            met[first * stride + shift : last * stride + shift + 1 : stride] = True
    return Taps(pairs, int(met.sum()), used)


def _axes(product: Product, signal: Shape, positions: Shape) -> list[Taps]:
    """Count along each spatial axis of a convolution, or of a transposed one with the roles swapped."""
    kernel = product.operands[1][2:]
    rank, given = len(kernel), product.attributes
    strides, dilations = (given.get(name) or [1] * rank for name in ("strides", "dilations"))
    auto = given.get("auto_pad", b"NOTSET")
    found = []
    for axis in range(rank):
        stride, dilation = strides[axis], dilations[axis]
        padding = (given.get("pads") or [0] * rank)[axis] if auto == b"NOTSET" else 0
        if auto in (b"SAME_UPPER", b"SAME_LOWER") or "output_shape" in given:
            reach = (positions[axis] - 1) * stride + (kernel[axis] - 1) * dilation + 1
            padding = (
                max(0, reach - signal[axis]) // 2
            )  # an odd one before or after: the same count
        found.append(
            taps(
                signal[axis],
                positions[axis],
                kernel[axis],
                stride=stride,
                dilation=dilation,
                padding=padding,
            )
        )
    return found


def _convolution(product: Product) -> Count:
    image, weights = product.operands
    axes = _axes(product, image[2:], product.output[2:])
    return Count(
        math.prod(product.output[:2]) * weights[1] * math.prod(axis.pairs for axis in axes),
        (
            math.prod(image[:2]) * math.prod(axis.touched for axis in axes),
            math.prod(weights[:2]) * math.prod(axis.used for axis in axes),
        ),
    )


def _transposed_convolution(product: Product) -> Count:
    image, weights = product.operands
    axes = _axes(product, product.output[2:], image[2:])
    return Count(
        math.prod(image[:2]) * weights[1] * math.prod(axis.pairs for axis in axes),
        (math.prod(image), math.prod(weights[:2]) * math.prod(axis.used for axis in axes)),
    )


def _matrix_product(product: Product) -> Count:
    left = product.operands[0]
    inner = left[0] if product.attributes.get("transA") else left[-1]
    return Count(math.prod(product.output) * inner, _whole(product.operands))


def _einsum(product: Product) -> Count | None:
    """Of two operands, each axis named once; what sums over nothing multiplies element by element."""
    equation = bytes(product.attributes["equation"]).decode().replace(" ", "")
    terms, arrow, result = equation.partition("->")
    names = terms.split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(names, product.operands, strict=False):
        sizes.update(zip(term, shape, strict=False))
    plain = arrow and "." not in equation and all(len(set(term)) == len(term) for term in names)
    if len(names) != 2 or not plain or not sizes.keys() - set(result):
        return None
    return Count(math.prod(sizes.values()), _whole(product.operands))


def _attention(product: Product) -> Count:
    """Scores and their products with the values; a causal mask spares nearly half of both."""
    queries, keys, _ = product.operands
    multiplications = (math.prod(queries) + math.prod(product.output)) * keys[-2]
    if product.attributes.get("is_causal"):
        multiplications //= 2
    return Count(multiplications, _whole(product.operands))


def _recurrent(product: Product) -> Count:
    """Each step multiplies with every weight, of the input and of the state before."""
    steps, weights, recurrence = product.operands
    each = math.prod(weights) + math.prod(recurrence)
    return Count(math.prod(steps[:2]) * each, _whole(product.operands))


def _whole(operands: Sequence[Shape]) -> tuple[int, ...]:
    return tuple(math.prod(shape) for shape in operands)


OPERATORS: Mapping[str, Operator] = {
    "Conv": Operator((0, 1), _convolution),
    "ConvInteger": Operator((0, 1), _convolution),
    "QLinearConv": Operator((0, 3), _convolution),
    "ConvTranspose": Operator((0, 1), _transposed_convolution),
    "Gemm": Operator((0, 1), _matrix_product),
    "MatMul": Operator((0, 1), _matrix_product),
    "MatMulInteger": Operator((0, 1), _matrix_product),
    "QLinearMatMul": Operator((0, 3), _matrix_product),
    "Einsum": Operator((0, 1), _einsum),
    "Attention": Operator((0, 1, 2), _attention),
    "LSTM": Operator((0, 1, 2), _recurrent),
    "GRU": Operator((0, 1, 2), _recurrent),
    "RNN": Operator((0, 1, 2), _recurrent),
}
"""By ONNX's name, in ONNX's own domain."""
