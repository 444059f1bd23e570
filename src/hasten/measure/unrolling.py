"""Graphs with branches and loops unrolled into one list of the nodes that a request executed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


@dataclass
class Unrolled:
    """Nodes in the order of execution, each listed once; no two tensors share a name.

    Attributes:
        nodes: Executed nodes; a node with inner graphs has lost them if a node in them ran.
        initializers: Constants of the outer graph and of inner graphs -> their shapes.
    """

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, tuple[int, ...]] = field(default_factory=dict)


def unrolled(graph: onnx.GraphProto, executed: Collection[str]) -> Unrolled:
    """Put the executed nodes of inner graphs before the node that holds these.

    A node of the loop's type and domain supplies the inputs of a loop's body, so that they don't
    count as constant. The outputs of a body are among the inputs of the node that held it.

    Args:
        graph: Graph in which all nodes, those of inner graphs too, have different names.
        executed: Names of the nodes that were executed; empty where that is unknown.
    """
    found = Unrolled()
    _unroll(graph, executed, {}, found)
    return found


def inner_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs inside a node."""
    found = [graph for one in node.attribute for graph in (one.g, *one.graphs)]
    return [graph for graph in found if graph.node or graph.output]


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, from inside its graphs too."""
    yield from node.input
    for graph in inner_graphs(node):
        yield from (value.name for value in graph.output)
        for one in graph.node:
            yield from reads(one)


def _unroll(
    graph: onnx.GraphProto, executed: Collection[str], names: Mapping[str, str], found: Unrolled
) -> None:
    for tensor in graph.initializer:
        found.initializers[names.get(tensor.name, tensor.name)] = tuple(tensor.dims)
    for node in graph.node:
        if executed and (inner := inner_graphs(node)):
            _unroll_bodies(node, inner, executed, names, found)
        else:
            found.nodes.append(_renamed(node, names))


def _unroll_bodies(
    node: onnx.NodeProto,
    inner: list[onnx.GraphProto],
    executed: Collection[str],
    names: Mapping[str, str],
    found: Unrolled,
) -> None:
    """Put each body that ran in place, and after it the node that held it.

    Where none ran, the node keeps its bodies: the runtime may have replaced all their nodes.
    """
    import onnx

    holder = _renamed(node, names)
    for number, body in enumerate(inner):
        if not any(one.name in executed for one in body.node):
            continue
        scope = {**names, **_own_names(body, f"{node.name}/{number}/")}
        if taken := [scope[value.name] for value in body.input]:
            given = onnx.helper.make_node(node.op_type, holder.input, taken, domain=node.domain)
            found.nodes.append(given)
        _unroll(body, executed, scope, found)
        holder.input.extend(scope.get(value.name, value.name) for value in body.output)
        kept = [one for one in holder.attribute if not (one.HasField("g") or one.graphs)]
        del holder.attribute[:]
        holder.attribute.extend(kept)
    inside = list(reads(holder))[len(holder.input) :]
    holder.input.extend(names.get(name, name) for name in inside)
    found.nodes.append(holder)


def _own_names(body: onnx.GraphProto, prefix: str) -> dict[str, str]:
    """Return unique names for everything that a body defines."""
    own = [*(t.name for t in body.initializer), *(value.name for value in body.input)]
    own += [name for node in body.node for name in node.output if name]
    return {name: f"{prefix}{name}" for name in own}


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for mine in (copy.input, copy.output):
        mine[:] = [names.get(name, name) for name in mine]
    return copy
