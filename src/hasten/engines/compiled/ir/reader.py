"""Reading of OpenVINO's IR as an ONNX graph between roundings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from hasten.core.telemetry import import_quietly
from hasten.core.tensors import TensorSpec
from hasten.engines.compiled.ir.attention import ATTENTION
from hasten.engines.compiled.ir.constants import known, ranges, refuse
from hasten.engines.compiled.ir.drawing import Drawing
from hasten.engines.compiled.ir.masks import MASKS
from hasten.engines.compiled.ir.operators import OPERATORS
from hasten.engines.compiled.ir.products import PRODUCTS
from hasten.engines.failures import failed
from hasten.errors import CandidateError


def as_onnx(
    path: Path, request: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> onnx.ModelProto:
    """Return the graph of an IR in ONNX's operators.

    A FakeQuantize becomes a QuantizeLinear and a DequantizeLinear, weights that were stored as integers a
    DequantizeLinear of a constant.

    Args:
        path: Path of the .xml file; the weights lie beside it.
        request: Inputs of one request, with every size settled.
        outputs: Outputs of the model.

    Raises:
        CandidateError: the file can't be read, OpenVINO isn't installed, or an operation isn't covered: the
            message names it.
    """
    graph = _read(path, request)
    drawing = Drawing()
    for spec in request:
        parameter = _port(graph.inputs, spec.name)
        if parameter is None:
            raise CandidateError(f"the compiled engine finds no input {spec.name!r} in the IR")
        drawing.give(parameter.get_node(), [spec.name])
    for operation in graph.get_ordered_ops():
        _draw(drawing, operation)
    if len(graph.outputs) < len(outputs):
        raise CandidateError(
            f"the compiled engine finds {len(graph.outputs)} outputs in the IR, not {len(outputs)}"
        )
    for place, spec in enumerate(outputs):
        port = _port(graph.outputs, spec.name) or graph.outputs[place]
        source = drawing.input(port.get_node(), 0)
        drawing.nodes.append(onnx.helper.make_node("Identity", [source], [spec.name]))
    inputs = [(spec.name, spec.dtype, spec.sizes) for spec in request]
    return drawing.model(inputs, [spec.name for spec in outputs])


def _read(path: Path, request: Sequence[TensorSpec]) -> Any:
    """Return the graph, for the shapes of one request."""
    try:
        openvino = import_quietly("openvino")
    except ImportError as error:
        raise CandidateError(
            "the compiled engine reads IR files with OpenVINO, which isn't installed"
        ) from error
    try:
        graph = openvino.Core().read_model(path)
        graph.reshape({spec.name: spec.sizes for spec in request})
    except Exception as error:
        raise failed("the compiled engine can't read the IR", error) from error
    return graph


def _port(ports: Sequence[Any], name: str) -> Any:
    """Return the input or output of a graph that bears a name; None where there is none."""
    return next((port for port in ports if name in port.names), None)


def _draw(drawing: Drawing, operation: Any) -> None:
    """Draw an operation, and at once the roundings of its results.

    So a number that is rounded and read by something else too is known as bytes when that is drawn.
    """
    kind = operation.get_type_name()
    if kind in ("Constant", "Parameter", "Result"):
        for port in operation.outputs() if kind == "Parameter" else ():
            _round(drawing, port)
        return
    if all(
        (operation.get_name(), at) in drawing.names for at in range(operation.get_output_size())
    ):
        return  # a bias that its product has taken, or a rounding
    if operation.get_output_size() and all(known(one) for one in operation.outputs()):
        return  # drawn where it is read
    draw = next((one[kind] for one in _DRAWN if kind in one), None)
    if draw is None:
        raise refuse(operation, "it isn't covered")
    if not all(port.get_partial_shape().is_static for port in operation.outputs()):
        raise refuse(operation, "its shape isn't fixed")
    draw(drawing, operation)
    for port in operation.outputs():
        _round(drawing, port)


def _round(drawing: Drawing, port: Any) -> None:
    """Draw what rounds an output, or the sum with the bias that its product has taken."""
    source = port.get_node()
    name = drawing.names.get((source.get_name(), port.get_index()))
    if name is None:
        for target in port.get_target_inputs():
            reader = target.get_node()
            if (reader.get_name(), 0) in drawing.names:
                _round(drawing, reader.output(0))
        return
    for target in port.get_target_inputs():
        reader = target.get_node()
        if reader.get_type_name() == "FakeQuantize" and target.get_index() == 0:
            made = drawing.rounded(reader, name, *ranges(reader))
            drawing.give(reader, [made])


_DRAWN = (PRODUCTS, OPERATORS, MASKS, ATTENTION)
"""Functions that draw operations, by their names."""
