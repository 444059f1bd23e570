"""Graphs that OpenVINO's plugins don't compute as the model says: numbers of another type, places that nothing checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hasten.engines.openvino.wholes import bodies_of
from hasten.errors import NotCovered

REFUSES = "OpenVINO computes float64 in float32"
_CARRIERS = frozenset({"Parameter", "Constant", "Convert", "Result"})
"""Operations that calculate nothing."""
_LONG = frozenset({"i32", "i64", "u32", "u64"})
"""Whole numbers that float64 holds, and that a plugin rounds to float32 where it should convert them."""
_WRAPPING = frozenset({"i8", "u8", "i16", "u16", "u32", "u64"})
"""Whole numbers that a plugin computes in a wider or a signed type, so that nothing wraps."""
_LEAVING = frozenset(
    {
        *("Add", "Subtract", "Multiply", "Divide", "Negative", "Power", "SquaredDifference"),
        *("MatMul", "ReduceSum", "ReduceProd", "CumSum"),
    }
)
"""Operations whose result may leave the type of whole numbers, or is rounded where a quotient is cut."""
_CUT_32 = frozenset({"i64", "u64", "u32"})
"""Whole numbers that a plugin holds in 32 bits with a sign."""
_READING = frozenset(
    {
        *("Add", "Subtract", "Multiply", "Divide", "Mod", "FloorMod", "Minimum", "Maximum"),
        *("Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual"),
        *("Select", "Gather", "GatherND", "GatherElements", "Concat"),
    }
)
"""Operations that compute with a constant's numbers; others, such as Slice, take a huge one for an end."""
_CARRYING = frozenset(
    {
        *("Parameter", "Convert", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Concat"),
        *("Broadcast", "Tile", "Slice", "StridedSlice", "Split", "VariadicSplit", "Gather"),
        *("Select", "Maximum", "Abs", "Negative", "Add", "Subtract", "Multiply", "Divide"),
        *("ReduceSum", "CumSum", "Round", "Floor", "Ceiling"),
    }
)
"""Operations that make large numbers of large ones. TopK, NonZero, Clamp and Mod, for example, bound what they make."""
_LENGTHS = {"GRUSequence": 2, "LSTMSequence": 3, "RNNSequence": 2}
"""Operations on sequences, and their inputs with the lengths of these."""
_OVER_WINDOWS = frozenset({"AvgPool", "ConvolutionBackpropData", "GroupConvolutionBackpropData"})
_SIZES = frozenset({"ShapeOf"})
"""Operations whose answers don't depend on the values of their input."""


def check_doubles(graph: Any) -> None:
    """Refuse a graph that calculates with values of a request in float64.

    What follows from sizes alone, such as the root of a head's width, may be float64.

    Raises:
        NotCovered: it does so; the message names the operation.
    """
    for operation in _on_values(graph):
        kind, taken, made = operation.get_type_name(), _taken(operation), _made(operation)
        rounds = kind not in _CARRIERS or (taken & _LONG and "f64" in made)
        if "f64" in taken | made and rounds:
            raise NotCovered(f"{REFUSES}, as in {_named(operation)}")


def check_whole_numbers(graph: Any) -> None:
    """Refuse a graph whose whole numbers, calculated from a request's values, may be others than the model's.

    Numbers of 8 and 16 bits and those without a sign should wrap where they leave their type, and constants may need
    more than the 32 bits that a plugin has.

    Raises:
        NotCovered: it has such numbers; the message names the operation.
    """
    for operation in _on_values(graph):
        kind, made = operation.get_type_name(), _made(operation)
        if kind in _LEAVING and (types := made & _WRAPPING):
            raise NotCovered(
                f"OpenVINO computes whole numbers of {_in_words(min(types))} in another type, as in {_named(operation)}: "
                "results that leave the type differ"
            )
        if kind in _READING and (number := _beyond_32_bits(operation)) is not None:
            raise NotCovered(
                f"OpenVINO computes whole numbers with 32 bits, and {_named(operation)} reads the constant {number}"
            )


def check_places(graph: Any) -> None:
    """Refuse a graph that reads from places that a request names, where a plugin doesn't check them.

    GatherND would read whatever is in memory beyond the tensor, or end the process. Range ends the process with a step of
    0, and gives numbers instead of none with steps away from its end. A loop without steps gives the last request's
    numbers. Sequences with lengths of their own are computed whole where their number of steps is open.

    Raises:
        NotCovered: it has such an operation; the message names it.
    """
    named, known = set[str](), set[str]()
    for operation in _on_values(graph):
        known.add(operation.get_name())
        sources = [port.get_source_output().get_node().get_name() for port in operation.inputs()]
        kind = operation.get_type_name()
        if kind == "GatherND" and sources[1] in named:
            raise NotCovered(
                f"OpenVINO doesn't check the places that a request names, as {_named(operation)} reads them: it would "
                "read beyond the tensor"
            )
        if kind == "Range" and named.intersection(sources):
            raise NotCovered(
                f"OpenVINO doesn't check the ends and the step that a request names, as {_named(operation)} has them"
            )
        if kind == "Loop" and known.intersection(sources[:2]):
            raise NotCovered(
                f"OpenVINO gives the last request's numbers where a loop has no steps, as {_named(operation)} may"
            )
        if kind in _LENGTHS and (
            sources[_LENGTHS[kind]] in known or _cut_short(operation, _LENGTHS[kind])
        ):
            raise NotCovered(
                f"OpenVINO doesn't end sequences where their lengths say, as those of {_named(operation)}"
            )
        if kind == "Parameter" or (kind in _CARRYING and named.intersection(sources)):
            named.add(operation.get_name())


def check_windows(graph: Any) -> None:
    """Refuse a converted graph whose windows lie elsewhere than the model says at some sizes of a request.

    The converter gives a transposed convolution no padding where it can't follow that from a stated size of its output, as
    with open sizes. A plugin counts padding in a mean also where a window that is rounded up goes beyond it.

    Raises:
        NotCovered: it has such an operation; the message names it.
    """
    for operation in graph.get_ordered_ops():
        kind, said = operation.get_type_name(), operation.get_attributes()
        if kind not in _OVER_WINDOWS or not _has_open_sides(operation):
            continue
        if kind != "AvgPool" and len(operation.inputs()) == 3 and said["auto_pad"] == "explicit":
            raise NotCovered(
                f"OpenVINO doesn't pad {_named(operation)} as its stated output size asks where sizes of its input are open"
            )
        rounded = kind == "AvgPool" and said["rounding_type"] != "floor" and not said["exclude-pad"]
        if rounded and any((*said["pads_begin"], *said["pads_end"])):
            raise NotCovered(
                f"OpenVINO counts padding in {_named(operation)} where windows that are rounded up go beyond it, which "
                "depends on sizes that are open"
            )


def _has_open_sides(operation: Any) -> bool:
    """Whether an operation's first input has open axes beside samples and channels."""
    shape = operation.input(0).get_partial_shape()
    return bool(shape.rank.is_dynamic or any(size.is_dynamic for size in [*shape][2:]))


def _cut_short(operation: Any, lengths: int) -> bool:
    """Whether an operation has constant lengths of sequences that may be others than the number of steps."""
    source, steps = (
        operation.input_value(lengths).get_node(),
        operation.input(0).get_partial_shape()[1],
    )
    if source.get_type_name() != "Constant":
        return False
    return bool(steps.is_dynamic or (source.data != steps.get_length()).any())


def _on_values(graph: Any) -> Iterator[Any]:
    """Yield the operations that depend on a request's values, also those of graphs inside others."""
    values = set[str]()
    for operation in graph.get_ordered_ops():
        kind = operation.get_type_name()
        # By their own names, since those for people may be the same for several operations.
        sources = {port.get_source_output().get_node().get_name() for port in operation.inputs()}
        if kind != "Parameter" and (kind in _SIZES or not sources & values):
            continue
        values.add(operation.get_name())
        yield operation
        for body in bodies_of(operation):
            yield from _on_values(body)


def _taken(operation: Any) -> set[str]:
    return {port.get_element_type().get_type_name() for port in operation.inputs()}


def _made(operation: Any) -> set[str]:
    return {port.get_element_type().get_type_name() for port in operation.outputs()}


def _named(operation: Any) -> str:
    return f"{operation.get_type_name()} (node {operation.get_friendly_name()!r})"


def _in_words(kind: str) -> str:
    """Return the name of an element type of whole numbers, as numpy has it."""
    return f"{'uint' if kind.startswith('u') else 'int'}{kind[1:]}"


def _beyond_32_bits(operation: Any) -> int | None:
    """Return a number of a constant that an operation reads, if 32 bits with a sign can't hold it."""
    limits = np.iinfo(np.int32)
    for port in operation.inputs():
        source = port.get_source_output().get_node()
        if (
            source.get_type_name() != "Constant"
            or port.get_element_type().get_type_name() not in _CUT_32
        ):
            continue
        numbers = source.data
        for number in (numbers.min(initial=0), numbers.max(initial=0)):
            if not limits.min <= int(number) <= limits.max:
                return int(number)
    return None
