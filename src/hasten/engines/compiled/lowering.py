"""Making of a plan from an ONNX file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hasten.core.tensors import Array, TensorSpec
from hasten.engines.compiled.graph import Graph, Node, as_array
from hasten.engines.compiled.nodes import (
    choices,
    classical,
    convolutions,
    elementwise,
    movement,
    products,
    recurrent,
    reductions,
    trees,
)
from hasten.engines.compiled.nodes.int8 import lower as bytes_of
from hasten.engines.compiled.nodes.int8.qoperators import spelled
from hasten.engines.compiled.plan import Plan
from hasten.engines.compiled.spelled_out import spelled_out
from hasten.engines.compiled.tensors import MOST_BYTES, Tensor
from hasten.engines.compiled.values import TooMuch, Value
from hasten.engines.failures import failed
from hasten.engines.layers import node_name
from hasten.engines.newer import newer_attribute
from hasten.errors import NotCovered, visible

if TYPE_CHECKING:
    import onnx

ConstantInputs: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]
"""Inputs with their only numbers, in C order."""
LOWERINGS: Mapping[str, Callable[[Node], None]] = {
    **choices.LOWERINGS,
    **classical.LOWERINGS,
    **convolutions.LOWERINGS,
    **elementwise.LOWERINGS,
    **movement.LOWERINGS,
    **products.LOWERINGS,
    **recurrent.LOWERINGS,
    **reductions.LOWERINGS,
    **trees.LOWERINGS,
}
"""Lowering of each operator of ONNX by its name."""
_QUANTIZING = frozenset({"QuantizeLinear"})
"""Operators after which bytes are calculated with; those of other forms are spelled by them here."""
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_NEWEST = 28
"""Newest operator set whose operators are known here, with all their attributes."""
_MOST_FOLDED = 1 << 24
"""Largest number of elements of a constant that is computed here."""


def lower(
    path: Path,
    request: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    most_work: int = 10**12,
    constant_inputs: ConstantInputs = (),
) -> tuple[Plan, bytes]:
    """Make the plan of an ONNX file for requests of settled shapes.

    Args:
        path: Path of the file.
        request: Inputs of one request, with every size settled.
        outputs: Outputs of the model.
        most_work: Largest number of calculations with floats for one row, unless there are as many with
            bytes.
        constant_inputs: Inputs that the plan may take for constants, with their numbers in C order. It
            does so only with those without which an operator isn't covered.

    Returns:
        The plan, and its constants.

    Raises:
        NotCovered: an operator isn't covered (the message names it and its node), or there is more to
            calculate.
    """
    proto = read_model(path)
    try:
        return lower_graph(proto, request, outputs, most_work, constant_inputs)
    except NotCovered:
        simpler = spelled_out(proto, LOWERINGS)
        if simpler is None:
            raise
        with suppress(NotCovered):
            return lower_graph(simpler, request, outputs, most_work, constant_inputs)
        raise


def lower_graph(
    proto: onnx.ModelProto,
    request: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    most_work: int = 10**12,
    constant_inputs: ConstantInputs = (),
) -> tuple[Plan, bytes]:
    """Make the plan of an ONNX graph, as `lower` does.

    Raises:
        NotCovered: an operator isn't covered (the message names it and its node), or there is more to
            calculate.
    """
    given = {spec.name for spec in request}
    left = {name: numbers for name, numbers in constant_inputs if name in given}
    try:
        return _lowered(proto, request, outputs, most_work, {})
    except NotCovered:
        if not left:
            raise
    made = _lowered(proto, request, outputs, most_work, left)
    for name in list(left) if len(left) > 1 else ():
        fewer = {other: numbers for other, numbers in left.items() if other != name}
        with suppress(NotCovered):
            made, left = _lowered(proto, request, outputs, most_work, fewer), fewer
    return made


def _lowered(
    proto: onnx.ModelProto,
    request: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    most_work: int,
    constant_inputs: Mapping[str, tuple[int, ...]],
) -> tuple[Plan, bytes]:
    """Make the plan of an ONNX graph with some inputs as constants."""
    graph, given, known = _begun(proto, request, most_work, constant_inputs)
    _lower_all(graph, proto.graph, _opsets(proto))
    plan = graph.plan(given, [spec.name for spec in outputs])
    plan = replace(plan, constant_inputs=known)
    return _packed(plan, bytes(graph.weights.content))


@dataclass(frozen=True)
class Coverage:
    """Parts of a graph that can be lowered.

    Attributes:
        refused: Reason for each node of the main graph that isn't covered, by its number.
        constants: Numbers of tensors that are the same for each request of the settled shapes.
        by_rows: Names of further tensors that are known, if the number of rows is.
    """

    refused: Mapping[int, str]
    constants: Mapping[str, Array]
    by_rows: frozenset[str]


def coverage(
    proto: onnx.ModelProto,
    request: tuple[TensorSpec, ...],
    shapes: Mapping[str, TensorSpec],
    most_work: int = 10**12,
    constant_inputs: ConstantInputs = (),
) -> Coverage:
    """Find the nodes of an ONNX graph that can't be lowered.

    A node that reads what such a node gives counts as covered as if that were an input, where its shape is known.
    Else it is refused too.

    Args:
        proto: Model as `read_model` returns it.
        request: Inputs of one request, with every size settled.
        shapes: Specs of tensors with settled sizes, as far as they are known.
        most_work: Largest number of calculations with floats for one row of a model that isn't quantized.
        constant_inputs: Inputs that may be taken for constants, with their numbers in C order.

    Raises:
        NotCovered: there is more to calculate.
    """
    given = {spec.name for spec in request}
    constants = {name: numbers for name, numbers in constant_inputs if name in given}
    graph, _, _ = _begun(proto, request, most_work, constants)
    _hold(graph, proto.graph)
    refused = {}
    for number, one in enumerate(proto.graph.node):
        try:
            _lower_node(graph, one, _opsets(proto))
        except TooMuch:
            raise
        except NotCovered as error:
            refused[number] = str(error)
            for spec in (shapes[name] for name in one.output if name in shapes):
                with suppress(NotCovered):  # of text, or empty
                    batch = 0 if spec.shape[:1] == (1,) else None
                    graph.values[spec.name] = graph.new(spec.dtype, spec.sizes, batch)
    made = {name for one in proto.graph.node for name in one.output}
    known = {name: value for name, value in graph.values.items() if name in made}
    return Coverage(
        refused,
        {n: v.constant for n, v in known.items() if v.constant is not None and not v.counts_rows},
        frozenset(n for n, v in known.items() if v.constant is not None and v.counts_rows),
    )


def _begun(
    proto: onnx.ModelProto,
    request: tuple[TensorSpec, ...],
    most_work: int,
    constant_inputs: Mapping[str, tuple[int, ...]],
) -> tuple[Graph, list[str], dict[str, tuple[int, ...]]]:
    """Return a plan with nothing but inputs, their tensors, and those that are constant."""
    graph = Graph(
        most_work=most_work,
        quantized=any(node.op_type in _QUANTIZING for node in proto.graph.node),
        lowerings=LOWERINGS,
        between=_between(proto.graph),
    )
    given, known = [], {}
    for spec in request:
        batch = 0 if spec.shape and spec.shape[0] == 1 else None
        graph.by_row = graph.by_row and batch == 0
        value = graph.new(spec.dtype, spec.sizes, batch)
        given.append(value.tensor)
        if spec.name in constant_inputs:
            numbers = known[value.tensor] = constant_inputs[spec.name]
            array = np.array(numbers, spec.dtype).reshape(spec.sizes)
            value = Value("", spec.dtype, spec.sizes, None, array)
            graph.by_row = False
        graph.values[spec.name] = value
    return graph, given, known


def _opsets(proto: onnx.ModelProto) -> dict[str, int]:
    return {one.domain: one.version for one in proto.opset_import}


def _between(proto: onnx.GraphProto) -> frozenset[str]:
    """Return the names of bytes that are read only by the DequantizeLinear of their QuantizeLinear."""
    forms = {
        node.output[0]: tuple(node.input[1:3])
        for node in proto.node
        if node.op_type == "QuantizeLinear"
    }
    seen = {output.name for output in proto.output}
    for node in proto.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            return frozenset()  # a branch may read anything
        back = node.op_type == "DequantizeLinear"
        for place, name in enumerate(node.input):
            if not (back and place == 0 and forms.get(name) == tuple(node.input[1:3])):
                seen.add(name)
    return frozenset(forms) - seen


def _lower_all(graph: Graph, proto: onnx.GraphProto, opsets: Mapping[str, int]) -> None:
    """Lower the nodes of a graph, or of a branch that is taken."""
    _hold(graph, proto)
    for one in proto.node:
        _lower_node(graph, one, opsets)


def _hold(graph: Graph, proto: onnx.GraphProto) -> None:
    """Take over the constants of a graph."""
    for tensor in proto.initializer:
        if tensor.name not in graph.values:
            array = as_array(tensor)
            graph.values[tensor.name] = Value("", str(array.dtype), array.shape, None, array)


def _lower_node(graph: Graph, one: onnx.NodeProto, opsets: Mapping[str, int]) -> None:
    """Lower a node, or the branch that it takes."""
    node = Node(graph, one, _attributes(one), opsets.get(one.domain, 0))
    with _refusing(node):
        if one.op_type == "If" and one.domain in ("", "ai.onnx"):
            branch = _branch(node)
            _lower_all(graph, branch, opsets)
            for place, output in enumerate(branch.output):
                node.give(graph.values[output.name], place)
        else:
            _lower(node)


def _branch(node: Node) -> onnx.GraphProto:
    """Return the branch that a condition, which must be known now, takes."""
    condition = node.constant(0, "condition")
    if node.input(0).counts_rows:
        node.mixes_rows()
    taken: onnx.GraphProto = node.attributes["then_branch" if condition.all() else "else_branch"]
    return taken


def read_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file, with its functions' nodes in the place of each call, and one form of quantization.

    Raises:
        CandidateError: it can't be read.
    """
    import onnx

    try:
        proto = onnx.load(path)
        if proto.functions:
            import onnx.inliner

            proto = onnx.inliner.inline_local_functions(proto)
        spelled(proto.graph)
        return proto
    except Exception as error:
        raise failed("the compiled engine can't read the model", error, path) from error


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    found: dict[str, Any] = {}
    for attribute in node.attribute:
        try:
            value = onnx.helper.get_attribute_value(attribute)
        except ValueError as error:
            what = f"the attribute {attribute.name!r:.80} of {visible(node.op_type[:80])}"
            raise failed(f"{what} can't be read", error) from error
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        elif isinstance(value, onnx.TensorProto):
            value = as_array(value)
        found[attribute.name] = value
    return found


@contextmanager
def _refusing(node: Node) -> Iterator[None]:
    """Refuse a node whose shapes or attributes aren't what its operator takes."""
    try:
        yield
    except (ArithmeticError, IndexError, KeyError, TypeError, ValueError) as error:
        said = visible(str(error))
        node.refuse(f"its shapes or attributes ({type(error).__name__}: {said[:80]})")


def _lower(node: Node) -> None:
    proto = node.proto
    node.graph.source = node_name(proto)
    if proto.op_type == "Constant" and _constant(node):
        return
    given = [node.graph.values.get(name) for name in proto.input if name]
    if any(value is None for value in given):
        node.refuse("an input isn't computed before it")
    known = [value for value in given if value is not None and value.constant is not None]
    if given and len(known) == len(given):
        if proto.op_type == "DequantizeLinear" and bytes_of.known(node):
            return
        if _folded(node, known):
            if proto.op_type == "Transpose":
                bytes_of.turned(node)
            return
    lowering = LOWERINGS.get(proto.op_type) if proto.domain in _DOMAINS else None
    if proto.domain in _DOMAINS and bytes_of.taken(node, lowering):
        return
    if lowering is None:
        node.refuse("it isn't covered")
    newer = newer_attribute(proto, _NEWEST) if node.opset > _NEWEST else None
    if newer is not None:
        node.refuse(f"its attribute {newer[:80]!r} came after operator set {_NEWEST}")
    lowering(node)


def _constant(node: Node) -> bool:
    for name, kind in (("value", None), ("value_float", "float32"), ("value_floats", "float32")):
        if name in node.attributes:
            array = np.asarray(node.attributes[name], kind)
            node.give(Value("", str(array.dtype), array.shape, None, array))
            return True
    for name in ("value_int", "value_ints"):
        if name in node.attributes:
            array = np.asarray(node.attributes[name], "int64")
            node.give(Value("", "int64", array.shape, None, array))
            return True
    return False


def _folded(node: Node, given: list[Value]) -> bool:
    """Compute a node of constants as the standard's evaluator does; return whether that was possible."""
    proto = node.proto
    named = {name: node.graph.values[name].constant for name in dict.fromkeys(proto.input) if name}
    if proto.op_type in ("Expand", "ConstantOfShape", "Tile", "Range"):
        sizes = [abs(int(one)) for one in np.ravel(np.asarray(given[-1].constant))]
        if math.prod(sizes) > _MOST_FOLDED:
            return False
    found = node.evaluated({name: array for name, array in named.items() if array is not None})
    if found is None:  # the lowering may know it
        return False
    counts = any(value.counts_rows for value in given)
    for name, array in zip([name for name in proto.output if name], found, strict=True):
        array = np.asarray(array, order="C")
        node.graph.values[name] = Value("", str(array.dtype), array.shape, None, array, counts)
    return True


def _packed(plan: Plan, weights: bytes) -> tuple[Plan, bytes]:
    """Return a plan and weights that hold only the constants that it still reads."""
    kept = bytearray()
    tensors = {}
    for name, tensor in plan.tensors.items():
        if tensor.offset is not None:
            kept.extend(bytes(-len(kept) % 64))
            content = weights[tensor.offset : tensor.offset + tensor.bytes]
            tensor = Tensor(tensor.dtype, tensor.size, len(kept))
            kept.extend(content)
        tensors[name] = tensor
    if len(kept) > MOST_BYTES:
        raise NotCovered(
            f"the compiled engine takes small models: this one has {len(kept) / 1e6:,.0f} MB of weights"
        )
    return replace(plan, tensors=tensors), bytes(kept)
