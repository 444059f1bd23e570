"""Classifiers' scores that an ONNX file gives as one mapping for each row, as skl2onnx and CatBoost write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from hasten.core.words import amount

if TYPE_CHECKING:
    import onnx

_OPSET = 9
"""Operator set of the copies in a file that has operators of `ai.onnx.ml` alone, as CatBoost's have."""
_SHOWN = 12


def without_maps(proto: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Make tensors of the mappings that a graph gives, in place: a column for each class, in the file's order.

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
            found[value.name] = _classes(zips[value.name])
            _become_scores(value, len(found[value.name]))
    for node in zips.values():
        node.op_type, node.domain = "Identity", ""
        del node.attribute[:]
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
