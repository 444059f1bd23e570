"""Descriptions of values that are stored as bytes, or as sums that nothing has rounded yet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.graph import Value
from hasten.engines.compiled.operators.int8.elementwise import Dequantize, Table8
from hasten.engines.compiled.operators.int8.numbers import Rounding, steps_of
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.tensors import contiguous, product
from hasten.engines.layers import node_name

if TYPE_CHECKING:
    from hasten.engines.compiled.graph import Graph, Node
    from hasten.engines.compiled.operators.int8.convolutions import Conv8


@dataclass(frozen=True)
class Levels:
    """Constant that was stored as integers.

    Attributes:
        numbers: int8, the zero subtracted.
        scale: float32, one, or one for each index of an axis.
        axis: The axis; None with one scale.
    """

    numbers: Array
    scale: Array
    axis: int | None


@dataclass(frozen=True)
class Bytes:
    """Real numbers that depend on one byte each.

    Attributes:
        root: Tensor of uint8 that they depend on.
        last: Whether the root has the channels, which are axis 1 of the shape, last.
        table: float32 of shape (256,): number for each byte of the root.
        tensor: Tensor of bytes that stand for `(byte - zero) * scale`; "" where there is none yet.
        codes: uint8 of shape (256,): byte of that tensor for each byte of the root.
        zero: Byte that stands for 0.
        scale: Real number that one step stands for; 0 without a tensor.
        scales: float32, real number that one step stands for in each channel, in place of `scale`: the
            table then counts steps. None with one for all.
        chosen: Whether these are other bytes than the QuantizeLinear that asked for them describes.
    """

    root: str
    last: bool
    table: Array
    tensor: str = ""
    codes: Array | None = None
    zero: int = 0
    scale: float = 0.0
    scales: Array | None = None
    chosen: bool = False

    @classmethod
    def stored(cls, tensor: str, last: bool, zero: int, scale: float) -> Bytes:
        """Return numbers that a tensor holds."""
        codes = np.arange(256, dtype=np.uint8)
        return cls(tensor, last, _numbers(codes, zero, scale), tensor, codes, zero, scale)

    def given(self, shape: tuple[int, ...], batch: int | None) -> Value:
        """Return a value of these numbers."""
        return Value("", "float32", shape, batch, bytes=self)

    def moved(self, tensor: str, last: bool) -> Bytes:
        """Return numbers of the same zero and scale that another tensor holds."""
        return Bytes.stored(tensor, last, self.zero, self.scale)

    def reading(self, conv: Conv8) -> Conv8:
        """Return a convolution that reads them."""
        return conv

    def read_as(self, zero: int, scale: float) -> Bytes:
        """Return what the same tensor stands for with another zero and scale."""
        assert self.codes is not None
        table = _numbers(self.codes, zero, scale)
        return replace(self, table=table, zero=zero, scale=scale)

    def rounded(self, graph: Graph, shape: tuple[int, ...], zero: int, scale: float) -> Bytes:
        """Return them rounded to bytes of a scale, as a tensor."""
        codes = codes_of(self.table, zero, scale)
        if self.codes is not None and (self.codes == codes).all():
            return self.read_as(zero, scale)
        tensor = self.root
        if (codes != np.arange(256)).any():
            tensor = graph.new("uint8", shape, None).tensor
            graph.add(Table8(self.root, graph.store(codes), tensor, product(shape)))
        table = _numbers(codes, zero, scale)
        return Bytes(self.root, self.last, table, tensor, codes, zero, scale)

    def floats(self, graph: Graph, value: Value) -> Value:
        """Return a value as a tensor of float32, channels first."""
        made = graph.new("float32", value.shape, value.batch)
        size = product(value.shape)
        channels = value.shape[1] if self.last else 1
        table = graph.store(self.table)
        graph.add(Dequantize(self.root, table, made.tensor, channels, size // channels))
        if self.scales is None:
            return replace(made, bytes=self)
        scaled = graph.new("float32", value.shape, value.batch)
        along = (value.shape[1], product(value.shape[2:]))
        factors = Value("", "float32", self.scales.shape, None, self.scales)
        reads = [(made, (along[1], 1), 0), (factors, (1, 0), 0)]
        graph.map([Step("multiply", (0, 1), "float32")], reads, scaled, shape=along)
        return scaled


def _numbers(codes: Array, zero: int, scale: float) -> Array:
    return (codes.astype(np.float32) - np.float32(zero)) * np.float32(scale)


def codes_of(numbers: Array, zero: int, scale: float) -> Array:
    """Return the bytes of real numbers, as uint8; NaN gives the zero."""
    return np.clip(steps_of(numbers, zero, scale), 0, 255).astype(np.uint8)


def byte_type(node: Node) -> str:
    """Return the type of bytes where a node that quantizes, or the other way, has no zero point."""
    if node.proto.op_type == "DequantizeLinear":
        return node.peek(0).dtype
    import onnx

    wanted = int(node.attributes.get("output_dtype", 0)) or onnx.TensorProto.UINT8
    return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(wanted)))


def ordered(graph: Graph, tensor: str, last: bool, shape: tuple[int, ...], wanted: bool) -> str:
    """Return a tensor of bytes or words with the channels, axis 1 of the shape, last or not; copied if need be."""
    pixels = product(shape[2:])
    if last == wanted or len(shape) < 3 or pixels == 1 or shape[1] == 1:
        return tensor
    key = (tensor, wanted, shape[1])
    known = graph.turned.get(key)
    if known is not None:
        return known
    made = graph.new(graph.tensors[tensor].dtype, shape, None)
    rows, columns = (pixels, shape[1]) if last else (shape[1], pixels)
    read = (replace(made, tensor=tensor), (1, columns), 0)
    graph.map([Step("copy", (0,), made.dtype)], [read], made, shape=(columns, rows))
    graph.turned[key] = made.tensor
    return made.tensor


def shifted(graph: Graph, value: Value) -> str:
    """Append the bytes of a tensor of int8, each 128 higher; return their tensor."""
    made = graph.new("uint8", value.shape, None)
    steps = [
        Step("cast", (0,), "int32"),
        Step("value", (), "int32", "128"),
        Step("add", (1, 2), "int32"),
        Step("cast", (3,), "uint8"),
    ]
    graph.map(steps, [(value, contiguous(value.shape), 0)], made)
    return made.tensor


@dataclass(frozen=True)
class Pending(ABC):
    """Sums that nothing has rounded yet.

    Attributes:
        node: Node whose result they are.
        shape: Their shape, for one row.
        low: Real number below which they are cut.
        high: Real number above which they are cut.
        uncut: The sums before a node cut them; None where none did.
    """

    node: Node
    shape: tuple[int, ...]
    low: float = -np.inf
    high: float = np.inf
    uncut: Pending | None = None

    @abstractmethod
    def rounded(self, zero: int, scale: float) -> Bytes:
        """Append operations that round them to bytes of a scale."""

    def floats(self) -> Value:
        """Return them as a tensor of float32, by the lowering of floats unless overridden."""
        self.node.graph.lowerings[self.node.proto.op_type](self.node)
        return self.node.graph.values[self.node.proto.output[0]]


class Sums(Pending):
    """Sums that an operation of bytes makes, and rounds."""

    @abstractmethod
    def stored(self, scale: float, rounding: Rounding) -> tuple[str, bool]:
        """Append operations that round them; return the tensor, and whether channels are last."""

    def rounded(self, zero: int, scale: float) -> Bytes:
        """Append operations that round them to bytes of a scale."""
        self.node.graph.source = node_name(self.node.proto)
        low, high = (int(one) for one in codes_of(np.array([self.low, self.high]), zero, scale))
        tensor, last = self.stored(scale, Rounding(zero, low, high))
        return Bytes.stored(tensor, last, zero, scale)
