"""Results of nodes that nothing has rounded yet."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from hasten.engines.compiled.graph import Node
from hasten.engines.compiled.operators.int8.numbers import Rounding
from hasten.engines.compiled.values import Bytes, Pending, Value, byte_codes
from hasten.engines.layers import node_name


@dataclass(frozen=True)
class PendingNode(Pending):
    """Sums that are the result of a node.

    Attributes:
        node: The node.
    """

    node: Node

    def floats(self) -> Value:
        """Return them as a tensor of float32, by the lowering of floats unless overridden."""
        self.node.graph.lowerings[self.node.proto.op_type](self.node)
        return self.node.graph.values[self.node.proto.output[0]]


class Sums(PendingNode):
    """Sums that an operation of bytes makes, and rounds."""

    @abstractmethod
    def stored(self, scale: float, rounding: Rounding) -> tuple[str, bool]:
        """Append operations that round them; return the tensor, and whether channels are last."""

    def rounded(self, zero: int, scale: float) -> Bytes:
        """Append operations that round them to bytes of a scale."""
        self.node.graph.source = node_name(self.node.proto)
        low, high = (int(one) for one in byte_codes(np.array([self.low, self.high]), zero, scale))
        tensor, last = self.stored(scale, Rounding(zero, low, high))
        return Bytes.stored(tensor, last, zero, scale)
