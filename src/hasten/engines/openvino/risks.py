"""Risks of a graph on OpenVINO: failures that follow from a request's numbers, and tensors inside that may be empty."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from html import unescape
from pathlib import Path
from typing import NamedTuple

_ELEMENTWISE = """Abs Acos Acosh Add Asin Asinh Atan Atanh BitwiseAnd BitwiseLeftShift BitwiseNot BitwiseOr
    BitwiseRightShift BitwiseXor Ceiling Clamp Convert ConvertLike Cos Cosh Divide Elu Equal Erf Exp FakeConvert
    FakeQuantize Floor FloorMod Gelu Greater GreaterEqual HSigmoid HSwish HardSigmoid Identity IsFinite IsInf IsNaN Less
    LessEqual Log LogicalAnd LogicalNot LogicalOr LogicalXor Maximum Minimum Mish Mod Multiply Negative NotEqual PReLU
    Power ReLU Round Select Selu Sigmoid Sign Sin Sinh SoftPlus SoftSign Sqrt SquaredDifference Subtract Swish Tan Tanh"""
"""Each number of the answer is made of one number of each input, whatever it is."""
_SUMS = """AvgPool BatchNormInference BinaryConvolution Convolution DeformableConvolution Einsum ExtractImagePatches
    GRN GRUCell GroupConvolution GroupNormalization LSTMCell LogSoftmax MatMul MaxPool RNNCell ScaledDotProductAttention
    SoftMax"""
"""Numbers are added up, compared or normalized at places that follow from shapes and attributes."""
_MOVES = "Bucketize Concat Const DepthToSpace GridSample Parameter RegionYolo ReorgYolo Result ShapeOf ShuffleChannels SpaceToDepth"
"""Numbers are moved or counted; places out of range are cut off."""
_FIRST = """AdaptiveAvgPool AdaptiveMaxPool BatchToSpace Broadcast Col2Im CumSum DFT GatherElements GatherND IDFT IRDFT
    Interpolate LRN MVN NormalizeL2 RDFT ReduceL1 ReduceL2 ReduceLogicalAnd ReduceLogicalOr ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum Reshape ReverseSequence Roll Slice SpaceToBatch Split Squeeze StridedSlice Tile TopK
    Transpose Unsqueeze VariadicSplit"""
"""The first input has numbers, and the others have sizes, axes, places or lengths."""
_READING: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(f"{_ELEMENTWISE} {_SUMS} {_MOVES}".split()),
    **dict.fromkeys(_FIRST.split(), (0,)),
    **dict.fromkeys(["ConvolutionBackpropData", "GroupConvolutionBackpropData", "Gather"], (0, 1)),
    **dict.fromkeys(["ScatterElementsUpdate", "ScatterNDUpdate", "ScatterUpdate"], (0, 2)),
    **dict.fromkeys(["Eye", "NonZero", "Range"], ()),
    **dict.fromkeys(["GRUSequence", "RNNSequence"], (0, 1, 3, 4, 5)),
    "LSTMSequence": (0, 1, 2, 4, 5, 6),
    "OneHot": (0, 2, 3),
    "Pad": (0, 3),
}
"""Types of operations in IR that fail by the shapes of their inputs alone, and inputs for which this holds whatever
their numbers are; None for all inputs. With other inputs, it holds if these don't depend on a request's numbers."""
_WINDOWING = """AvgPool BinaryConvolution Convolution DeformableConvolution ExtractImagePatches GroupConvolution
    MaxPool"""
WINDOWS = frozenset(_WINDOWING.split())
"""Types whose answers may be empty along the axes from the third on."""
_CUTTING = """AdaptiveAvgPool AdaptiveMaxPool BatchToSpace Broadcast Col2Im ConvolutionBackpropData Eye
    GroupConvolutionBackpropData IRDFT Interpolate NonZero OneHot Pad Range Slice Split StridedSlice Tile TopK
    VariadicSplit"""
_EMPTYING = WINDOWS | frozenset(_CUTTING.split())
"""Types that may make an empty tensor of one that isn't."""
_PLACING = """CumSum GRUSequence GatherElements GatherND LRN LSTMSequence MVN NormalizeL2 RNNSequence ReverseSequence Roll
    ScatterElementsUpdate ScatterNDUpdate ScatterUpdate"""
_BY_TYPE = {
    kind.lower(): places
    for kind, places in {**_READING, **dict.fromkeys(_PLACING.split()), "Constant": None}.items()
}
"""Types of operations in lower case, since a graph writes some otherwise than IR, and the inputs whose numbers don't
change the answer's sizes; None for all inputs."""
_EMPTYING_TYPES = frozenset(kind.lower() for kind in _EMPTYING)
_SUMMING = frozenset(["ReduceL1", "ReduceL2", "ReduceProd", "ReduceSum"])
"""Reductions that make what they should of an empty tensor. ReduceMax and ReduceMin make finite numbers of it, and
ReduceMean one of GlobalAveragePool, which ONNX Runtime refuses."""
_KEEPING = """CumSum GatherElements LogSoftmax MVN NonZero NormalizeL2 Slice SoftMax Split StridedSlice Tile Transpose
    VariadicSplit"""
EMPTY_OF_EMPTY = frozenset(f"{_ELEMENTWISE} {_KEEPING}".lower().split())
"""Types in lower case whose answer is empty if an input is."""
_LAYER = re.compile(rb'<layer id="(\d+)" name="([^"]*)" type="(\w+)" version="(\w+)"')
_EDGE = re.compile(rb'<edge from-layer="(\d+)" from-port="\d+" to-layer="(\d+)" to-port="(\d+)"')
_SIZE = re.compile(rb"<dim>(-?\d+)</dim>")


class Risks(NamedTuple):
    """Risks of a graph's requests.

    Attributes:
        fails: Whether a request's numbers may make the plugin fail where others of the same shapes don't.
        empties: Whether a tensor inside may be empty though no input is.
        sums: Names of reductions that are right about an empty tensor.
    """

    fails: bool
    empties: bool
    sums: frozenset[str] = frozenset()


def risks_of(path: Path) -> Risks:
    """Return the risks of a graph that is given as IR.

    Operations that aren't known are taken to fail: custom ones, those with graphs inside, and those with a memory.
    """
    content = path.read_bytes()
    layers, edges = _LAYER.findall(content), _EDGE.findall(content)
    if len(layers) != content.count(b"<layer ") or len(edges) != content.count(b"<edge "):
        return Risks(fails=True, empties=True)  # written otherwise than OpenVINO does
    types = {number: kind.decode() for number, _, kind, _ in layers}
    standard = all(version.startswith(b"opset") for *_, version in layers)
    standard = standard and len(types) == len(layers) and set(types.values()) <= _READING.keys()
    fails = not standard or _reaches_shapes(types, edges)
    written = zip(layers, content.split(b"<layer ")[1:], strict=True)
    empties = any(_may_empty(kind.decode(), text) for (_, _, kind, _), text in written)
    named = {(unescape(name.decode()), kind.decode() in _SUMMING) for _, name, kind, _ in layers}
    return Risks(
        fails,
        empties,
        frozenset(name for name, sums in named if sums and (name, False) not in named),
    )


def names_sizes(kind: str, places: Iterable[int]) -> bool:
    """Whether an operation's sizes follow from the numbers of some of its inputs; an unknown type's are taken to.

    Args:
        kind: Type of the operation, as a graph names it.
        places: Places of these inputs.
    """
    known = _BY_TYPE.get(kind.lower(), ())
    return known is not None and any(place not in known for place in places)


def may_empty(kind: str) -> bool:
    """Whether operations of a type, as a graph names it, may make an empty tensor of one that isn't."""
    return kind.lower() in _EMPTYING_TYPES or kind.lower() not in _BY_TYPE


def _reaches_shapes(types: dict[bytes, str], edges: list[tuple[bytes, bytes, bytes]]) -> bool:
    """Whether what is calculated from a request's numbers goes where an operation reads sizes, axes, places or lengths.

    Args:
        types: Types of operations by number.
        edges: Each operation that makes a tensor, with one that reads it, and the place among that one's inputs.
    """
    readers = defaultdict(list)
    for source, reader, number in edges:
        readers[source].append((reader, int(number)))
    left = [number for number, kind in types.items() if kind == "Parameter"]
    known = {*left}
    while left:
        for reader, place in readers[left.pop()]:
            kind = types[reader]
            places = _READING[kind]
            if places is not None and place not in places:
                return True
            if kind != "ShapeOf" and reader not in known:
                known.add(reader)
                left.append(reader)
    return False


def _may_empty(kind: str, text: bytes) -> bool:
    """Whether an operation may make an empty tensor of one that isn't, as far as its answers' sizes in IR tell."""
    if kind in _READING and kind not in _EMPTYING:
        return False
    return any(_may_be_empty(kind, sizes) for sizes in _answers(text))


def _may_be_empty(kind: str, sizes: list[int]) -> bool:
    return not sizes or min(sizes[2:] if kind in WINDOWS else sizes, default=1) <= 0


def _answers(text: bytes) -> Iterator[list[int]]:
    """Yield the sizes of each answer of an operation in IR; an open size is -1."""
    for port in text.partition(b"<output>")[2].split(b"<port ")[1:]:
        yield [int(size) for size in _SIZE.findall(port)]
