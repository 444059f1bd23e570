"""Descriptions of values that are stored as words of 16 bits."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.graph import Value
from hasten.engines.compiled.operators.int8.conversions16 import Dequantize16, Numbers16
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.compiled.operators.int8.convolutions16 import Conv16
from hasten.engines.compiled.operators.int8.numbers import steps_of
from hasten.engines.compiled.operators.int8.numbers16 import HIGHEST, LOWEST, WORDS
from hasten.engines.compiled.operators.int8.words import Table16
from hasten.engines.compiled.tensors import product

if TYPE_CHECKING:
    from hasten.engines.compiled.graph import Graph

_CODES = np.arange(WORDS, dtype=np.uint16).view(np.int16)
"""All words in the order of tables."""


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
        return cls(tensor, last, _numbers(_CODES, zero, scale), tensor, _CODES, zero, scale)

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

    def rounded(self, graph: Graph, shape: tuple[int, ...], zero: int, scale: float) -> Words:
        """Return them rounded to words of a scale, as a tensor."""
        codes = codes_of(self.table, zero, scale)
        if self.codes is not None and (self.codes == codes).all():
            return self.read_as(zero, scale)
        tensor = self.root
        if (codes != _CODES).any():
            tensor = graph.new("int16", shape, None).tensor
            graph.add(Table16(self.root, graph.store(codes), tensor, product(shape)))
        table = _numbers(codes, zero, scale)
        return Words(self.root, self.last, table, tensor, codes, zero, scale)

    def floats(self, graph: Graph, value: Value) -> Value:
        """Return a value as a tensor of float32, channels first."""
        made = graph.new("float32", value.shape, value.batch)
        size = product(value.shape)
        channels = value.shape[1] if self.last else 1
        if self.tensor:
            given = (self.tensor, made.tensor, channels, size // channels, self.zero, self.scale)
            graph.add(Dequantize16(*given))
        else:
            table = graph.store(self.table)
            graph.add(Numbers16(self.root, table, made.tensor, channels, size // channels))
        return replace(made, words=self)


def _numbers(codes: Array, zero: int, scale: float) -> Array:
    return (codes.astype(np.float32) - np.float32(zero)) * np.float32(scale)


def codes_of(numbers: Array, zero: int, scale: float) -> Array:
    """Return the words of real numbers, as int16; NaN gives the zero."""
    return np.clip(steps_of(numbers, zero, scale), LOWEST, HIGHEST).astype(np.int16)
