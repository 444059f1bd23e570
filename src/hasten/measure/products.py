"""Operators that do a network's arithmetic: how many products each needs, and of which elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Shape: TypeAlias = tuple[int, ...]

_MORE_AXES = "".join(map(chr, range(0xE000, 0xE020)))
"""Names for the axes that "..." stands for in an equation, aligned at the last axis."""


@dataclass(frozen=True)
class Product:
    """One node that multiplies.

    Attributes:
        operands: Shapes of the tensors that it multiplies, in the operator's order.
        output: Shape of its first output.
        attributes: Attributes of the node, by name.
    """

    operands: tuple[Shape, ...]
    output: Shape
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Count:
    """The least that a product takes.

    Attributes:
        multiplications: Number of multiplications, each with its addition.
        needed: Number of elements needed of each operand.
    """

    multiplications: int
    needed: tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    """An operator that multiplies.

    Attributes:
        inputs: Positions of the operands among a node's inputs; empty where all are operands.
        count: Function from shapes and attributes to the count; None where they don't determine it.
    """

    inputs: tuple[int, ...]
    count: Callable[[Product], Count | None]


@dataclass(frozen=True)
class Taps:
    """Overlap of a kernel's taps with a signal along one axis, without the padding around it.

    Attributes:
        pairs: Number of (position, tap) pairs inside the signal.
        touched: Number of elements of the signal that some tap meets.
        used: Number of taps that meet some element.
    """

    pairs: int
    touched: int
    used: int


def taps(
    signal: int, positions: int, kernel: int, *, stride: int, dilation: int, padding: int
) -> Taps:
    """Count the overlap along one axis of a convolution.

    Args:
        signal: Length of the signal that the kernel moves over.
        positions: Number of positions at which the kernel stops.
        kernel: Number of taps of the kernel.
        stride: Distance from one position to the next.
        dilation: Distance from one tap to the next.
        padding: Padding before the signal.
    """
    met = np.zeros(signal, np.bool_)
    pairs = used = 0
    for tap in range(kernel):
        shift = tap * dilation - padding
        first = max(0, -(shift // stride))  # first position at which this tap is inside
        last = min(positions - 1, (signal - 1 - shift) // stride)
        if first <= last:
            pairs += last - first + 1
            used += 1
            met[first * stride + shift : last * stride + shift + 1 : stride] = True
    return Taps(pairs, int(met.sum()), used)


def _axes(product: Product, signal: Shape, positions: Shape) -> list[Taps]:
    """Count along the spatial axes of a convolution; a transposed one has the roles swapped."""
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
    inner = left[-2] if product.attributes.get("transA") else left[-1]
    return Count(math.prod(product.output) * inner, _whole(product.operands))


def _fused_matrix_product(product: Product) -> Count | None:
    given = product.attributes
    if given.get("transBatchA") or given.get("transBatchB"):
        return None
    return _matrix_product(product)


def _packed_matrix_product(product: Product) -> Count:
    """Count products with weights of a few bits each; the weights' bytes aren't counted."""
    return Count(math.prod(product.output) * product.attributes["K"], _whole(product.operands))


def _einsum(product: Product) -> Count | None:
    """Count products of two operands, after each is summed over the axes that it has alone.

    There are none where that leaves nothing to sum over: the operands then multiply elementwise.
    """
    given, arrow, result = (
        bytes(product.attributes["equation"]).decode().replace(" ", "").partition("->")
    )
    if given.count(",") != len(product.operands) - 1:
        return None
    terms: list[str] = []
    sizes: dict[str, int] = {}
    for term, shape in zip(given.split(","), product.operands, strict=True):
        more = len(shape) - len(term.replace("...", ""))
        terms.append(term.replace("...", _MORE_AXES[len(_MORE_AXES) - more :]))
        for name, size in zip(terms[-1], shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 0))
    everything = "".join(terms)
    kept = set(result) if arrow else {name for name in sizes if everything.count(name) == 1}
    if not arrow or "..." in result:
        kept.update(_MORE_AXES)
    shared = set.intersection(*map(set, terms))
    if len(terms) == 1 or (len(terms) == 2 and not shared - kept):
        return Count(0, _whole(product.operands))
    if len(terms) != 2:
        return None
    multiplications = math.prod(size for name, size in sizes.items() if name in kept | shared)
    return Count(multiplications, _whole(product.operands))


def _attention(product: Product) -> Count:
    """Count the scores and their products with the values; a causal mask saves nearly half."""
    queries, keys, _ = product.operands
    multiplications = (math.prod(queries) + math.prod(product.output)) * keys[-2]
    if product.attributes.get("is_causal"):
        multiplications //= 2
    return Count(multiplications, _whole(product.operands))


def _projected_attention(product: Product) -> Count:
    """Count the projection of one input to queries, keys and values, then attention among them."""
    tokens, weights = product.operands
    values = product.output[-1]
    queries = (weights[1] - values) // 2
    scored = math.prod(tokens[:2]) * tokens[1] * (queries + values)
    if product.attributes.get("unidirectional"):
        scored //= 2
    return Count(math.prod(tokens) * weights[1] + scored, _whole(product.operands))


def _split_attention(product: Product) -> Count | None:
    """Count attention as `_attention` does, where queries, keys and values are separate inputs."""
    if any(len(shape) != 3 for shape in product.operands):
        return None
    queries, keys, _ = product.operands
    multiplications = (math.prod(queries) + math.prod(product.output)) * keys[-2]
    if product.attributes.get("unidirectional"):
        multiplications //= 2
    return Count(multiplications, _whole(product.operands))


def _linear(product: Product) -> Count:
    """Count a linear model, which has one weight for every feature and class."""
    features = product.operands[0]
    rows = features[0] if len(features) > 1 else 1
    return Count(rows * len(product.attributes["coefficients"]), _whole(product.operands))


def _recurrent(product: Product) -> Count:
    """Count a recurrent network: each step multiplies with every weight of input and state."""
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
    "Einsum": Operator((), _einsum),
    "Attention": Operator((0, 1, 2), _attention),
    "LSTM": Operator((0, 1, 2), _recurrent),
    "GRU": Operator((0, 1, 2), _recurrent),
    "RNN": Operator((0, 1, 2), _recurrent),
}
"""Operators by name, in ONNX's own domain."""
_MICROSOFT: Mapping[str, Operator] = {
    "Attention": Operator((0, 1), _projected_attention),
    "DynamicQuantizeLSTM": Operator((0, 1, 2), _recurrent),
    "DynamicQuantizeMatMul": Operator((0, 1), _matrix_product),
    "FusedConv": Operator((0, 1), _convolution),
    "FusedGemm": Operator((0, 1), _matrix_product),
    "FusedMatMul": Operator((0, 1), _fused_matrix_product),
    "MatMulIntegerToFloat": Operator((0, 1), _matrix_product),
    "MatMulNBits": Operator((0,), _packed_matrix_product),
    "MultiHeadAttention": Operator((0, 1, 2), _split_attention),
    "QAttention": Operator((0, 1), _projected_attention),
    "QGemm": Operator((0, 3), _matrix_product),
}
_CLASSICAL: Mapping[str, Operator] = {
    "LinearClassifier": Operator((0,), _linear),
    "LinearRegressor": Operator((0,), _linear),
}
_BY_DOMAIN = {
    "": OPERATORS,
    "ai.onnx": OPERATORS,
    "com.microsoft": _MICROSOFT,
    "ai.onnx.ml": _CLASSICAL,
}
_FREE = {
    "com.microsoft": """
        BiasGelu BiasSoftmax DequantizeLinear EmbedLayerNormalization FastGelu Gelu QLinearAdd
        QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul
        QLinearReduceMean QLinearSigmoid QLinearSoftmax QuantizeLinear QuickGelu RotaryEmbedding
        SkipLayerNormalization SkipSimplifiedLayerNormalization""",
    "ai.onnx.ml": """
        ArrayFeatureExtractor Binarizer CategoryMapper FeatureVectorizer Imputer LabelEncoder
        Normalizer OneHotEncoder Scaler""",
}
"""Operators of other domains whose only products are elementwise."""
_NOT_FREE = frozenset({"DFT", "DeformConv", "Det", "STFT"})
"""Operators of ONNX's own domain whose arithmetic isn't counted here."""


def operator_of(domain: str, name: str) -> Operator | None:
    """Return how an operator's products are counted; None where it has none or they can't be."""
    return _BY_DOMAIN.get(domain, {}).get(name)


def free(domain: str, name: str) -> bool:
    """Whether an operator is known to have no products, nor other work worth counting."""
    if domain in ("", "ai.onnx"):
        return name not in OPERATORS and name not in _NOT_FREE
    return name in _FREE.get(domain, "").split()
