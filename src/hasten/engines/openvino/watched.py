"""Outputs that a graph of OpenVINO gets beside its own, to tell of requests for which the plugin may answer wrong.

The plugin passes over most operations that get an empty tensor, and over loops without steps, and what they answered
before stays. Where a request's shapes decide that, the first request of these shapes tells. Where its numbers do, such as
those that NonZero finds, every request has to tell. So a graph gets further outputs for what its numbers decide, and only
such a graph. So does one that calculates the places at which it looks numbers up, since the plugin reads zeros beyond a
tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from hasten.core.records import source_digest
from hasten.core.telemetry import import_quietly
from hasten.engines.openvino.lookups import rows_of, uncertain
from hasten.engines.openvino.risks import may_empty, names_sizes

MARK = "hasten shows: "
"""Begin of the names of outputs that a graph gets here; words for the operation follow."""


class Seen(NamedTuple):
    """Output of a compiled graph that tells of a request.

    Attributes:
        words: Words for the operation that it tells of, such as "Loop (node 'y')".
        tells_shape: Whether it is the shape of a tensor, which may be empty; else it is a truth, False where the answer
            may be wrong.
    """

    words: str
    tells_shape: bool


def watch(graph: Any) -> None:
    """Give a graph an output for each tensor that a request's numbers alone may make empty, each loop's steps, and places.

    A tensor that is made of an empty one needs none: the first empty one tells. Graphs inside operations aren't looked at.
    """
    _count_from_zero(graph)
    operations = graph.get_ordered_ops()
    shapes, loops = [*_emptied(operations)], [*filter(_may_have_no_steps, operations)]
    gathers = [*uncertain(operations)]
    if shapes or loops or gathers:
        # Imported here, since it takes long: few graphs need it.
        operators = import_quietly("openvino.opset13")
        shown = [_shape(operators, *one) for one in shapes]
        shown += [port for loop in loops for port in _steps(operators, loop)]
        shown += [_all_within(operators, gather) for gather in gathers]
        graph.add_results([operators.result(port) for port in shown])


def _count_from_zero(graph: Any) -> None:
    """Give each loop whose number of steps is calculated at least 0 of them: the plugin never ends one with -1 or fewer."""
    from hasten.engines.openvino.wholes import bodies_of  # which no later opening needs

    for operation in graph.get_ordered_ops():
        for body in bodies_of(operation):
            _count_from_zero(body)
        if operation.get_type_name() == "Loop" and not _is_constant(operation.input_value(0)):
            operators = import_quietly("openvino.opset13")
            count = operation.input_value(0)
            zero = operators.constant(np.zeros((), count.get_element_type().to_dtype()))
            counted = operators.maximum(count, zero).output(0)
            operation.input(0).replace_source_output(counted)


def rules() -> str:
    """Return digests of the code that says which outputs a graph gets, for the keys of graphs that are kept compiled."""
    return " ".join(str(source_digest(one)) for one in (watch, uncertain, may_empty))


def seen(compiled: Any) -> tuple[Seen, ...]:
    """Return what the last outputs of a compiled graph tell, which are those that `watch` added; mostly none."""
    told = []
    for port in compiled.outputs:
        words = next((name for name in port.names if name.startswith(MARK)), None)
        if words is not None:
            shape = port.get_element_type().get_type_name() == "i64"
            told.append(Seen(words.removeprefix(MARK).partition(": ")[2], shape))
    return tuple(told)


def _emptied(operations: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield operations that may make an empty tensor by a request's numbers, each with that result."""
    _, sized = by_numbers(operations)
    for operation in operations:
        if operation.get_name() in sized and may_empty(operation.get_type_name()):
            yield from ((operation, port) for port in operation.outputs() if _may_be_empty(port))


def _shape(operators: Any, operation: Any, port: Any) -> Any:
    """Return the shape of a tensor that an operation makes."""
    return _marked(operators.shape_of(port, output_type="i64"), operation)


def _may_have_no_steps(operation: Any) -> bool:
    """Whether an operation is a loop that joins what its steps give, and may have none."""
    if operation.get_type_name() != "Loop" or not _joins(operation):
        return False
    return not all(_is_constant(operation.input_value(place)) for place in (0, 1))


def _steps(operators: Any, loop: Any) -> Iterator[Any]:
    """Yield truths that a loop has steps."""
    count, first = loop.input_value(0), loop.input_value(1)
    if not _is_constant(count):
        zero = operators.constant(np.zeros((), count.get_element_type().to_dtype()))
        yield _marked(operators.greater(count, zero), loop)
    if not _is_constant(first):
        yield _marked(operators.convert(first, "boolean"), loop)


def _all_within(operators: Any, gather: Any) -> Any:
    """Return the truth that all places of a Gather are within its tensor."""
    place = gather.input_value(1)
    kind = place.get_element_type().to_dtype()
    if (rows := rows_of(gather)) is not None:
        most = operators.constant(np.array(rows, kind))
    else:
        axis = operators.constant(np.zeros((), np.int64))
        shape = operators.shape_of(gather.input_value(0), output_type="i64")
        most = operators.convert(operators.gather(shape, gather.input_value(2), axis), kind)
    beyond = operators.logical_or(
        operators.less(place, operators.negative(most)), operators.greater_equal(place, most)
    )
    flat = operators.reshape(beyond, operators.constant(np.array([-1])), special_zero=False)
    ones = operators.convert(flat, np.int32)
    count = operators.reduce_sum(ones, operators.constant(np.array([0])), keep_dims=False)
    for number, one in enumerate((beyond, flat, ones, count)):
        one.set_friendly_name(f"{MARK}{number} of {gather.get_name()}")
    return _marked(operators.equal(count, operators.constant(np.zeros((), np.int32))), gather)


def by_numbers(operations: Sequence[Any]) -> tuple[set[str], set[str]]:
    """Return the operations that follow from a request's numbers, and those whose sizes do, by name.

    Args:
        operations: Operations of a graph, in order.
    """
    numbers, sizes = set[str](), set[str]()
    for operation in operations:
        kind, name = operation.get_type_name(), operation.get_name()
        sources = [port.get_source_output().get_node().get_name() for port in operation.inputs()]
        if kind == "ShapeOf":
            if sources[0] in sizes:
                numbers.add(name)
            continue
        sized = not sizes.isdisjoint(sources)
        if kind == "Parameter" or sized or not numbers.isdisjoint(sources):
            numbers.add(name)
        places = [at for at, source in enumerate(sources) if source in numbers]
        if (sized or names_sizes(kind, places)) and not _is_settled(operation):
            sizes.add(name)
    return numbers, sizes


def _marked(operation: Any, of: Any) -> Any:
    """Return the result of an operation under a name that says what it tells of."""
    port = operation.output(0)
    words = f"{of.get_type_name()} (node {of.get_friendly_name()!r})"
    port.get_tensor().set_names({f"{MARK}{operation.get_name()}: {words}"})
    return port


def _joins(loop: Any) -> bool:
    """Whether a loop gives what its steps made together, which has no numbers without a step; else it gives its states."""
    return any(type(one).__name__.startswith("Concat") for one in loop.get_output_descriptions())


def _is_constant(port: Any) -> bool:
    return bool(port.get_node().get_type_name() == "Constant")


def _is_settled(operation: Any) -> bool:
    return all(port.get_partial_shape().is_static for port in operation.outputs())


def _may_be_empty(port: Any) -> bool:
    shape = port.get_partial_shape()
    return bool(shape.rank.is_dynamic or any(size.get_min_length() == 0 for size in shape))
