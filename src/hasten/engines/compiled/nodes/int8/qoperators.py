"""Operators that read and write bytes, such as QLinearConv, as the standard ones between a
DequantizeLinear and a QuantizeLinear."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

_DOMAINS = ("", "ai.onnx", "com.microsoft")


@dataclass
class _Spelling:
    """One node that is being written as several.

    Attributes:
        node: The node.
        made: Nodes that mean the same.
    """

    node: onnx.NodeProto
    made: list[onnx.NodeProto] = field(default_factory=list)

    def attribute(self, name: str, usual: Any) -> Any:
        """Return an attribute; what it usually is where it isn't there."""
        import onnx

        found = [one for one in self.node.attribute if one.name == name]
        return onnx.helper.get_attribute_value(found[0]) if found else usual

    def has(self, place: int) -> bool:
        """Whether an input, which may be left out, is there."""
        return len(self.node.input) > place and bool(self.node.input[place])

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Append a node; return the name of its result, which no other value has."""
        import onnx

        name = f"{self.node.output[0]} by {self.node.op_type}, {len(self.made)}"
        self.made.append(onnx.helper.make_node(kind, inputs, [name], **attributes))
        return name

    def real(self, place: int, axis: int | None = None) -> str:
        """Append the numbers of bytes that an input, its scale and its zero point stand for."""
        names = [name for name in self.node.input[place : place + 3] if name]
        return self.add("DequantizeLinear", names, **({} if axis is None else {"axis": axis}))

    def end(self, kind: str, inputs: list[str], scale: int, *dropped: str) -> None:
        """Append the operator itself, and the rounding of its result where it has a scale.

        Args:
            kind: Name of the standard operator.
            inputs: Names of its inputs.
            scale: Place of the result's scale, which its zero point follows.
            dropped: Attributes that the standard operator doesn't have.
        """
        result = self.add(kind, inputs)
        kept = [one for one in self.node.attribute if one.name not in dropped]
        self.made[-1].attribute.extend(kept)
        if self.has(scale):
            names = [name for name in self.node.input[scale : scale + 2] if name]
            self.add("QuantizeLinear", [result, *names])
        self.made[-1].output[0] = self.node.output[0]


def _conv(to: _Spelling) -> bool:
    inputs = [to.real(0), to.real(3, 0)]
    if to.has(8):
        inputs.append(_bias(to, 8, 1, 4))
    to.end("Conv", inputs, 6)
    return True


def _bias(to: _Spelling, place: int, first: int, second: int) -> str:
    """Append the numbers of a bias, whose scale is the product of the scales of two others."""
    unit = to.add("Mul", [to.node.input[first], to.node.input[second]])
    return to.add("DequantizeLinear", [to.node.input[place], unit], axis=0)


def _matmul(to: _Spelling) -> bool:
    to.end("MatMul", [to.real(0), to.real(3, -1)], 6)
    return True


def _gemm(to: _Spelling) -> bool:
    if to.attribute("alpha", 1.0) != 1.0:
        return False
    inputs = [to.real(0), to.real(3, 0 if to.attribute("transB", 0) else 1)]
    if to.has(6):
        inputs.append(_bias(to, 6, 1, 4))
    to.end("Gemm", inputs, 7)
    return True


def _concat(to: _Spelling) -> bool:
    parts = [to.real(place) for place in range(2, len(to.node.input), 3)]
    to.end("Concat", parts, 0)
    return True


def _softmax(to: _Spelling) -> bool:
    if to.attribute("opset", 0) < 13:
        return False
    to.end("Softmax", [to.real(0)], 3, "opset")
    return True


def _one(kind: str) -> Callable[[_Spelling], bool]:
    """Return the spelling of an operator of one input."""

    def spell(to: _Spelling) -> bool:
        if to.attribute("channels_last", 0):
            return False
        to.end(kind, [to.real(0)], 3, "channels_last")
        return True

    return spell


def _two(kind: str) -> Callable[[_Spelling], bool]:
    """Return the spelling of an operator of two inputs."""

    def spell(to: _Spelling) -> bool:
        to.end(kind, [to.real(0), to.real(3)], 6)
        return True

    return spell


_SPELLINGS: Mapping[str, Callable[[_Spelling], bool]] = {
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "QGemm": _gemm,
    "QLinearAdd": _two("Add"),
    "QLinearMul": _two("Mul"),
    "QLinearConcat": _concat,
    "QLinearSigmoid": _one("Sigmoid"),
    "QLinearLeakyRelu": _one("LeakyRelu"),
    "QLinearGlobalAveragePool": _one("GlobalAveragePool"),
    "QLinearAveragePool": _one("AveragePool"),
    "QLinearReduceMean": _one("ReduceMean"),
    "QLinearSoftmax": _softmax,
}
_SAME = ("QuantizeLinear", "DequantizeLinear")
"""Operators that mean the same in another domain."""


def spelled(graph: onnx.GraphProto) -> None:
    """Write a graph's operators of bytes as standard ones; leave those that have no such form."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.domain == "com.microsoft" and node.op_type in _SAME:
            node.domain = ""
        found = _SPELLINGS.get(node.op_type) if node.domain in _DOMAINS else None
        to = _Spelling(node)
        nodes.extend(to.made if found is not None and found(to) else [node])
    if len(nodes) != len(graph.node):
        del graph.node[:]
        graph.node.extend(nodes)
