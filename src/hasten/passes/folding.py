"""Move the end of an image pipeline into the model: pixels go in as uint8, the graph normalizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hasten.core.model import Model
from hasten.core.tensors import TensorSpec
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.image import Decode, Normalize, ToLayout, in_pixels
from hasten.passes.base import Skipped
from hasten.passes.onnx_files import PIXEL_NODES, graphs, read_onnx, write_onnx

OLDEST_OPSET = 9
"""Oldest operator set that is taken. Since 7, operators broadcast as numpy does; since 9, Cast is
what engines run today."""


def folded(model: Model, pipeline: Pipeline, workdir: Path) -> tuple[Model, Pipeline]:
    """Write a model that normalizes pixels and orders their axes itself, as a pipeline's end does.

    The new model's only input is uint8 of shape (batch, height, width, channels) and keeps its name. Four
    times fewer bytes cross into the engine. The graph first puts channels in front, while each is
    one byte, and then computes in float32 what the steps compute, in the same order of operations.

    Args:
        model: ONNX model with one input of images.
        pipeline: Pipeline whose last steps are `Normalize` and `ToLayout`.
        workdir: Existing folder to write to.

    Returns:
        The new model, and the pipeline for it, which ends in uint8 and names the steps that the
        model does in `Pipeline.folded`.

    Raises:
        Skipped: the model or the pipeline doesn't allow it; the message says why.
        CandidateError: the model can't be read, or ONNX's checker rejects the new one.
        InputError: the file can't be written.
    """
    normalize, layout = _end(pipeline)
    channels = _pixel_channels(pipeline, normalize)
    spec = _images(model, layout, max(channels, len(normalize.mean)))
    proto = read_onnx(model)
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise Skipped(f"the model has operator set {opset}; {OLDEST_OPSET} or newer is needed")
    if spec.name in {output.name for output in proto.graph.output}:
        raise Skipped(f"the model returns its input {spec.name!r} as an output")
    if proto.ir_version < 4:  # weights had to be inputs too; from 4 on that means they may change
        weights = {tensor.name for tensor in proto.graph.initializer}
        given = [value for value in proto.graph.input if value.name not in weights]
        del proto.graph.input[:]
        proto.graph.input.extend(given)
    _put_in_front(proto, spec.name, normalize, layout, channels)
    written = write_onnx(proto, model, workdir / "pixels.onnx")
    sizes = _pixel_axes(spec.shape, layout)
    return (
        replace(
            written,
            inputs=(TensorSpec(spec.name, "uint8", (*sizes[:3], channels)),),
            request=(),
            program=None,
        ),
        in_pixels(pipeline, (normalize, layout)),
    )


def _end(pipeline: Pipeline) -> tuple[Normalize, ToLayout]:
    """Return the last two steps of a pipeline, if they are those that a graph can do."""
    match pipeline.steps[-2:]:
        case (Normalize() as normalize, ToLayout() as layout) if layout.dtype != "uint8":
            return normalize, layout
        case (*_, ToLayout(dtype="uint8")):
            raise Skipped("the model already takes uint8")
    raise Skipped("the pipeline doesn't end in normalize and to_layout")


def _pixel_channels(pipeline: Pipeline, normalize: Normalize) -> int:
    """Return the number of channels of what a pipeline normalizes."""
    first = pipeline.steps[0]
    if isinstance(first, Decode):
        return 1 if first.colors == "gray" else 3
    return len(normalize.mean)


def _images(model: Model, layout: ToLayout, channels: int) -> TensorSpec:
    """Return the model's input, if it is one image with so many channels."""
    if model.format != "onnx":
        raise Skipped(f"the model is {model.format}, not ONNX")
    if len(model.inputs) != 1:
        raise Skipped(f"the model has {len(model.inputs)} inputs, not one")
    (spec,) = model.inputs
    axis = 1 if layout.layout == "CHW" else 3
    if len(spec.shape) != 4 or spec.dtype != layout.dtype:
        raise Skipped(f"the model takes {spec}, not images in {layout.dtype}")
    if isinstance(spec.shape[axis], int) and spec.shape[axis] != channels:
        raise Skipped(f"the model takes {spec}: {spec.shape[axis]} channels, not {channels}")
    return spec


def _pixel_axes(shape: tuple[int | str, ...], layout: ToLayout) -> tuple[int | str, ...]:
    """Return sizes in the order batch, height, width, channels."""
    return (shape[0], shape[2], shape[3], shape[1]) if layout.layout == "CHW" else shape


def _put_in_front(
    proto: onnx.ModelProto, name: str, normalize: Normalize, layout: ToLayout, channels: int
) -> None:
    """Put the steps in front of a graph, and let all that read its input read their result."""
    taken = set(_names(proto.graph))

    def fresh(what: str) -> str:
        own = f"{PIXEL_NODES}{what}"
        while own in taken:
            own += "_"
        taken.add(own)
        return own

    first = layout.layout == "CHW"
    per_channel = (-1, 1, 1) if first else (-1,)
    half = layout.dtype == "float16"
    result = fresh("normalized")
    _read_instead(proto.graph, name, result)
    value, nodes = name, []

    def then(kind: str, *others: str, last: bool = False, **settings: Any) -> None:
        nonlocal value
        own = result if last else fresh(kind.lower())
        label = fresh(kind)
        nodes.append(helper.make_node(kind, [value, *others], [own], name=label, **settings))
        value = own

    if first:
        then("Transpose", perm=[0, 3, 1, 2])
    then("Cast", to=onnx.TensorProto.FLOAT)
    for kind, numbers, last in zip(
        ("Mul", "Sub"), normalize.factors, (False, not half), strict=True
    ):
        constant = fresh("factor" if kind == "Mul" else "shift")
        proto.graph.initializer.append(
            numpy_helper.from_array(np.reshape(numbers, per_channel), constant)
        )
        then(kind, constant, last=last)
    if half:
        then("Cast", last=True, to=onnx.TensorProto.FLOAT16)
    given = [*proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes, *given])
    _take_pixels(next(v for v in proto.graph.input if v.name == name), channels, first=first)


def _take_pixels(value: onnx.ValueInfoProto, channels: int, *, first: bool) -> None:
    """Change an input's type to uint8, and its axes to batch, height, width, channels."""
    tensor = value.type.tensor_type
    tensor.elem_type = onnx.TensorProto.UINT8
    dims = [onnx.TensorShapeProto.Dimension() for _ in range(4)]
    for dim, axis in zip(dims, (0, 2, 3, 1) if first else (0, 1, 2, 3), strict=True):
        dim.CopyFrom(tensor.shape.dim[axis])
    dims[3].dim_value = channels
    del tensor.shape.dim[:]
    tensor.shape.dim.extend(dims)


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield every name of a value and a node, in inner graphs too."""
    for inner in graphs(graph):
        for values in (inner.input, inner.output, inner.initializer, inner.value_info, inner.node):
            yield from (value.name for value in values)
        for node in inner.node:
            yield from (*node.input, *node.output)


def _read_instead(graph: onnx.GraphProto, name: str, other: str) -> None:
    """Let every node that reads one value read another, in inner graphs too."""
    for inner in graphs(graph):
        for node in inner.node:
            node.input[:] = [other if read == name else read for read in node.input]
        for value in inner.value_info:
            value.name = other if value.name == name else value.name
        for output in inner.output:  # an inner graph may give an outer value back
            output.name = other if output.name == name else output.name
