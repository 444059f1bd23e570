"""Original nodes of a model behind each node of the graph that ONNX Runtime executes.

The runtime keeps no record of its fusions. It does keep names, of nodes and of tensors that still
exist, so most of what it fused can be found between a node's inputs and its outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from typing import TYPE_CHECKING

from hasten.engines.layers import node_name

if TYPE_CHECKING:
    import onnx

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})

_LAYOUT = frozenset({"ReorderInput", "ReorderOutput", "Transpose", "Cast"})
"""Operators that the runtime inserts between two nodes, under the tensor name of one of them."""
_SHAPES = frozenset({"Shape", "Size"})
"""Operators that read shapes alone; the nodes behind them aren't part of a fusion."""
_UNIQUE = re.compile(r"_token_\d+$")
"""Suffix that the runtime adds to a name already in use."""
_BLOCKED = "_nchwc"
"""Suffix that the runtime adds to an output's name to name a node in its blocked memory layout."""


def covered(
    original: onnx.GraphProto, executed: onnx.GraphProto, products: Set[str]
) -> list[tuple[str, ...]]:
    """Name the nodes of the original graph that each executed node covers.

    Quantizers aren't named, since they are a form of the values and not work of the model.

    Args:
        original: Graph in the file.
        executed: Graph that the runtime wrote after optimizing it.
        products: Operators, in either graph, that multiply matrices or convolve.

    Returns:
        Names for each node of `executed`, in order; each tuple is in the order of the original.
    """
    origin = _Original(original)
    match = _Match(origin, executed, products)
    match.by_name()
    match.between()
    match.behind()
    named: list[list[str]] = [[] for _ in executed.node]
    for node, step in sorted(match.owner.items()):
        if origin.nodes[node].op_type not in QUANTIZERS:
            named[step].append(node_name(origin.nodes[node]))
    return [tuple(names) for names in named]


class _Original:
    """Graph in the file.

    Attributes:
        nodes: Nodes in the file's order, which is an order of execution.
        producer: Position of the node that computes each tensor, by the tensor's name.
        by_name: Position of each node, by its name.
        live: Positions of the nodes that depend on an input; the runtime folds the others.
        tensors: Names of the tensors that aren't constant.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        constants = {tensor.name for tensor in graph.initializer}
        self.nodes = list(graph.node)
        self.producer = {name: i for i, n in enumerate(self.nodes) for name in n.output if name}
        self.by_name = {node.name: i for i, node in enumerate(self.nodes) if node.name}
        self.tensors = {value.name for value in graph.input} - constants
        self.live: set[int] = set()
        for position, node in enumerate(self.nodes):
            if self.tensors.intersection(node.input):
                self.live.add(position)
                self.tensors.update(node.output)

    def makers(self, position: int, stops: set[str]) -> Iterator[int]:
        """Yield the nodes that compute a node's inputs, except for tensors to stop at."""
        for tensor in self.nodes[position].input:
            maker = self.producer.get(tensor)
            if tensor not in stops and maker in self.live:
                yield maker


class _Match:
    """Assignment of original nodes to executed ones, in three steps, the surest first.

    Attributes:
        owner: Position of the executed node that covers each original node, by the latter's
            position.
    """

    def __init__(self, origin: _Original, executed: onnx.GraphProto, products: Set[str]) -> None:
        self.origin = origin
        self.products = products
        self.steps = list(executed.node)
        self.owner: dict[int, int] = {}
        self._moving = {value.name for value in executed.input}
        self._moving.update(name for step in self.steps for name in step.output)
        self._moving -= {tensor.name for tensor in executed.initializer}
        self._same: dict[str, str] = {}
        for step in reversed(self.steps):
            if self._inserted(step):
                taken, given = step.input[0], step.output[0]
                if self._original_tensor(given) in origin.tensors:
                    self._same[taken] = given
                else:
                    self._same[given] = taken

    def _inserted(self, step: onnx.NodeProto) -> bool:
        """Whether the runtime inserted a node, even under the name of an existing output."""
        if step.op_type not in _LAYOUT or step.name in self.origin.by_name:
            return False
        maker = self.origin.producer.get(step.output[0])
        return maker is None or self.origin.nodes[maker].op_type != step.op_type

    def _original_tensor(self, name: str) -> str:
        """Return a tensor's name before layouts changed, as far as it is known."""
        seen: set[str] = set()
        while name not in self.origin.tensors and name in self._same and name not in seen:
            seen.add(name)
            name = self._same[name]
        return name

    def by_name(self) -> None:
        """Assign the original nodes that an executed node's outputs and name refer to."""
        for number, step in enumerate(self.steps):
            told = [self.origin.producer.get(self._original_tensor(name)) for name in step.output]
            name = _UNIQUE.sub("", step.name)
            told.append(self.origin.by_name.get(name))
            if name.endswith(_BLOCKED):
                told.append(self.origin.producer.get(name.removesuffix(_BLOCKED)))
            for node in told:
                if node is not None:
                    self.owner.setdefault(node, number)

    def between(self) -> None:
        """Assign the original nodes between an executed node's inputs and those that it covers."""
        own: list[list[int]] = [[] for _ in self.steps]
        for node, number in self.owner.items():
            own[number].append(node)
        for number, step in enumerate(self.steps):
            read = {self._original_tensor(name) for name in step.input if name in self._moving}
            if read <= self.origin.tensors:
                self._fill(number, own[number], read)
            elif step.op_type in self.products:
                self._find_product(number, own[number])

    def _fill(self, number: int, todo: list[int], stops: set[str]) -> None:
        while todo:
            for maker in self.origin.makers(todo.pop(), stops):
                if maker not in self.owner:
                    self.owner[maker] = number
                    if self.origin.nodes[maker].op_type not in _SHAPES:
                        todo.append(maker)

    def _find_product(self, number: int, todo: list[int]) -> None:
        """Search backwards for the product that a step must contain; its inputs' names are lost."""
        known = [node for node in todo if self.origin.nodes[node].op_type in self.products]
        while todo and not known:
            node = todo.pop()
            for maker in self.origin.makers(node, set()):
                if maker in self.owner:
                    continue
                self.owner[maker] = number
                todo.append(maker)
                if self.origin.nodes[maker].op_type in self.products:
                    return

    def behind(self) -> None:
        """Assign each remaining node, except products, to the last step that it reads from."""
        for position, node in enumerate(self.origin.nodes):
            if position in self.owner or position not in self.origin.live:
                continue
            if node.op_type in self.products or node.op_type in _SHAPES:
                continue
            makers = [self.owner.get(maker) for maker in self.origin.makers(position, set())]
            if known := [number for number in makers if number is not None]:
                self.owner[position] = max(known)
