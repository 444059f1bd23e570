"""Which nodes of the original model the steps of a profile are of."""

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
"""What quantizing does on the way, where the range that it keeps ends there anyhow."""


def node_names(graph: onnx.GraphProto) -> dict[str, str]:
    """Return all that a graph's nodes may be called by, and what each is called here.

    A runtime may call a node as one of its outputs.
    """
    by_output = {name: node_name(node) for node in graph.node for name in node.output if name}
    return by_output | {node.name: node.name for node in graph.node if node.name}


def traced(layers: Sequence[LayerTime], graph: onnx.GraphProto) -> tuple[LayerTime, ...]:
    """Name the nodes of the original model as the sources of an artifact's profile.

    A node that a pass or a converter took apart left its name at the head of the pieces' names:
    "c/WithoutBiases" and "c_quant" are of the node "c". What has no such head was put in. Where a
    product's name was lost, it is looked for between the steps before and after it.

    Args:
        layers: A profile of what was made of the model.
        graph: The model's own.

    Returns:
        The same steps; sources are in the order of the graph.
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


def _origins(sources: Sequence[str], names: Mapping[str, str]) -> Iterator[str]:
    """Yield the node that each source is or comes of, where there is one."""
    for source in sources:
        head = source
        while head and head not in names:
            head = head[: max(head.rfind("/"), head.rfind("_"), 0)]
        if head:
            yield names[head]


class _Search:
    """Looks for the steps of nodes whose names were lost.

    Attributes:
        named: The nodes that each step covers, as far as they are known.
        nodes: Those that depend on an input of the graph, in order; the others are folded.
        steps: Position of a node -> the first step that covers it.
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
        """Give a product to a nameless step that can be its own, else to what it was fused into."""
        _, before = self._reached(position, self._sources)
        way, after = self._reached(position, self._users)
        nameless = (
            number
            for number in range(max(before, default=-1) + 1, min(after, default=len(self.named)))
            if self._arithmetic[number] and not self.named[number]
        )
        number = next(nameless, None)
        if number is not None:
            self._cover(number, [position])
        elif len(after) == 1 and self._arithmetic[max(after)]:
            self._cover(max(after), [position, *way])

    def join_product(self, position: int) -> None:
        """Give a clamp to the arithmetic step whose values it takes."""
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
        """Go through nodes without a step; return these, and the steps at which the ways end."""
        way: list[int] = []
        ends: set[int] = set()
        todo = [position]
        while todo:
            for other in near(todo.pop()):
                if other in self.steps:
                    ends.add(self.steps[other])
                elif other not in way:
                    way.append(other)
                    todo.append(other)
        return way, ends
