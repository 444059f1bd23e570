"""Divisions of whole numbers by which a request could end ONNX Runtime's process."""

from __future__ import annotations

import contextlib
import graphlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hasten.engines.failures import failed

if TYPE_CHECKING:
    import onnx

_MARK = b"\x22\x03Div"
"""Field 4 of NodeProto, a node's operator, in an ONNX file."""
_FIRST_SET = 7
"""Operator set from which operands of unequal shapes need no attributes."""
_PREFIX = "hasten.division."
_STANDARD = frozenset({"", "ai.onnx"})
"""Names of ONNX's own operators' domain."""
_SIZES = frozenset({"Shape", "Size"})
"""Operators whose outputs don't follow from the numbers that they get."""


def guard_divisions(path: Path, fed: Collection[str]) -> int:
    """Rewrite an ONNX file so that no request ends the process by dividing the smallest whole number by -1.

    ONNX Runtime 1.32 divides int32 and int64 by the processor's own instruction, which raises SIGFPE for this quotient,
    since the type has no such number. The rewritten file divides by 1 where the divisor is -1, and negates the quotient.
    All other quotients stay the same; the smallest number divided by -1 gives itself, as in NumPy. Divisions of which
    neither operand follows from a request's numbers stay as they are, and so do those that can't get both numbers
    because one operand is constant.

    Args:
        path: Path of the file, which is changed; its external data isn't read.
        fed: Names of the inputs that a request gives.

    Returns:
        Number of divisions that were rewritten.

    Raises:
        CandidateError: the file can't be read.
    """
    if not _may_divide(path):
        return 0
    import onnx
    import onnx.inliner

    try:
        proto = onnx.load(str(path), load_external_data=False)
        if any(node.op_type == "Div" for own in proto.functions for node in own.node):
            proto = onnx.inliner.inline_local_functions(proto)
        versions = [one.version for one in proto.opset_import if one.domain in _STANDARD]
        if max(versions, default=1) < _FIRST_SET:
            return 0
        for graph in _graphs(proto.graph):
            _put_in_order(graph)
        guard = _Guard(proto, fed)
        guard.rewrite(proto.graph)
        if guard.count:
            path.write_bytes(proto.SerializeToString())
    except Exception as error:
        raise failed("ONNX Runtime can't load the model", error) from error
    return guard.count


def _may_divide(path: Path) -> bool:
    """Whether an ONNX file has the bytes of a node that divides; they also occur by chance among many weights."""
    before = b""
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            if _MARK in before + part:
                return True
            before = part[1 - len(_MARK) :]
    return False


class _Guard:
    """Rewriting of a model's divisions.

    Args:
        proto: The model.
        fed: Names of the inputs that a request gives.

    Attributes:
        count: Number of divisions that were rewritten.
    """

    def __init__(self, proto: onnx.ModelProto, fed: Collection[str]) -> None:
        self.count, self._prefix = 0, _PREFIX
        made = [name for one in _graphs(proto.graph) for node in one.node for name in node.output]
        while any(
            name.startswith(self._prefix) for name in made
        ):  # of a file that was rewritten before
            self._prefix = f"hasten.{self._prefix}"
        self._asked = set(fed)
        self._constants = _constants(proto.graph, fed)
        self._kinds = _kinds(proto)

    def rewrite(self, graph: onnx.GraphProto) -> None:
        """Rewrite the divisions of a graph, whose nodes are in their order, and of the graphs inside it."""
        nodes = [one for node in graph.node for one in self._rewritten(node)]
        del graph.node[:]
        graph.node.extend(nodes)

    def _rewritten(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        inner = list(_inner(node))
        for graph in inner:
            self._asked.update(one.name for one in graph.input)  # a loop's states
            self.rewrite(graph)
        if inner or (node.op_type not in _SIZES and not self._asked.isdisjoint(node.input)):
            self._asked.update(node.output)
        kind = self._kind(node)
        if kind is None or not self._is_open(node, kind):
            return [node]
        self.count += 1
        return _guarded(node, kind, f"{self._prefix}{self.count}")

    def _kind(self, node: onnx.NodeProto) -> int | None:
        """Return ONNX's number of the type of what a node divides; None if it doesn't divide such whole numbers."""
        import onnx

        if node.op_type != "Div" or node.domain not in _STANDARD:
            return None
        for name in (*node.input, *node.output):
            if kind := self._kinds.get(name):
                return kind if kind in (onnx.TensorProto.INT32, onnx.TensorProto.INT64) else None
        return None

    def _is_open(self, node: onnx.NodeProto, kind: int) -> bool:
        """Whether a division may get the smallest number and -1, at least one of them by a request."""
        import onnx

        smallest = np.iinfo(onnx.helper.tensor_dtype_to_np_dtype(kind)).min
        return not self._asked.isdisjoint(node.input) and all(
            name in self._asked or self._constants.get(name, {number}) & {number}
            for name, number in zip(node.input, (smallest, -1), strict=True)
        )


def _guarded(node: onnx.NodeProto, kind: int, prefix: str) -> list[onnx.NodeProto]:
    """Return nodes that divide by 1 where the divisor is -1, and negate the quotient there."""
    import onnx

    (dividend, divisor), (quotient,) = node.input, node.output

    def constant(name: str, number: int) -> onnx.NodeProto:
        tensor = onnx.helper.make_tensor("", kind, [], [number])
        return onnx.helper.make_node("Constant", [], [f"{prefix}.{name}"], value=tensor)

    def made(kind_of: str, inputs: list[str], output: str) -> onnx.NodeProto:
        return onnx.helper.make_node(kind_of, inputs, [output], f"{output}.{kind_of}")

    def own(name: str) -> str:
        return f"{prefix}.{name}"

    return [
        constant("minus one", -1),
        constant("one", 1),
        constant("two", 2),
        made("Equal", [divisor, own("minus one")], own("is minus one")),
        onnx.helper.make_node("Cast", [own("is minus one")], [own("times")], own("Cast"), to=kind),
        made("Mul", [own("times"), own("two")], own("change")),
        made("Add", [divisor, own("change")], own("divisor")),
        onnx.helper.make_node("Div", [dividend, own("divisor")], [own("quotient")], node.name),
        made("Sub", [own("one"), own("change")], own("sign")),
        made("Mul", [own("quotient"), own("sign")], quotient),
    ]


def _constants(graph: onnx.GraphProto, fed: Collection[str]) -> dict[str, set[int]]:
    """Return the whole numbers of a graph's small constants by name, of the graphs inside it too."""
    import onnx

    found = dict[str, set[int]]()

    def note(name: str, tensor: onnx.TensorProto) -> None:
        whole = tensor.data_type in (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
        if whole and not onnx.external_data_helper.uses_external_data(tensor):
            found[name] = set(onnx.numpy_helper.to_array(tensor).ravel().tolist())

    for one in _graphs(graph):
        for tensor in one.initializer:
            if tensor.name not in fed:
                note(tensor.name, tensor)
        for node in one.node:
            for attribute in node.attribute if node.op_type == "Constant" else ():
                match attribute.name:
                    case "value":
                        note(node.output[0], attribute.t)
                    case "value_int":
                        found[node.output[0]] = {attribute.i}
                    case "value_ints":
                        found[node.output[0]] = {*attribute.ints}
    return found


def _kinds(proto: onnx.ModelProto) -> dict[str, int]:
    """Return ONNX's numbers of the tensors' types, as far as they are stated or can be inferred."""
    import onnx

    inferred = proto
    with contextlib.suppress(
        Exception
    ):  # an operator that it doesn't know, or a model that is too large
        inferred = onnx.shape_inference.infer_shapes(proto)
    kinds = dict[str, int]()
    for graph in _graphs(inferred.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            kinds[value.name] = value.type.tensor_type.elem_type
        for tensor in graph.initializer:
            kinds[tensor.name] = tensor.data_type
    return kinds


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for inner in _inner(node):
            yield from _graphs(inner)


def _put_in_order(graph: onnx.GraphProto) -> None:
    """Sort nodes so that each follows those that it takes from: ONNX Runtime takes them in any order."""
    makers = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    taken = [{*node.input}.union(*map(_read, _inner(node))) for node in graph.node]
    sources = {
        at: {makers[name] for name in names & makers.keys()} for at, names in enumerate(taken)
    }
    if any(max(before, default=-1) >= at for at, before in sources.items()):
        nodes = [graph.node[at] for at in graphlib.TopologicalSorter(sources).static_order()]
        copied = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copied)


def _read(graph: onnx.GraphProto) -> set[str]:
    """Return the names that a graph and those inside it read, and the names of its outputs."""
    named = {name for one in _graphs(graph) for node in one.node for name in node.input}
    return named.union(value.name for one in _graphs(graph) for value in one.output)


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    import onnx

    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs
