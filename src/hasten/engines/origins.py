"""Nodes of the original model that the steps of a profile belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hasten.engines.layers import LayerTime, node_name

if TYPE_CHECKING:
    import onnx

_PRODUCTS = frozenset(
    {
        *("Conv", "ConvInteger", "ConvTranspose", "Einsum", "Gemm", "MatMul", "MatMulInteger"),
        *("QLinearConv", "QLinearMatMul"),
    }
)
_CLAMPS = frozenset({"Clip", "Relu"})
"""Operators that quantizing performs as well, where its range ends at their bounds."""


def node_names(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the name of the node for every name that a runtime may use for it.

    A runtime may name a node after one of its outputs.
    """
    by_output = {name: node_name(node) for node in graph.node for name in node.output if name}
    return by_output | {node.name: node.name for node in graph.node if node.name}


def traced(layers: Sequence[LayerTime], graph: onnx.GraphProto) -> tuple[LayerTime, ...]:
    """Replace the sources in an artifact's profile by nodes of the original model.

    A pass or a converter that takes a node apart begins the names of the pieces with the node's:
    "c/WithoutBiases" and "c_quant" belong to the node "c". A step without such a beginning was
    inserted. A product whose name was lost is searched for between the steps before and after it.

    Args:
        layers: Profile of an artifact that was made from the model.
        graph: Graph of the original model.

    Returns:
        The steps with new sources, which are in the order of the graph.
    """
    names = node_names(graph)
    named = [list(dict.fromkeys(_origins(layer.sources, names))) for layer in layers]
    search = _Search(layers, named, graph)
    for position, node in enumerate(search.nodes):
        if node.op_type in _PRODUCTS and position not in search.steps:
            search.find_product(position)
    for position, node in enumerate(search.nodes):
        if node.op_type in _CLAMPS and position not in search.steps:
            search.join_product(position)
    order = {node_name(node): position for position, node in enumerate(graph.node)}
    return tuple(
        replace(layer, sources=tuple(sorted(found, key=order.__getitem__)))
        for layer, found in zip(layers, search.named, strict=True)
    )


def origin(source: str, names: Mapping[str, str]) -> str | None:
    """Return the node of the original model that a name belongs to, or begins with; None for none.

    Args:
        source: Name in what was made from the model.
        names: Node by each name that it may have; see `node_names`.
    """
    head = source
    while head and head not in names:
        head = head[: max(head.rfind("/"), head.rfind("_"), 0)]
    return names[head] if head else None


def _origins(sources: Sequence[str], names: Mapping[str, str]) -> Iterator[str]:
    """Yield the node that each source is, or is a piece of, if there is one."""
    for source in sources:
        found = origin(source, names)
        if found is not None:
            yield found


class _Search:
    """Search for the steps of nodes whose names were lost.

    Attributes:
        named: Names of the nodes that each step covers, as far as they are known.
        nodes: Nodes that depend on an input of the graph, in order; the others are folded.
        steps: First step that covers each node, by the node's position.
    """

    def __init__(
        self, layers: Sequence[LayerTime], named: list[list[str]], graph: onnx.GraphProto
    ) -> None:
        self.named = named
        self.nodes: list[onnx.NodeProto] = []
        self._arithmetic = [layer.kind == "arithmetic" for layer in layers]
        self._makers: dict[str, int] = {}
        self._readers: dict[str, list[int]] = {}
        moving = {value.name for value in graph.input} - {t.name for t in graph.initializer}
        for node in graph.node:
            if moving.intersection(node.input):
                moving.update(node.output)
                for tensor in node.input:
                    self._readers.setdefault(tensor, []).append(len(self.nodes))
                self._makers |= dict.fromkeys(filter(None, node.output), len(self.nodes))
                self.nodes.append(node)
        of = {name: number for number, some in reversed([*enumerate(named)]) for name in some}
        self.steps = {
            position: of[node_name(node)]
            for position, node in enumerate(self.nodes)
            if node_name(node) in of
        }

    def find_product(self, position: int) -> None:
        """Assign a product to a nameless step of its own, or to the one it is fused into."""
        _, before = self._reached(position, self._sources)
        passed, after = self._reached(position, self._users)
        nameless = (
            number
            for number in range(max(before, default=-1) + 1, min(after, default=len(self.named)))
            if self._arithmetic[number] and not self.named[number]
        )
        number = next(nameless, None)
        if number is not None:
            self._cover(number, [position])
        elif len(after) == 1 and self._arithmetic[max(after)]:
            self._cover(max(after), [position, *passed])

    def join_product(self, position: int) -> None:
        """Assign a clamp to the arithmetic step whose output it reads."""
        for maker in self._sources(position):
            number = self.steps.get(maker)
            if number is not None and self._arithmetic[number]:
                self._cover(number, [position])
                return

    def _cover(self, number: int, positions: Sequence[int]) -> None:
        self.steps |= dict.fromkeys(positions, number)
        self.named[number] += [node_name(self.nodes[position]) for position in positions]

    def _sources(self, position: int) -> Iterator[int]:
        for tensor in self.nodes[position].input:
            if tensor in self._makers:
                yield self._makers[tensor]

    def _users(self, position: int) -> Iterator[int]:
        for tensor in self.nodes[position].output:
            yield from self._readers.get(tensor, ())

    def _reached(
        self, position: int, near: Callable[[int], Iterator[int]]
    ) -> tuple[list[int], set[int]]:
        """Walk through nodes without a step; return them, and the steps where the walk ends."""
        passed: list[int] = []
        ends: set[int] = set()
        todo = [position]
        while todo:
            for other in near(todo.pop()):
                if other in self.steps:
                    ends.add(self.steps[other])
                elif other not in passed:
                    passed.append(other)
                    todo.append(other)
        return passed, ends
