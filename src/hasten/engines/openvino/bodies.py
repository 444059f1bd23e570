"""Graphs inside operations of OpenVINO, as the branches of an If: nothing tells of what its plugin does wrong in there.

In a graph of its own, a session sees tensors that are empty. Inside an If or a Loop it doesn't, so graphs that may have such there are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hasten.core.telemetry import import_quietly
from hasten.engines.openvino.lookups import constant, origin_of, rows_of, within
from hasten.engines.openvino.risks import EMPTY_OF_EMPTY, WINDOWS, may_empty
from hasten.engines.openvino.wholes import bodies_of
from hasten.errors import NotCovered

_TAKING = frozenset(
    {
        *(
            "Broadcast",
            "Concat",
            "MatMul",
            "Pad",
            "ReduceL1",
            "ReduceL2",
            "ReduceProd",
            "ReduceSum",
        ),
        *(
            "Reshape",
            "Result",
            "ScatterNDUpdate",
            "ScatterUpdate",
            "ShapeOf",
            "Squeeze",
            "Unsqueeze",
        ),
    }
)
"""Operations that make what they should of an empty tensor."""
_WITH_PADS = frozenset({"AvgPool", "Convolution", "GroupConvolution", "MaxPool"})
_FAR = 2**31 - 1


def check_bodies(graph: Any) -> None:
    """Refuse a graph that may have an empty tensor inside an If or a loop, or places beyond a tensor there.

    The plugin passes over most operations that get an empty tensor, and reads zeros beyond a tensor.

    Raises:
        NotCovered: it may; the message names the operation.
    """
    for operation in graph.get_ordered_ops():
        for body in bodies_of(operation):
            body = _fed(operation, body)
            _check_empty(operation, body)
            _check_places(operation, body)
            check_bodies(body)


def _fed(owner: Any, body: Any) -> Any:
    """Return a copy of a body whose sizes follow from parameters that aren't empty, but for states that begin so.

    A session sees where an If or a loop itself gets an empty tensor.
    """
    ov = import_quietly("openvino")
    fed, empty = body.clone(), {*_begun_empty(owner)}
    for place, parameter in enumerate(fed.get_parameters()):
        shape = parameter.get_partial_shape()
        if place not in empty and shape.rank.is_static:
            sizes = [ov.Dimension(max(1, s.get_min_length()), s.get_max_length()) for s in shape]
            parameter.set_partial_shape(ov.PartialShape(sizes))
    try:
        fed.validate_nodes_and_infer_types()
    except RuntimeError:  # a size that can't be: the body is judged as it stands
        return body
    return fed


def _check_empty(owner: Any, body: Any) -> None:
    repeats = owner.get_type_name() != "If"
    empty = {body.get_parameters()[place].get_name() for place in _begun_empty(owner)}
    for operation in body.get_ordered_ops():
        kind, name = operation.get_type_name(), operation.get_name()
        sources = [port.get_source_output().get_node().get_name() for port in operation.inputs()]
        taken = [at for at, source in enumerate(sources) if source in empty]
        wrong = bool(taken) and kind not in _TAKING and not _stays_empty(kind, taken)
        if wrong or (taken and kind == "Result" and repeats) or _without_steps(operation):
            raise NotCovered(
                "OpenVINO may answer with the last request's numbers where an operation gets an empty tensor inside "
                f"{_named(owner)}, as {_named(operation)} may"
            )
        made = may_empty(kind) and kind != "Parameter" and not _never_empties(operation)
        if (made and kind in WINDOWS) or (
            (made or taken) and any(map(_may_be_empty, operation.outputs()))
        ):
            empty.add(name)


def _check_places(owner: Any, body: Any) -> None:
    for operation in body.get_ordered_ops():
        if operation.get_type_name() == "Gather" and not _within(owner, body, operation):
            raise NotCovered(
                f"OpenVINO reads zeros beyond a tensor, as {_named(operation)} inside {_named(owner)} may for some requests"
            )


def _begun_empty(owner: Any) -> Iterator[int]:
    """Yield the places of a loop's states that begin as empty constants, among the parameters of its body."""
    if owner.get_type_name() == "If":
        return
    for one in owner.get_input_descriptions():
        first = constant(owner.input_value(one.input_index))
        if type(one).__name__.startswith("Merged") and first is not None and not first.size:
            yield one.body_parameter_index


def _without_steps(operation: Any) -> bool:
    """Whether a loop may have no steps, and then joins nothing."""
    if operation.get_type_name() != "Loop":
        return False
    fixed = all(
        operation.input_value(place).get_node().get_type_name() == "Constant" for place in (0, 1)
    )
    joins = (type(one).__name__.startswith("Concat") for one in operation.get_output_descriptions())
    return not fixed and any(joins)


def _stays_empty(kind: str, taken: list[int]) -> bool:
    """Whether an operation makes an empty tensor, if the inputs at some places are empty."""
    return taken != [0] if kind == "Gather" else kind.lower() in EMPTY_OF_EMPTY


def _never_empties(operation: Any) -> bool:
    """Whether an operation makes no empty tensor of one that isn't, whatever a request has."""
    kind = operation.get_type_name()
    constants = [
        constant(port) for port in map(operation.input_value, range(len(operation.inputs())))
    ]
    if kind == "Split":
        return True
    if kind in WINDOWS:
        return _covers(operation)
    if kind == "Slice":
        start, stop, step = constants[1:4]
        if start is None or stop is None or step is None:
            return False
        kept = ((start == 0) & (stop > 0)) | ((start < 0) & (stop >= _FAR))
        return bool((kept & (step > 0)).all())
    if kind == "Pad":
        return all(one is not None and (one >= 0).all() for one in constants[1:3])
    if kind in ("Broadcast", "OneHot", "Tile", "TopK", "VariadicSplit"):
        sizes = constants[2 if kind == "VariadicSplit" else 1]
        return sizes is not None and bool((sizes > 0).all())
    return False


def _covers(operation: Any) -> bool:
    """Whether a window fits into its padded input at all sizes that this may have."""
    shape, said = operation.input(0).get_partial_shape(), operation.get_attributes()
    sizes = [] if shape.rank.is_dynamic else [*shape][2:]
    if sizes and all(size.is_static for size in sizes):
        return True
    if not sizes or operation.get_type_name() not in _WITH_PADS:
        return False
    kernel = said.get("kernel")
    if kernel is None:
        kernel = [
            s.get_min_length() for s in [*operation.input(1).get_partial_shape()][-len(sizes) :]
        ]
    pads = [a + b for a, b in zip(said["pads_begin"], said["pads_end"], strict=True)]
    apart = said.get("dilations") or [1] * len(sizes)
    return said.get("auto_pad", "explicit").lower().startswith("same") or all(
        size.get_min_length() + pad > step * (width - 1)
        for size, pad, step, width in zip(sizes, pads, apart, kernel, strict=True)
    )


def _within(owner: Any, body: Any, gather: Any) -> bool:
    """Whether a Gather's places are within its tensor for every request, as far as can be told."""
    port = origin_of(gather.input_value(1))
    if owner.get_type_name() == "Loop" and port.get_node().get_type_name() == "Parameter":
        counter, steps, rows = (
            owner.get_special_body_ports()[0],
            constant(owner.input_value(0)),
            rows_of(gather),
        )
        names = [one.get_name() for one in body.get_parameters()]
        if counter >= 0 and names[counter] == port.get_node().get_name():
            if rows is None:
                return steps is None  # as where it follows from the tensor's own size
            return steps is not None and 0 <= int(steps.item()) <= rows
    return within(gather, port)


def _may_be_empty(port: Any) -> bool:
    shape = port.get_partial_shape()
    return bool(shape.rank.is_dynamic or any(size.get_min_length() == 0 for size in shape))


def _named(operation: Any) -> str:
    return f"{operation.get_type_name()} (node {operation.get_friendly_name()!r})"
