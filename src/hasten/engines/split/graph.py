"""Split of an ONNX graph into the part that compiled C covers and the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import TensorSpec
from hasten.engines.compiled.lowering import LOWERINGS, Coverage
from hasten.engines.compiled.spelled_out import without_weights
from hasten.engines.onnxruntime.layers import PRODUCTS
from hasten.errors import NotCovered

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Part:
    """Nodes of a graph that one runtime executes.

    Attributes:
        nodes: Their numbers.
        inputs: Tensors that they read from the request or from the other part.
        constants: Known tensors that they read.
        outputs: Tensors that they give to the caller or to the other part.
    """

    nodes: frozenset[int]
    inputs: tuple[str, ...]
    constants: frozenset[str]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class SplitGraph:
    """Two parts of a graph.

    Attributes:
        compiled: Part that compiled C covers.
        rest: The other part.
        compiled_first: Whether the rest reads what compiled C gives, and not the other way round.
    """

    compiled: Part
    rest: Part
    compiled_first: bool

    @property
    def first(self) -> Part:
        """Part that is executed first."""
        return self.compiled if self.compiled_first else self.rest


@dataclass(frozen=True)
class Splitter:
    """Graph that is to be split.

    Attributes:
        proto: Model as `lowering.read_model` returns it.
        coverage: Nodes that compiled C doesn't cover, and what is known of tensors.
    """

    proto: onnx.ModelProto
    coverage: Coverage

    def split(self) -> SplitGraph:
        """Return the split that leaves most products to compiled C.

        Either the rest is all that depends on a node that isn't covered, or all that such a node depends on.
        Arrays are handed over without a copy, so the number of bytes that cross doesn't matter.

        Raises:
            NotCovered: no more than half of the products could be compiled.
        """
        below, above = self._closed(self._after), self._closed(self._before)
        splits = [self._at(below, compiled_first=True), self._at(above, compiled_first=False)]
        best = max(splits, key=lambda one: self._rank(one.compiled))
        most, whole = self._rank(best.compiled)[0], self._products(range(len(self._reads)))
        if not best.compiled.nodes or not best.rest.outputs or (whole and 2 * most <= whole):
            why = self.coverage.refused[min(self.coverage.refused)]
            raise NotCovered(
                f"compiled C could have {most} of the model's {whole} products, too few to split it; {why}"
            )
        return best

    def _rank(self, part: Part) -> tuple[int, int]:
        return self._products(part.nodes), len(part.nodes)

    def model_of(self, part: Part, specs: Mapping[str, TensorSpec]) -> onnx.ModelProto:
        """Return a part as a model of its own.

        Args:
            part: Part of the split.
            specs: Specs of tensors that cross, as far as they are known.
        """
        import onnx

        graph = self.proto.graph
        given = {value.name: value for value in graph.input}
        # A runtime checks what it reads against a declaration, which may be wrong for the model's outputs.
        declared = given | {value.name: value for value in graph.output}
        inputs, outputs = (
            [known[name] if name in known else _value(name, specs.get(name)) for name in names]
            for names, known in ((part.inputs, given), (part.outputs, declared))
        )
        held = [one for one in graph.initializer if one.name in part.constants]
        for name in sorted(part.constants - self._initializers):
            held.append(onnx.numpy_helper.from_array(self.coverage.constants[name], name))
        nodes = [graph.node[number] for number in sorted(part.nodes)]
        made = onnx.helper.make_graph(nodes, "part", inputs, outputs, held)
        return onnx.helper.make_model(
            made, opset_imports=self.proto.opset_import, ir_version=self.proto.ir_version
        )

    def _at(self, left: set[int], *, compiled_first: bool) -> SplitGraph:
        """Split it between some nodes, which are left to the other runtime, and all others."""
        mine, theirs = list[str](), list[str]()
        for value in self.proto.graph.output:
            number = self._made.get(value.name)
            given = number in left and value.name not in self.coverage.constants
            (theirs if given else mine).append(value.name)
        others = set(range(len(self.proto.graph.node))) - left
        if compiled_first:
            rest = self._part(theirs, left)
            crossing = [name for name in rest.inputs if name in self._made and name not in mine]
            return SplitGraph(self._part([*mine, *crossing], others), rest, compiled_first)
        compiled = self._part(mine, others)
        crossing = [name for name in compiled.inputs if name in self._made and name not in theirs]
        return SplitGraph(compiled, self._part([*theirs, *crossing], left), compiled_first)

    def _part(self, outputs: Sequence[str], inside: set[int]) -> Part:
        """Return those of some nodes that outputs depend on."""
        nodes, inputs, constants = set[int](), dict[str, None](), set[str]()
        waiting, seen = [*outputs], set[str]()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            number = self._made.get(name)
            if name in self._initializers:
                constants.add(name)
            elif number is not None and (number in inside or self._repeated(name)):
                nodes.add(number)
                waiting += self._reads[number]
            elif name in self.coverage.constants:
                constants.add(name)
            elif number is not None or name in self._inputs:
                inputs[name] = None
        return Part(frozenset(nodes), tuple(sorted(inputs)), frozenset(constants), tuple(outputs))

    def _repeated(self, name: str) -> bool:
        """Whether both parts compute a tensor themselves: from weights alone, or from the number of rows."""
        known = name in self.coverage.constants and self._made[name] in self._fixed
        return known or name in self.coverage.by_rows

    def _closed(self, after: Sequence[set[int]]) -> set[int]:
        """Return the nodes that aren't covered, and all that follow them in one direction."""
        found, waiting = set[int](), [*self.coverage.refused]
        while waiting:
            number = waiting.pop()
            if number not in found:
                found.add(number)
                waiting += after[number]
        return found

    def _products(self, nodes: Iterable[int]) -> int:
        graph = self.proto.graph
        return sum(1 for number in nodes if graph.node[number].op_type in PRODUCTS)

    @cached_property
    def _made(self) -> dict[str, int]:
        nodes = enumerate(self.proto.graph.node)
        return {name: number for number, node in nodes for name in node.output if name}

    @cached_property
    def _reads(self) -> list[set[str]]:
        return [{*_reads(node)} for node in self.proto.graph.node]

    @cached_property
    def _before(self) -> list[set[int]]:
        """Nodes that give what each node reads."""
        return [{self._made[name] for name in names if name in self._made} for names in self._reads]

    @cached_property
    def _after(self) -> list[set[int]]:
        """Nodes that read what each node gives."""
        found: list[set[int]] = [set() for _ in self._before]
        for number, before in enumerate(self._before):
            for one in before:
                found[one].add(number)
        return found

    @cached_property
    def _fixed(self) -> set[int]:
        """Nodes that no input of the graph changes."""
        found = set[int]()
        for number, before in enumerate(self._before):
            if before <= found and not self._reads[number] & (self._inputs - self._initializers):
                found.add(number)
        return found

    @cached_property
    def _initializers(self) -> set[str]:
        return {tensor.name for tensor in self.proto.graph.initializer}

    @cached_property
    def _inputs(self) -> set[str]:
        return {value.name for value in self.proto.graph.input}


def check_products(proto: onnx.ModelProto) -> None:
    """Refuse a model of whose products compiled C doesn't know most, before anything is computed.

    Raises:
        NotCovered: at most half of the products are of operators that it covers.
    """
    products = [node.op_type for node in proto.graph.node if node.op_type in PRODUCTS]
    unknown = [operator for operator in products if operator not in LOWERINGS]
    if unknown and 2 * len(unknown) >= len(products):
        raise NotCovered(
            f"compiled C could have at most {len(products) - len(unknown)} of the model's {len(products)} products, "
            f"too few to split it; it doesn't take {unknown[0]}"
        )


def inferred(proto: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> dict[str, TensorSpec]:
    """Return the tensors of a graph whose types and shapes follow from its inputs'.

    Args:
        proto: Model.
        inputs: Specs of its inputs, in which open dimensions may have names.
    """
    import onnx

    weights = {tensor.name for tensor in proto.graph.initializer}
    whole = without_weights(proto)
    graph, shapes = whole.graph, {spec.name: spec.shape for spec in inputs}
    for value in graph.input:
        if value.name in shapes:
            spec = TensorSpec(value.name, _dtype(value), shapes[value.name])
            value.CopyFrom(_value(value.name, spec))
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    stated = [value for value in graph.value_info if value.name in weights]
    del graph.value_info[:]
    graph.value_info.extend(stated)
    try:
        graph = onnx.shape_inference.infer_shapes(whole, data_prop=True).graph
    except Exception:  # its C++ part raises several kinds; then nothing is known
        return {}
    values = (one for one in (*graph.value_info, *graph.output) if _known(one))
    return {
        one.name: TensorSpec(
            one.name, _dtype(one), tuple(map(_size, one.type.tensor_type.shape.dim))
        )
        for one in values
    }


def _known(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return value.type.HasField("tensor_type") and bool(kind.elem_type) and kind.HasField("shape")


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    return int(dim.dim_value) if dim.HasField("dim_value") else str(dim.dim_param or "?")


def _dtype(value: onnx.ValueInfoProto) -> str:
    import onnx

    dtype: np.dtype[np.generic] = onnx.helper.tensor_dtype_to_np_dtype(
        value.type.tensor_type.elem_type
    )
    return str(dtype)


def _value(name: str, spec: TensorSpec | None) -> onnx.ValueInfoProto:
    import onnx

    if spec is None:
        return onnx.ValueInfoProto(name=name)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    shape = [None if size == "?" else size for size in spec.shape]
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, from inside its graphs too."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (value.name for value in graph.output)
            for one in graph.node:
                yield from _reads(one)
