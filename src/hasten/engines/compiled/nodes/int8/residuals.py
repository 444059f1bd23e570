"""Sums of products that bytes are added to before anything rounds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasten.engines.compiled.nodes.int8.pending import Sums
from hasten.engines.compiled.nodes.int8.sums import stored
from hasten.engines.compiled.operators.int8.elementwise import Add8
from hasten.engines.compiled.operators.int8.numbers import Rounding, Sum8
from hasten.engines.compiled.tensors import product
from hasten.engines.compiled.values import Bytes, Pending, Value, ordered

if TYPE_CHECKING:
    from hasten.engines.compiled.graph import Node


@dataclass(frozen=True)
class Residual(Sums):
    """Sums and bytes that are added to them.

    The sums are rounded to bytes first, of the range that the result's leaves them: what lies beyond it is
    cut off in the result anyway. With as wide a range for the residual, that step is twice the result's.

    Attributes:
        sums: The sums.
        other: The bytes.
    """

    sums: Pending | None = None
    other: Bytes | None = None

    def stored(self, scale: float, rounding: Rounding) -> tuple[str, bool]:
        assert self.sums is not None
        assert self.other is not None
        graph, other = self.node.graph, self.other
        low = (rounding.low - rounding.zero) * scale - (255 - other.zero) * other.scale
        high = (rounding.high - rounding.zero) * scale + other.zero * other.scale
        step = (high - low) / 255
        part = self.sums.rounded(min(255, max(0, round(-low / step))), step)
        name = ordered(graph, other.tensor, other.last, self.shape, part.last)
        made = graph.new("uint8", self.shape, None).tensor
        ratios = (part.scale / scale, other.scale / scale)
        added = Sum8.near(ratios, (part.zero, other.zero), rounding)
        graph.add(Add8(part.tensor, name, made, product(self.shape), added))
        return made, part.last


def add(node: Node) -> bool:
    """Take a sum of bytes and of sums that nothing has rounded yet."""
    first, second = node.peek(0), node.peek(1)
    if first.pending is None:
        first, second = second, first
    other = stored(second)
    if first.pending is None or other is None or first.shape != second.shape:
        return False
    made = Residual(first.shape, node, sums=first.pending, other=other)
    node.give(Value("", "float32", first.shape, 0, pending=made))
    return True
