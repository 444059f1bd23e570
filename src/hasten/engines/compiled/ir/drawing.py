"""An ONNX graph that is being drawn from an IR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hasten.core.tensors import Array
from hasten.engines.compiled.ir.constants import Known, Ranges, known, refuse


@dataclass
class Drawing:
    """Nodes and constants so far.

    Attributes:
        nodes: Nodes in order.
        constants: Constants by name.
        names: Name in ONNX of each output of an operation, by the operation's and its place.
    """

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    names: dict[tuple[str, int], str] = field(default_factory=dict)

    def fresh(self) -> str:
        """Return a name that nothing has."""
        return f"v{len(self.names)}.{len(self.nodes)}.{len(self.constants)}"

    def constant(self, array: Array | np.generic) -> str:
        """Keep a constant; return its name."""
        name = self.fresh()
        self.constants[name] = np.asarray(array)
        return name

    def node(
        self, kind: str, operation: Any, inputs: Sequence[str], outputs: int = 1, **attributes: Any
    ) -> list[str]:
        """Append a node that bears the operation's name; return its outputs' names.

        Args:
            kind: Operator of ONNX.
            operation: Operation that it is drawn from.
            inputs: Names of its inputs.
            outputs: Number of outputs.
            attributes: Its attributes.
        """
        made = [f"{self.fresh()}.{place}" for place in range(outputs)]
        name = operation.get_friendly_name()
        self.nodes.append(helper.make_node(kind, list(inputs), made, name=name, **attributes))
        return made

    def give(self, operation: Any, names: Sequence[str]) -> None:
        """Say which names the outputs of an operation have."""
        for place, name in enumerate(names):
            self.names[operation.get_name(), place] = name

    def input(self, operation: Any, place: int) -> str:
        """Return the name of an input, drawn if it is a constant."""
        value = operation.input_value(place)
        key = (value.get_node().get_name(), value.get_index())
        if key not in self.names:
            found = known(value)
            if found is None:
                raise refuse(value.get_node(), "it isn't covered among constants")
            self.names[key] = self.stored(operation, found)
        return self.names[key]

    def stored(self, operation: Any, numbers: Known) -> str:
        """Draw a constant: integers behind a DequantizeLinear where it was stored as such."""
        if numbers.levels is None or numbers.steps is None or numbers.levels.ndim < 2:
            return self.constant(numbers.array)
        steps = numbers.steps
        varying = [at for at in range(steps.ndim) if (steps != np.take(steps, [0], at)).any()]
        if len(varying) > 1:
            return self.constant(numbers.array)
        axis = {"axis": varying[0]} if varying else {}
        scale, zero = steps.reshape(-1)[:1].reshape(()), np.zeros((), np.int8)
        if varying:
            scale = np.array(
                np.moveaxis(steps, varying[0], 0).reshape(steps.shape[varying[0]], -1)[:, 0]
            )
            zero = np.zeros(scale.shape, np.int8)
        names = [self.constant(one) for one in (numbers.levels, scale, zero)]
        return self.node("DequantizeLinear", operation, names, **axis)[0]

    def rounded(self, operation: Any, given: str, taken: Ranges, made: Ranges) -> str:
        """Draw a QuantizeLinear and a DequantizeLinear."""
        most = np.iinfo(taken.zero.dtype).max
        if (taken.zero.astype(int) + np.rint(taken.high / taken.step)).max() < most:
            high = self.constant(np.float32(taken.high.max()))
            given = self.node("Clip", operation, [given, "", high])[0]
        axis = {"axis": 1} if taken.step.size > 1 else {}
        first = [self.constant(one) for one in (taken.flat(taken.step), taken.flat(taken.zero))]
        second = first
        if not taken.equals(made):
            second = [self.constant(one) for one in (made.flat(made.step), made.flat(made.zero))]
        codes = self.node("QuantizeLinear", operation, [given, *first], **axis)[0]
        return self.node("DequantizeLinear", operation, [codes, *second], **axis)[0]

    def model(
        self, inputs: Sequence[tuple[str, Any, Sequence[int]]], outputs: Sequence[str]
    ) -> onnx.ModelProto:
        """Return the graph as a model.

        Args:
            inputs: Name, numpy's element type and shape of each input.
            outputs: Names of the outputs.
        """
        graph = helper.make_graph(
            self.nodes,
            "ir",
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape)
                )
                for name, dtype, shape in inputs
            ],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])


OPSET = 21
"""Version of ONNX's operators in what is drawn."""
