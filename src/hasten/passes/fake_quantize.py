"""Insert roundings where a quantizer would, with arbitrary ranges, for timing alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hasten.passes.openvino_graphs import PRODUCTS

_CHANNEL_AXES: dict[str, tuple[int, ...]] = {
    "Convolution": (0,),
    "GroupConvolution": (0, 1),
    "ConvolutionBackpropData": (1,),
    "GroupConvolutionBackpropData": (0, 2),
}
_BETWEEN = {
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Concat")),
    **dict.fromkeys(("AvgPool", "ReduceMean", "Interpolate", "MVN"), 1),
}
"""Other operations that run in int8 if their inputs are rounded: how many inputs, None for all."""
_OTHERS = {"Divide", "GroupNormalization", "Maximum", "Minimum", "NormalizeL2", "Power"} | {
    *("GRUCell", "GRUSequence", "LSTMCell", "LSTMSequence", "RNNSequence", "SquaredDifference")
}
"""Operations that a quantizer may round but this module can't."""
_KEEP_SIGN = {"AvgPool", "MaxPool", "ReduceMean", "Reshape", "Slice", "Split", "Squeeze"} | {
    *("StridedSlice", "Transpose", "Unsqueeze", "VariadicSplit")
}
_NEVER_NEGATIVE = {"HardSigmoid", "HSigmoid", "Relu", "Sigmoid", "Softmax"}
_LARGEST = 4.0
_DEEPEST = 8


def round_everywhere(graph: Any, *, kept: Sequence[str] = (), symmetric: bool = True) -> int:
    """Insert 8-bit FakeQuantize operations, in place, where a convolutional network runs in int8.

    A graph with other operations that a quantizer may round is left as it is.

    Args:
        graph: `openvino.Model` from OpenVINO's converter.
        kept: Friendly names of operations to leave in float.
        symmetric: Whether activations are rounded around 0; if not, those that can be negative get
            a zero point.

    Returns:
        Number of convolutions and matrix products with rounded inputs; 0 if nothing was changed.

    Source: Jacob et al., arXiv:1712.05877, section 3: simulated rounding where integers will be.
    """
    import openvino

    made: dict[tuple[str, int], Any] = {}
    done = 0
    free = [one for one in graph.get_ordered_ops() if one.get_friendly_name() not in kept]
    if any(one.get_type_name() in _OTHERS for one in free):
        return 0
    for operation in free:
        kind = operation.get_type_name()
        product = kind in _CHANNEL_AXES or kind in PRODUCTS
        if not (product or kind in _BETWEEN):
            continue
        inputs = operation.inputs()[:2] if product else operation.inputs()[: _BETWEEN[kind]]
        sources = [one.get_source_output() for one in inputs]
        if not product and any(_constant(one.get_node()) for one in sources):
            continue
        if any(one.get_element_type() != openvino.Type.f32 for one in sources):
            continue
        for place, (target, source) in enumerate(zip(inputs, sources, strict=True)):
            if _constant(source.get_node()):
                rounded = _weights(operation, place, source)
            else:
                key = (source.get_node().get_friendly_name(), source.get_index())
                rounded = made.get(key) or made.setdefault(key, _activations(source, symmetric))
            target.replace_source_output(rounded.output(0))
        done += product
    graph.validate_nodes_and_infer_types()
    return done


def _constant(node: Any) -> bool:
    """Return whether a node is a constant, perhaps converted or reshaped, and so holds weights."""
    while node.get_type_name() in ("Convert", "Reshape"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _weights(operation: Any, place: int, source: Any) -> Any:
    """Round weights, with a scale per output channel."""
    shape = list(source.get_partial_shape().to_shape())
    axes = _CHANNEL_AXES.get(operation.get_type_name(), ())
    if (
        not axes and place == 1 and len(shape) > 1
    ):  # a matrix product's channels lie on the axis that isn't summed over
        transposed = operation.get_attributes()["transpose_b"]
        axes = (len(shape) - 2 if transposed else len(shape) - 1,)
    scales = np.full([n if axis in axes else 1 for axis, n in enumerate(shape)], 0.5, np.float32)
    return _fake_quantize(source, -scales, scales, 255)


def _activations(source: Any, symmetric: bool) -> Any:
    if _never_negative(source):
        low = 0.0
    else:
        low = -_LARGEST * 128 / 127 if symmetric else -0.75 * _LARGEST
    return _fake_quantize(source, low, _LARGEST, 256)


def _never_negative(source: Any, depth: int = 0) -> bool:
    """Return whether an output can't be negative, which allows the faster unsigned integers."""
    node = source.get_node()
    kind = node.get_type_name()
    if kind in _NEVER_NEGATIVE:
        return True
    if kind == "Clamp":
        return bool(node.get_attributes()["min"] >= 0)
    if depth == _DEEPEST:
        return False
    if kind in _KEEP_SIGN:
        return _never_negative(node.input_value(0), depth + 1)
    if kind in ("Add", "Concat", "Multiply"):
        values = node.input_values()
        return all(
            not _constant(one.get_node()) and _never_negative(one, depth + 1) for one in values
        )
    return False


def _fake_quantize(source: Any, low: Any, high: Any, levels: int) -> Any:
    from openvino import opset13 as operations

    ends = [operations.constant(np.asarray(end, np.float32)) for end in (low, high)]
    return operations.fake_quantize(source, *ends, *ends, levels)
