"""ONNX graph for one request: shapes are known, constants computed, idle nodes removed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.errors import CandidateError, NotCovered, first_words

_ROUNDS = 8
"""Limit on rounds of inferring shapes and computing constants; each may need the other."""


@dataclass(frozen=True, eq=False)
class Node:
    """Operation of a graph.

    Attributes:
        op: Name of the operator in ONNX.
        name: Name of the node or, for a node without a name, of its first output.
        inputs: Names of the values read; "" for one that isn't given.
        outputs: Names of the values computed.
        settings: Attributes by name.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def refused(self, why: str = "") -> NotCovered:
        """Return the error that this node can't be converted, with the reason."""
        reason = f": {why}" if why else ""
        return NotCovered(f"LiteRT can't take the operator {self.op} (node {self.name!r}){reason}")


class Graph:
    """Operations that a request runs through, in order.

    Attributes:
        nodes: Nodes in the order of execution.
        constants: Constant values by name.
        inputs: Names of the inputs.
        outputs: Pairs of an output's name in the model and the name of its value.
        opset: Version of ONNX's own operators.
        open_batch: Whether the first axis of all inputs is open, and shared by them.
    """

    def __init__(self, proto: onnx.ModelProto, model: Model) -> None:
        self.opset = max((o.version for o in proto.opset_import if not o.domain), default=1)
        self.constants: dict[str, Array] = {}
        self._types: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        sizes = _settled(model)
        self.open_batch = _open_batch(model, sizes)
        self.inputs = [spec.name for spec in model.inputs]
        self._settle(proto, sizes)
        self._read(proto)
        self.set_nodes([_node(proto_node) for proto_node in proto.graph.node])
        self.outputs = [(value.name, value.name) for value in proto.graph.output]
        self._drop_idle()

    def shape(self, name: str, node: Node) -> tuple[int, ...]:
        """Return a value's shape.

        Raises:
            CandidateError: the shape isn't known; the message names `node`, which needs it.
        """
        return self._type(name, node)[1]

    def dtype(self, name: str, node: Node) -> np.dtype[Any]:
        """Return a value's element type; raise CandidateError if it isn't known."""
        return self._type(name, node)[0]

    def _type(self, name: str, node: Node) -> tuple[np.dtype[Any], tuple[int, ...]]:
        if name in self.constants:
            return self.constants[name].dtype, self.constants[name].shape
        if name not in self._types:
            raise node.refused(f"the shape of {name!r} isn't known before a request runs")
        return self._types[name]

    def copy_type(self, source: str, name: str) -> None:
        """Record that a new value has the element type and shape of another one."""
        self._types[name] = self._types[source]

    def producer(self, name: str) -> Node | None:
        """Return the node that computes a value."""
        return self._producers.get(name)

    def consumers(self, name: str) -> list[Node]:
        """Return the nodes that read a value."""
        return self._consumers.get(name, [])

    def only_consumer(self, name: str) -> Node | None:
        """Return the only node that reads a value; None for an output or for several readers."""
        found = self.consumers(name)
        given = any(value == name for _, value in self.outputs)
        return found[0] if len(found) == 1 and not given else None

    def swap(self, old: Sequence[Node], new: Sequence[Node]) -> None:
        """Replace some nodes by others, which take the place of the last one."""
        position = self.nodes.index(old[-1])
        self.nodes[position : position + 1] = new
        self.set_nodes([node for node in self.nodes if node not in old])

    def set_nodes(self, nodes: list[Node]) -> None:
        """Replace all nodes."""
        self.nodes = nodes
        self._producers = {name: node for node in nodes for name in node.outputs}
        self._consumers: dict[str, list[Node]] = {}
        for node in nodes:
            for name in dict.fromkeys(node.inputs):
                self._consumers.setdefault(name, []).append(node)

    def remove_unused(self) -> None:
        """Remove nodes whose outputs nothing reads."""
        needed = {value for _, value in self.outputs}
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
                kept.append(node)
        self.set_nodes(kept[::-1])

    def argument(self, node: Node, position: int, name: str = "") -> Array | None:
        """Return a constant that newer operator sets have as an input, and older as an attribute.

        Raises:
            CandidateError: the input is given, but isn't constant.
        """
        if len(node.inputs) > position and (value := node.inputs[position]):
            if value not in self.constants:
                raise node.refused(f"its input {value!r} must be constant")
            return self.constants[value]
        return np.asarray(node.settings[name]) if name in node.settings else None

    def _settle(self, proto: onnx.ModelProto, sizes: dict[str, tuple[int, ...]]) -> None:
        for value in proto.graph.input:
            shape = value.type.tensor_type.shape
            for dim, size in zip(shape.dim, sizes.get(value.name, ()), strict=False):
                dim.dim_value = size
        del proto.graph.value_info[:]
        for value in proto.graph.output:
            value.type.tensor_type.ClearField("shape")

    def _read(self, proto: onnx.ModelProto) -> None:
        """Infer shapes and compute constants until nothing new is found."""
        graph = proto.graph
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        for _ in range(_ROUNDS):
            inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
            for value in (*inferred.value_info, *inferred.input, *inferred.output):
                self._note(value)
            left, found = [], False
            for node in graph.node:
                if (values := self._computed(node, proto)) is None:
                    left.append(node)
                    continue
                found = True
                self.constants.update(values)
                graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items())
            del graph.node[:]
            graph.node.extend(left)
            if not found:
                return

    def _note(self, value: onnx.ValueInfoProto) -> None:
        tensor = value.type.tensor_type
        if not tensor.HasField("shape") or not tensor.elem_type:
            return
        dims = [int(d.dim_value) if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
        if min(dims, default=0) >= 0:
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
            self._types[value.name] = (dtype, tuple(dims))

    def _computed(self, node: onnx.NodeProto, proto: onnx.ModelProto) -> dict[str, Array] | None:
        """Return a node's outputs if they are the same for every request, else None."""
        if node.domain or not node.output:
            return None
        if node.op_type == "Shape" and node.input[0] in self._types:
            settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            shape = self._types[node.input[0]][1][settings.get("start", 0) : settings.get("end")]
            return {node.output[0]: np.array(shape, np.int64)}
        if any(name and name not in self.constants for name in node.input):
            return None
        if any(
            a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
            for a in node.attribute
        ):
            return None
        if node.op_type.startswith("Random"):
            return None
        from onnx.reference import ReferenceEvaluator

        names = [name for name in node.output if name]
        try:
            values = [helper.make_tensor_value_info(n, 0, None) for n in (*node.input, *names) if n]
            given = len(values) - len(names)
            whole = helper.make_graph([node], "constant", values[:given], values[given:])
            own = helper.make_model(whole, opset_imports=proto.opset_import)
            feeds = {name: self.constants[name] for name in node.input if name}
            results = ReferenceEvaluator(own).run(None, feeds)
        except Exception:  # the node is then converted like any other, or refused by name
            return None
        return {name: np.asarray(value) for name, value in zip(names, results, strict=True)}

    def _drop_idle(self) -> None:
        """Remove nodes that only pass a value on."""
        same: dict[str, str] = {}
        kept = []
        for node in self.nodes:
            node = _renamed(node, same)
            idle = node.op in ("Identity", "Dropout")
            if idle and not any(self.consumers(other) for other in node.outputs[1:]):
                same[node.outputs[0]] = node.inputs[0]
            else:
                kept.append(node)
        self.set_nodes(kept)
        self.outputs = [(public, same.get(value, value)) for public, value in self.outputs]


def read_graph(model: Model) -> Graph:
    """Read an ONNX model for the request that it was settled to, or for one sample.

    Raises:
        CandidateError: the model can't be read, or is too large for shape inference.
    """
    try:
        proto = onnx.load(str(model.path))
        return Graph(proto, model)
    except CandidateError:
        raise
    except Exception as error:
        line = (first_words(str(error)) or type(error).__name__)[:200]
        raise CandidateError(f"LiteRT's converter can't read {model.path.name}: {line}") from error


def _settled(model: Model) -> dict[str, tuple[int, ...]]:
    """Return each input's sizes, from the settled request, else with 1 for open dimensions."""
    specs = model.request or model.inputs
    return {
        spec.name: tuple(size if isinstance(size, int) else 1 for size in spec.shape)
        for spec in specs
    }


def _open_batch(model: Model, sizes: dict[str, tuple[int, ...]]) -> bool:
    first = {spec.shape[:1] for spec in model.inputs}
    return (
        len(first) == 1
        and all(shape and isinstance(shape[0], str) for shape in first)
        and {size[0] for size in sizes.values()} == {1}
    )


def _node(proto: onnx.NodeProto) -> Node:
    settings = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
    name = proto.name or next(filter(None, proto.output), "")
    op = f"{proto.domain}:{proto.op_type}" if proto.domain not in ("", "ai.onnx") else proto.op_type
    return Node(op, name, tuple(proto.input), tuple(proto.output), settings)


def _renamed(node: Node, same: dict[str, str]) -> Node:
    inputs = tuple(same.get(name, name) for name in node.inputs)
    return Node(node.op, node.name, inputs, node.outputs, node.settings)


def scalar(array: Array | None) -> float | None:
    """Return the only number of an array; None for another size."""
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def axes_of(axes: Sequence[int] | Array, rank: int) -> list[int]:
    """Return axes counted from the front."""
    return [int(axis) % rank for axis in axes]


def numbers(array: Array) -> Iterator[int]:
    """Yield an array's numbers as Python integers."""
    return (int(value) for value in array.reshape(-1))
