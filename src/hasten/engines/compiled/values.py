"""Values of a plan that is being made, what is known of their bytes or words, and how operations make them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NoReturn

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8.conversions16 import Dequantize16, Numbers16
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.compiled.operators.int8.convolutions16 import Conv16
from hasten.engines.compiled.operators.int8.elementwise import Dequantize, Table8
from hasten.engines.compiled.operators.int8.numbers import steps_of
from hasten.engines.compiled.operators.int8.numbers16 import HIGHEST, LOWEST, WORDS
from hasten.engines.compiled.operators.int8.words import Table16
from hasten.engines.compiled.operators.maps import Map
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.plan import Operation
from hasten.engines.compiled.tensors import (
    C_TYPES,
    Access,
    Tensor,
    Weights,
    contiguous,
    product,
)
from hasten.errors import NotCovered

_ALL_WORDS = np.arange(WORDS, dtype=np.uint16).view(np.int16)
"""All words in the order of tables."""
REFUSES = "the compiled engine doesn't take"
"""Beginning of a refusal of an operator or a type, which another engine may calculate with."""


class TooMuch(NotCovered):
    """There is more to calculate than the engine takes, whatever the operators are."""


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

    def rounded(self, draft: Draft, shape: tuple[int, ...], zero: int, scale: float) -> Bytes:
        """Return them rounded to bytes of a scale, as a tensor."""
        codes = byte_codes(self.table, zero, scale)
        if self.codes is not None and (self.codes == codes).all():
            return self.read_as(zero, scale)
        tensor = self.root
        if (codes != np.arange(256)).any():
            tensor = draft.new("uint8", shape, None).tensor
            draft.add(Table8(self.root, draft.store(codes), tensor, product(shape)))
        table = _numbers(codes, zero, scale)
        return Bytes(self.root, self.last, table, tensor, codes, zero, scale)

    def floats(self, draft: Draft, value: Value) -> Value:
        """Return a value as a tensor of float32, channels first."""
        made = draft.new("float32", value.shape, value.batch)
        size = product(value.shape)
        channels = value.shape[1] if self.last else 1
        table = draft.store(self.table)
        draft.add(Dequantize(self.root, table, made.tensor, channels, size // channels))
        if self.scales is None:
            return replace(made, bytes=self)
        scaled = draft.new("float32", value.shape, value.batch)
        along = (value.shape[1], product(value.shape[2:]))
        factors = Value("", "float32", self.scales.shape, None, self.scales)
        reads = [(made, (along[1], 1), 0), (factors, (1, 0), 0)]
        draft.map([Step("multiply", (0, 1), "float32")], reads, scaled, shape=along)
        return scaled


@dataclass(frozen=True)
class Words:
    """Real numbers that depend on one word each.

    Attributes:
        root: Tensor of int16 that they depend on.
        last: Whether the root has the channels, which are axis 1 of the shape, last.
        table: float32 of shape (65536,): number for each word of the root, in the order of `Table16`.
        tensor: Tensor of words that stand for `(word - zero) * scale`; "" where there is none yet.
        codes: int16 of shape (65536,): word of that tensor for each word of the root.
        zero: Word that stands for 0.
        scale: Real number that one step stands for; 0 without a tensor.
    """

    root: str
    last: bool
    table: Array
    tensor: str = ""
    codes: Array | None = None
    zero: int = 0
    scale: float = 0.0

    @classmethod
    def stored(cls, tensor: str, last: bool, zero: int, scale: float) -> Words:
        """Return numbers that a tensor holds."""
        return cls(tensor, last, _numbers(_ALL_WORDS, zero, scale), tensor, _ALL_WORDS, zero, scale)

    def given(self, shape: tuple[int, ...], batch: int | None) -> Value:
        """Return a value of these numbers."""
        return Value("", "float32", shape, batch, words=self)

    def moved(self, tensor: str, last: bool) -> Words:
        """Return numbers of the same zero and scale that another tensor holds."""
        return Words.stored(tensor, last, self.zero, self.scale)

    def reading(self, conv: Conv8) -> Conv8:
        """Return a convolution that reads them."""
        return Conv16(**{one.name: getattr(conv, one.name) for one in fields(conv)}, wide=True)

    def read_as(self, zero: int, scale: float) -> Words:
        """Return what the same tensor stands for with another zero and scale."""
        assert self.codes is not None
        table = _numbers(self.codes, zero, scale)
        return replace(self, table=table, zero=zero, scale=scale)

    def rounded(self, draft: Draft, shape: tuple[int, ...], zero: int, scale: float) -> Words:
        """Return them rounded to words of a scale, as a tensor."""
        codes = word_codes(self.table, zero, scale)
        if self.codes is not None and (self.codes == codes).all():
            return self.read_as(zero, scale)
        tensor = self.root
        if (codes != _ALL_WORDS).any():
            tensor = draft.new("int16", shape, None).tensor
            draft.add(Table16(self.root, draft.store(codes), tensor, product(shape)))
        table = _numbers(codes, zero, scale)
        return Words(self.root, self.last, table, tensor, codes, zero, scale)

    def floats(self, draft: Draft, value: Value) -> Value:
        """Return a value as a tensor of float32, channels first."""
        made = draft.new("float32", value.shape, value.batch)
        size = product(value.shape)
        channels = value.shape[1] if self.last else 1
        if self.tensor:
            given = (self.tensor, made.tensor, channels, size // channels, self.zero, self.scale)
            draft.add(Dequantize16(*given))
        else:
            table = draft.store(self.table)
            draft.add(Numbers16(self.root, table, made.tensor, channels, size // channels))
        return replace(made, words=self)


@dataclass(frozen=True)
class Pending(ABC):
    """Sums that nothing has rounded yet.

    Attributes:
        shape: Their shape, for one row.
        low: Real number below which they are cut.
        high: Real number above which they are cut.
        uncut: The sums before a node cut them; None where none did.
    """

    shape: tuple[int, ...]
    low: float = field(default=-np.inf, kw_only=True)
    high: float = field(default=np.inf, kw_only=True)
    uncut: Pending | None = field(default=None, kw_only=True)

    @abstractmethod
    def rounded(self, zero: int, scale: float) -> Bytes:
        """Append operations that round them to bytes of a scale."""

    @abstractmethod
    def floats(self) -> Value:
        """Return them as a tensor of float32."""


@dataclass(frozen=True)
class Value:
    """Value of the ONNX graph: a contiguous tensor of the plan under a shape.

    Attributes:
        tensor: Name of the plan's tensor; a constant gets one when it is first read.
        dtype: Element type by numpy's name.
        shape: Sizes, with one row in a batch.
        batch: Axis of the batch; None where there is none.
        constant: Numbers, where they are known now.
        counts_rows: Whether the numbers are sizes among which the batch's counts as 1.
        bytes: The bytes on which the numbers depend, with what each byte stands for; None for others.
        pending: Sums that nothing has rounded yet.
        levels: Integers that a constant was made of.
        words: The words of 16 bits on which the numbers depend, likewise.
    """

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    batch: int | None = None
    constant: Array | None = None
    counts_rows: bool = False
    bytes: Bytes | None = None
    pending: Pending | None = None
    levels: Levels | None = None
    words: Words | None = None

    @property
    def narrow(self) -> bool:
        """Whether it is known as bytes, words or sums of them."""
        return any(one is not None for one in (self.bytes, self.words, self.pending))


@dataclass
class Draft:
    """Tensors, operations and constants of a plan that is being made.

    Attributes:
        tensors: Tensors of the plan.
        operations: Operations of the plan.
        weights: Constants of the plan.
        most_work: Largest number of calculations with floats for one row that the engine takes.
        quantized: Whether nodes quantize something, so that there may be as many calculations with floats
            as with bytes, even if these are more.
        source: Name of the node that is being lowered.
        turned: Copies of tensors of bytes by the tensor, whether the copy has the channels last, and how
            many channels there are.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    weights: Weights = field(default_factory=lambda: Weights(bytearray()))
    most_work: int = 1 << 62
    quantized: bool = False
    source: str = ""
    turned: dict[tuple[str, bool, int], str] = field(default_factory=dict)
    _sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _work: int = 0
    _stored: dict[int, tuple[Array, str]] = field(default_factory=dict)

    def new(self, dtype: str, shape: tuple[int, ...], batch: int | None) -> Value:
        """Make a tensor that an operation is going to write."""
        if dtype not in C_TYPES:
            raise NotCovered(f"{REFUSES} tensors of {dtype}")
        if product(shape) < 1:
            raise NotCovered(f"{REFUSES} empty tensors: {list(shape)}")
        name = f"t{len(self.tensors)}"
        self.tensors[name] = Tensor(dtype, product(shape))
        return Value(name, dtype, shape, batch)

    def store(self, array: Array) -> str:
        """Keep a constant and return its tensor's name; the same array is kept once."""
        known = self._stored.get(id(array))
        if known is not None:
            return known[1]
        if str(array.dtype) not in C_TYPES or not array.size:
            raise NotCovered(f"{REFUSES} constants of {array.dtype}, shape {list(array.shape)}")
        name = f"t{len(self.tensors)}"
        self.tensors[name] = self.weights.add(array)
        self._stored[id(array)] = (array, name)
        return name

    def tensor(self, value: Value) -> str:
        """Return the name of a value's tensor; a constant is kept first."""
        return value.tensor if value.constant is None else self.store(value.constant)

    def add(self, operation: Operation) -> None:
        """Append an operation.

        Raises:
            NotCovered: there is more to calculate than the engine takes.
        """
        self.operations.append(operation)
        for name in operation.writes:
            self._sources.setdefault(name, ())
            if self.source and self.source not in self._sources[name]:
                self._sources[name] += (self.source,)
        self._work += 0 if operation.narrow else operation.work
        if not self.quantized and self._work > self.most_work:
            self._refuse_work("")

    def _refuse_work(self, said: str) -> NoReturn:
        raise TooMuch(
            f"the compiled engine takes up to {self.most_work / 1e6:g} million calculations with floats "
            f"for an answer, or as many as with bytes in a quantized model: this model has more{said}"
        )

    def map(
        self,
        steps: Sequence[Step],
        inputs: Sequence[tuple[Value, tuple[int, ...], int]],
        output: Value,
        *,
        into: Access | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Append a map.

        Args:
            steps: Program.
            inputs: Values that are read, each with strides and the first element.
            output: Value that is written.
            into: Where it is written; by default everywhere, in order.
            shape: Sizes of the loops; by default the output's.
        """
        shape = output.shape if shape is None else shape
        accesses = tuple(
            Access(self.tensor(value), strides, offset) for value, strides, offset in inputs
        )
        into = Access.whole(output.tensor, shape) if into is None else into
        self.add(Map(tuple(steps), accesses, into, shape))

    def copy(self, value: Value) -> Value:
        """Append a copy of a value and return it."""
        made = self.new(value.dtype, value.shape, value.batch)
        step = Step("copy", (0,), value.dtype)
        self.map([step], [(value, contiguous(value.shape), 0)], made)
        return made


def ordered(draft: Draft, tensor: str, last: bool, shape: tuple[int, ...], wanted: bool) -> str:
    """Return a tensor of bytes or words with the channels, axis 1 of the shape, last or not; copied if need be."""
    pixels = product(shape[2:])
    if last == wanted or len(shape) < 3 or pixels == 1 or shape[1] == 1:
        return tensor
    key = (tensor, wanted, shape[1])
    known = draft.turned.get(key)
    if known is not None:
        return known
    made = draft.new(draft.tensors[tensor].dtype, shape, None)
    rows, columns = (pixels, shape[1]) if last else (shape[1], pixels)
    read = (replace(made, tensor=tensor), (1, columns), 0)
    draft.map([Step("copy", (0,), made.dtype)], [read], made, shape=(columns, rows))
    draft.turned[key] = made.tensor
    return made.tensor


def byte_codes(numbers: Array, zero: int, scale: float) -> Array:
    """Return the bytes of real numbers, as uint8; NaN gives the zero."""
    return np.clip(steps_of(numbers, zero, scale), 0, 255).astype(np.uint8)


def word_codes(numbers: Array, zero: int, scale: float) -> Array:
    """Return the words of real numbers, as int16; NaN gives the zero."""
    return np.clip(steps_of(numbers, zero, scale), LOWEST, HIGHEST).astype(np.int16)


def _numbers(codes: Array, zero: int, scale: float) -> Array:
    return (codes.astype(np.float32) - np.float32(zero)) * np.float32(scale)
