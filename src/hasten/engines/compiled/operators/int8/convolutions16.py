"""Convolutions that read or write numbers of 16 bits, with weights of 8 bits."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Self

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8 import dense, depthwise16
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.compiled.operators.int8.numbers16 import HIGHEST, LOWEST, Rounding16, most_sums
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.layers import Kind

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer


@dataclass(frozen=True)
class Conv16(Conv8):
    """Convolution as `Conv8`, whose input or result are words of 16 bits, or both.

    Sums of words have 32 bits too: the largest possible one of each channel must fit.

    Attributes:
        wide: Whether the input is a tensor of int16, and not of uint8.
        words: Rule by which sums become words, in place of `rounding`; None for bytes or floats.
    """

    task: ClassVar[Kind] = "arithmetic"

    wide: bool = False
    words: Rounding16 | None = None

    @classmethod
    def of(cls, conv: Conv8, *, words: Rounding16) -> Self:
        """Return a convolution of bytes or words with a result of words."""
        given = {field.name: getattr(conv, field.name) for field in fields(conv)}
        return cls(**(given | {"words": words, "rounding": None}))

    @property
    def given_type(self) -> str:
        return "int16" if self.wide else "uint8"

    @property
    def made_type(self) -> str:
        return super().made_type if self.words is None else "int16"

    @property
    def zeros(self) -> tuple[int, int]:
        return (LOWEST, HIGHEST) if self.wide else super().zeros

    def most_sums(self, weight: Array, bias: Array) -> Array:
        return most_sums(weight, bias, self.zero) if self.wide else super().most_sums(weight, bias)

    def check(self, plan: Plan) -> None:
        super().check(plan)
        if self.words is not None:
            self.words.check()
            if self.rounding is not None:
                self.refuse("a result of both bytes and words")
        if self.depthwise and (self.table or self.residual or self.last):
            self.refuse("a result of single channels goes through no table")

    def joined(self, second: Operation) -> Operation | None:
        return None if self.depthwise else super().joined(second)

    def finish(self, sums: Array, tensors: dict[str, Array]) -> Array:
        if self.words is None:
            return super().finish(sums, tensors)
        slope = tensors[self.slope] if self.slope else None
        return self.words.of(sums, tensors[self.scale], slope).ravel()

    def emit(self, writer: Writer) -> None:
        if self.depthwise:
            depthwise16.emit(self, writer)
        else:
            dense.emit(self, writer)
