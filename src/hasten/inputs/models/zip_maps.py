"""Classifiers' scores that an ONNX file gives as one mapping for each row, as skl2onnx and CatBoost write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.words import amount

if TYPE_CHECKING:
    import onnx

_OPSET = 9
"""Operator set of the copies in a file that has operators of `ai.onnx.ml` alone, as CatBoost's have."""
_SHOWN = 12


def without_maps(proto: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Make tensors of the mappings that a graph gives, in place: a column for each class.

    Classes that are numbers come in their order, so that class 1 has column 1 in a file that lists 1 before 0. Classes
    that are words come in the file's order.

    Args:
        proto: Graph, read without its external data.

    Returns:
        Classes by name of the output that is a tensor now, of shape `(n, classes)`.
    """
    graph = proto.graph
    zips = {
        node.output[0]: node
        for node in graph.node
        if (node.domain, node.op_type) == ("ai.onnx.ml", "ZipMap")
    }
    if not zips or not zips.keys().isdisjoint(_read_by(graph)):
        return {}
    found = {}
    for value in graph.output:
        if value.name in zips:
            found[value.name] = _in_order(zips[value.name])
            _become_scores(value, len(found[value.name]))
    for node in zips.values():
        _become_tensor(node, graph)
    if not any(one.domain in ("", "ai.onnx") for one in proto.opset_import):
        proto.opset_import.add(domain="", version=_OPSET)
    return found


def note_of_maps(found: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return a note for each output that was made a tensor; see `without_maps`."""
    return [
        f"The file gives {name} as one mapping for each row (ZipMap). hasten makes a tensor of it with "
        f"{amount(len(classes), 'column')}, one for each class: {_in_words(classes)}."
        for name, classes in found.items()
    ]


def _read_by(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names of the values that nodes read, those in subgraphs too, or that a subgraph gives."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _read_by(inner)
                yield from (value.name for value in inner.output)


def _classes(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the keys of a node's mappings, as text."""
    for attribute in node.attribute:
        if attribute.name == "classlabels_strings":
            return tuple(word.decode(errors="replace") for word in attribute.strings)
        if attribute.name == "classlabels_int64s":
            return tuple(map(str, attribute.ints))
    return ()


def _places(node: onnx.NodeProto) -> list[int]:
    """Return the column of each class, in the order of a tensor's columns."""
    classes = _classes(node)
    numbers = any(one.name == "classlabels_int64s" for one in node.attribute)
    return sorted(range(len(classes)), key=lambda place: int(classes[place]) if numbers else place)


def _in_order(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return a node's classes in the order of a tensor's columns."""
    classes = _classes(node)
    return tuple(classes[place] for place in _places(node))


def _become_tensor(node: onnx.NodeProto, graph: onnx.GraphProto) -> None:
    """Turn a ZipMap into a copy of its scores, whose columns it puts in order."""
    from onnx import helper, numpy_helper

    places = _places(node)
    node.op_type, node.domain = "Identity", ""
    del node.attribute[:]
    if places != sorted(places):
        node.op_type = "Gather"
        name = f"{node.output[0]}/order"
        graph.initializer.append(numpy_helper.from_array(np.array(places, np.int64), name))
        node.input.append(name)
        node.attribute.append(helper.make_attribute("axis", 1))


def _become_scores(value: onnx.ValueInfoProto, classes: int) -> None:
    """Declare a value as scores `(n, classes)`; a ZipMap takes float32 alone."""
    from onnx import TensorProto

    value.ClearField("type")
    tensor = value.type.tensor_type
    tensor.elem_type = TensorProto.FLOAT
    tensor.shape.dim.add()
    tensor.shape.dim.add().dim_value = classes


def _in_words(classes: tuple[str, ...]) -> str:
    """List the first classes."""
    shown = ", ".join(f"{one:.40}" for one in classes[:_SHOWN])
    return shown + (", ..." if len(classes) > _SHOWN else "")
