"""Which nodes of a model went into each node of the graph that ONNX Runtime executes.

The runtime keeps no record of it. What it does keep are names: of tensors that still exist, and of
nodes, so that most of what it fused can be found between what a node reads and what it gives.
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
"""What the runtime puts between two nodes; such a node takes over the tensor name of one of them."""
_SHAPES = frozenset({"Shape", "Size"})
"""What a folded node may come of, without the values: nobody fused what made these into it."""
_UNIQUE = re.compile(r"_token_\d+$")
"""What the runtime adds to a name that was taken."""
_BLOCKED = "_nchwc"
"""What it adds to an output's name to call a node for its blocked memory layout."""


def covered(
    original: onnx.GraphProto, executed: onnx.GraphProto, products: Set[str]
) -> list[tuple[str, ...]]:
    """Name the nodes of the original graph that each executed node covers.

    Quantizers aren't named: they are a form of the values, not work that a model has.

    Args:
        original: As the file has it.
        executed: As the runtime wrote it after it had optimized it.
        products: The operators, in either, that multiply matrices or convolve.

    Returns:
        For each node of `executed`, in order: names in the order of the original.
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
    """The graph as the file has it.

    Attributes:
        nodes: In the order of the file, which is one of execution.
        producer: Tensor -> position of the node that gives it.
        by_name: Node name -> its position.
        live: Positions of the nodes that depend on an input; the runtime folds the others.
        tensors: Names of what isn't constant.
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
        """Yield the nodes whose outputs a node reads, but for tensors to stop at."""
        for tensor in self.nodes[position].input:
            maker = self.producer.get(tensor)
            if tensor not in stops and maker in self.live:
                yield maker


class _Match:
    """Who covers which node, found in three steps, from the surest to the least sure.

    Attributes:
        owner: Position of an original node -> position of the executed one.
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
        """Whether the runtime put a node in, be it under the name of an output that was there."""
        if step.op_type not in _LAYOUT or step.name in self.origin.by_name:
            return False
        maker = self.origin.producer.get(step.output[0])
        return maker is None or self.origin.nodes[maker].op_type != step.op_type

    def _original_tensor(self, name: str) -> str:
        """What a tensor was called before layouts changed, as far as that is known."""
        seen: set[str] = set()
        while name not in self.origin.tensors and name in self._same and name not in seen:
            seen.add(name)
            name = self._same[name]
        return name

    def by_name(self) -> None:
        """Give each executed node the nodes that its outputs and its name tell of."""
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
        """Give each executed node what lies between the tensors that it reads and its own nodes."""
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
        """Go back to the one product that a product's step must have: what it reads has no name."""
        way = [node for node in todo if self.origin.nodes[node].op_type in self.products]
        while todo and not way:
            node = todo.pop()
            for maker in self.origin.makers(node, set()):
                if maker in self.owner:
                    continue
                self.owner[maker] = number
                todo.append(maker)
                if self.origin.nodes[maker].op_type in self.products:
                    return

    def behind(self) -> None:
        """Give what is left, but products, to the last step that it reads from: it was fused there."""
        for position, node in enumerate(self.origin.nodes):
            if position in self.owner or position not in self.origin.live:
                continue
            if node.op_type in self.products or node.op_type in _SHAPES:
                continue
            makers = [self.owner.get(maker) for maker in self.origin.makers(position, set())]
            if known := [number for number in makers if number is not None]:
                self.owner[position] = max(known)
