"""Tensors of a graph on their way to a fixed-point program: exact, or rounded to a width."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from onnx import numpy_helper

from hasten.core.tensors import Array
from hasten.engines.fpga.formats import Format, format_for, rounded_weights
from hasten.engines.fpga.ranges import ElementRange
from hasten.errors import NotCovered

Overflow: TypeAlias = Literal["saturate", "wrap", "grow"]
PRODUCTS = frozenset({"Gemm", "MatMul", "Conv"})
_KEEPS_ROUNDING = frozenset(
    {
        "Relu",
        "MaxPool",
        "Flatten",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Identity",
        "Transpose",
        "Dropout",
    }
)
"""Operators that commute with adding half a step h: max(x, 0) + h truncates as max(x + h, 0)."""
_TABLE_BITS = 10
"""Largest width of a lookup table's address."""


@dataclass(frozen=True)
class Widths:
    """Widths of a program's numbers, in bits.

    Attributes:
        weights: Width of an output's largest weight.
        activations: Width of a product's inputs.
        inputs: Width of the model's inputs.
        overflow: Treatment of numbers beyond the range that calibration showed: "saturate" at the
            largest number, "wrap" around (with a spare bit), or "grow", which keeps all bits before
            the point so that none overflows.
        layers: Widths of single nodes by name, each as (weights, inputs).
    """

    weights: int
    activations: int
    inputs: int
    overflow: Overflow = "saturate"
    layers: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def of(self, node: str) -> tuple[int, int]:
        """Return the widths of a node's weights and of its inputs."""
        return self.layers.get(node, (self.weights, self.activations))


class Values:
    """Tensors of a graph that are computed so far, in the forms that operators read and return.

    Args:
        proto: Simplified float graph.
        ranges: Ranges of every tensor, by name.
        widths: Widths of the numbers.

    Attributes:
        ranges: Ranges of every tensor, by name.
        widths: Widths of the numbers.
        hardware: Costs of additions, as da4ml's configuration.
        constants: Tensors that are known beforehand, by name.
        tensors: Computed tensors by name, as arrays of the program's numbers.
        readers: Nodes that read each tensor, by its name.
    """

    def __init__(
        self, proto: onnx.ModelProto, ranges: Mapping[str, ElementRange], widths: Widths
    ) -> None:
        from da4ml.trace import FixedVariableArray, HWConfig

        self._arrays, self.hardware = FixedVariableArray, HWConfig(1, -1, -1)
        self.ranges, self.widths = ranges, widths
        self.constants: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer
        }
        self.tensors: dict[str, Any] = {}
        self._rounded: set[str] = set()
        """Tensors that already include half a step, so that truncation rounds them."""
        self._narrow: dict[tuple[str, int], Any] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def array(self, values: Any) -> Any:
        """Return numbers of the program, or constants, as an array to compute with."""
        return self._arrays(values, hwconf=self.hardware)

    def request(self, form: Format) -> Any:
        """Return an input of the program, with numbers in a format."""
        return self._arrays.from_kif(form.signed, form.integer, form.fraction, self.hardware, 0)

    def value(self, name: str) -> Any:
        """Return a tensor exactly, however many bits that takes."""
        if name in self.tensors:
            return self.tensors[name]
        return self.constants[name].astype(np.float64)

    def constant(self, node: onnx.NodeProto, place: int) -> Array | None:
        """Return a constant input; None where it isn't given."""
        if place >= len(node.input) or not node.input[place]:
            return None
        name = node.input[place]
        if name not in self.constants:
            raise NotCovered(
                f"the operator {node.op_type} (node {node.name!r}) needs a constant {name!r}"
            )
        return self.constants[name]

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is known beforehand."""
        return name not in self.tensors

    def wide(self, node: onnx.NodeProto, place: int = 0) -> Any:
        """Return a node's exact input; half a step in it is noted as also in the node's output."""
        name = node.input[place]
        if name in self._rounded and node.op_type in _KEEPS_ROUNDING:
            self._rounded.add(node.output[0])
        return self.value(name)

    def narrow(self, node: onnx.NodeProto, place: int = 0, bits: int | None = None) -> Any:
        """Return a node's input rounded to its width; nodes that read it at this width share it."""
        name = node.input[place]
        bits = self.widths.of(node.name)[1] if bits is None else bits
        if (name, bits) not in self._narrow:
            self._narrow[name, bits] = self._cut(name, bits)
        return self._narrow[name, bits]

    def _format(self, name: str, bits: int) -> Format:
        seen = self.ranges[name].by_channel()
        return format_for(seen.low, seen.high, bits, alike=True)

    def _cut(self, name: str, bits: int) -> Any:
        value = self.value(name)
        signed, integer, fraction = value.kif
        if int((signed + integer + fraction).max()) <= bits:
            return value
        form = self._format(name, bits)
        rounding = "TRN" if name in self._rounded else "RND"
        if self.widths.overflow == "grow":
            return value.quantize(signed, integer, form.fraction, "WRAP", rounding)
        spare = 1 if self.widths.overflow == "wrap" else 0
        mode = "WRAP" if spare else "SAT"
        return value.quantize(form.signed, form.integer + spare, form.fraction, mode, rounding)

    def half_a_step(self, node: onnx.NodeProto) -> Array | float:
        """Return the number to add to a product's bias so that truncating its sum rounds it.

        Every node between this product and the next one must commute with the addition and have no
        other reader; otherwise the number is 0.
        """
        name = node.output[0]
        while True:
            readers = self.readers.get(name, [])
            if len(readers) != 1:
                return 0.0
            reader = readers[0]
            if reader.op_type in PRODUCTS and not self.is_constant_name(reader.input[1]):
                return 0.0
            if reader.op_type in PRODUCTS and reader.input[0] == name:
                break
            if reader.op_type not in _KEEPS_ROUNDING or reader.input[0] != name:
                return 0.0
            name = reader.output[0]
        fraction = self._format(name, self.widths.of(reader.name)[1]).fraction
        self._rounded.add(node.output[0])
        return float(2.0 ** -(int(fraction.flat[0]) + 1))

    def is_constant_name(self, name: str) -> bool:
        """Whether a tensor is a stored constant."""
        return name in self.constants

    def weights(self, node: onnx.NodeProto, weights: Array, axis: int) -> Array:
        """Return a node's weights, rounded to its width."""
        return rounded_weights(weights, self.widths.of(node.name)[0], axis)

    def bias(self, node: onnx.NodeProto, bias: Array) -> Array:
        """Return a bias, rounded to a quarter of the step that its sum is rounded to."""
        seen = self.ranges[node.output[0]]
        largest = max(float(np.abs(seen.low).max()), float(np.abs(seen.high).max()), 2.0**-30)
        bits = self.widths.of(node.name)[1] + 2
        step = 2.0 ** (np.ceil(np.log2(largest)) - bits)
        return np.asarray(np.round(np.asarray(bias, np.float64) / step) * step)

    def table(self, node: onnx.NodeProto, function: Callable[[Array], Array]) -> Any:
        """Return a function of the node's input by a lookup table that the input addresses."""
        bits = min(_TABLE_BITS, self.widths.of(node.name)[1])
        value = self.narrow(node, bits=bits)
        form = self._format(node.output[0], self.widths.activations)
        # A table must also answer for numbers that calibration never showed.
        low, high = (float(e) for e in function(np.asarray([-1e3, 1e3])))
        reach = (
            max(abs(low), abs(high))
            if max(abs(low), abs(high)) <= 1
            else 2.0 ** int(form.integer.max())
        )
        integer = max(int(np.ceil(np.log2(max(reach, 2.0**-30)))), int(form.integer.max()))
        signed = int(min(low, high, float(self.ranges[node.output[0]].low.min())) < 0)
        fraction = self.widths.activations - signed - integer
        return value.apply(function).quantize(signed, integer, fraction, "SAT", "RND")

    def share(self, node: onnx.NodeProto, count: int) -> float:
        """Return 1 / count, rounded to the width of a node's weights."""
        bits = self.widths.of(node.name)[0]
        return float(rounded_weights(np.array([[1 / count]]), bits, 0)[0, 0])


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
