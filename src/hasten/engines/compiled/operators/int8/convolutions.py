"""Convolutions of bytes; a fully connected layer is one of a picture of one pixel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hasten.engines.compiled.operators.int8 import dense, depthwise
from hasten.engines.compiled.operators.int8.definition import Convolution
from hasten.engines.compiled.operators.int8.elementwise import Add8, Table8
from hasten.engines.compiled.plan import Operation

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer


@dataclass(frozen=True)
class Conv8(Convolution):
    """Convolution of bytes with its C, which takes further steps in."""

    def joined(self, second: Operation) -> Operation | None:
        if self.rounding is None or self.last:
            return None
        if isinstance(second, Table8):
            if self.sum is not None:
                return replace(self, output=second.output, last=second.table)
            return None if self.table else replace(self, output=second.output, table=second.table)
        if isinstance(second, Add8) and self.sum is None and second.first != second.second:
            a, b = second.sum.factors
            first = second.first == self.output
            residual = second.second if first else second.first
            summed = second.sum if first else replace(second.sum, factors=(b, a))
            return replace(self, output=second.output, residual=residual, sum=summed)
        return None

    def emit_rows(self, writer: Writer) -> None:
        self.check_constants(writer)
        if self.depthwise or not dense.emit_rows(self, writer):
            super().emit_rows(writer)

    def emit(self, writer: Writer) -> None:
        if depthwise.supported(self):
            depthwise.emit(self, writer)
        else:
            dense.emit(self, writer)
