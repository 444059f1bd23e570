"""ONNX graph under construction, for models of rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.core.extras import missing_extra
from hasten.core.tensors import Array

if TYPE_CHECKING:
    import onnx

INPUT = "rows"
"""Name of the only input, of shape `[batch, columns]`."""
OPSETS = {"": 21, "ai.onnx.ml": 5}
_OLDER = {"ai.onnx.ml": 3}
IR_VERSION = 10
"""Versions of what is written: TreeEnsemble came with ai.onnx.ml 5."""


class Graph:
    """Nodes in order, with constants that are stored once.

    Attributes:
        dtype: Element type of the input, by numpy's name.
    """

    def __init__(self, columns: int, dtype: str) -> None:
        """Begin a graph with the input `rows`.

        Args:
            columns: Number of the input's columns.
            dtype: Element type of the input, by numpy's name.

        Raises:
            InputError: onnx isn't installed.
        """
        try:
            import onnx
        except ImportError as error:
            raise missing_extra("a model of rows", "tabular") from error
        self._onnx = onnx
        self.columns, self.dtype = columns, dtype
        self.nodes: list[Any] = []
        self.constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._tensors: list[Any] = []
        self._count = 0

    def fresh(self, stem: str) -> str:
        """Return a name that nothing in the graph has."""
        self._count += 1
        return f"{stem.lower()}_{self._count}"

    def add(
        self,
        op: str,
        *inputs: str | Array | np.generic[Any],
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node with one output.

        Args:
            op: Name of the operator.
            *inputs: Names of values, or arrays and numbers that become constants.
            domain: Domain of the operator.
            **attributes: Attributes of the node; arrays become tensors.

        Returns:
            Name of the output.
        """
        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        given = {
            key: self._onnx.numpy_helper.from_array(value, key)
            if isinstance(value, np.ndarray)
            else value
            for key, value in attributes.items()
        }
        out = self.fresh(op)
        self.nodes.append(
            self._onnx.helper.make_node(op, names, [out], name=out, domain=domain, **given)
        )
        return out

    def constant(self, array: Array | np.generic[Any]) -> str:
        """Return the name of a constant with these numbers."""
        array = np.asarray(array, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = name = self.fresh("constant")
            self._tensors.append(self._onnx.numpy_helper.from_array(array, name))
        return self.constants[key]

    def cast(self, value: str, dtype: str, given: str) -> str:
        """Return a value as another type; the same value where it has that type."""
        if dtype == given:
            return value
        return self.add("Cast", value, to=self.type_of(dtype))

    def type_of(self, dtype: str) -> int:
        """Return ONNX's number of an element type."""
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def include(self, model: onnx.ModelProto, value: str) -> str:
        """Add another model's nodes, fed with a value, and return the name of its last output.

        Args:
            model: Model with one input; its opsets may be older than this graph's.
            value: Name of the value that becomes its input.
        """
        prefixed = self._onnx.compose.add_prefix(model, f"{self.fresh('part')}_")
        (given,) = (one.name for one in prefixed.graph.input)
        for node in prefixed.graph.node:
            node.input[:] = [value if name == given else name for name in node.input]
            self.nodes.append(node)
        self._tensors += prefixed.graph.initializer
        return str(prefixed.graph.output[-1].name)

    def finish(
        self, output: str, name: str, width: int, dtype: str, metadata: dict[str, str]
    ) -> onnx.ModelProto:
        """Return the model.

        Args:
            output: Name of the value that becomes the output.
            name: Name of the output.
            width: Size of the output's second axis.
            dtype: Element type of the output, by numpy's name.
            metadata: Entries of `metadata_props`.
        """
        helper = self._onnx.helper
        nodes = _reaching(self.nodes, output)
        if nodes and output in nodes[-1].output:
            nodes[-1].output[:] = [name if one == output else one for one in nodes[-1].output]
        else:
            nodes.append(helper.make_node("Identity", [output], [name], name=name))
        read = {one for node in nodes for one in node.input}
        first = helper.make_tensor_value_info(
            INPUT, self.type_of(self.dtype), ["batch", self.columns]
        )
        last = helper.make_tensor_value_info(name, self.type_of(dtype), ["batch", width])
        graph = helper.make_graph(
            nodes, "rows", [first], [last], [t for t in self._tensors if t.name in read]
        )
        used = {node.domain for node in nodes} | {""}
        opsets = OPSETS | ({} if any(n.op_type == "TreeEnsemble" for n in nodes) else _OLDER)
        model: onnx.ModelProto = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(d, v) for d, v in opsets.items() if d in used],
            ir_version=IR_VERSION,
            producer_name="hasten",
        )
        helper.set_model_props(model, metadata)
        return model

    def save(self, model: onnx.ModelProto, path: Path) -> None:
        """Check a model and write it to a file."""
        self._onnx.checker.check_model(model)
        self._onnx.save(model, path)


def _reaching(nodes: list[Any], output: str) -> list[Any]:
    """Return the nodes that a value is made of, in order."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
