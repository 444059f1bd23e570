"""OpenVINO's operations in ONNX's operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import helper

from hasten.core.tensors import Array
from hasten.engines.compiled.ir.constants import known, refuse
from hasten.engines.compiled.ir.drawing import Drawing

Draw = Callable[[Drawing, Any], None]


def attributes(operation: Any) -> dict[str, Any]:
    """Return an operation's attributes by name."""
    return dict(operation.get_attributes())


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the sizes of an output or input, all of which are settled."""
    return tuple(int(size) for size in value.get_partial_shape().to_shape())


def numbers(operation: Any, place: int, what: str) -> Array:
    """Return an input that must be constant."""
    found = known(operation.input_value(place))
    if found is None:
        raise refuse(operation, f"its {what} must be constant")
    return found.array


def integers(operation: Any, place: int, what: str) -> list[int]:
    """Return an input that must be constant whole numbers."""
    return [int(one) for one in numbers(operation, place, what).reshape(-1)]


def simply(kind: str, **fixed: Any) -> Draw:
    """Return how to draw an operation of which all inputs and the output are ONNX's."""

    def draw(drawing: Drawing, operation: Any) -> None:
        inputs = [drawing.input(operation, at) for at in range(operation.get_input_size())]
        drawing.give(operation, drawing.node(kind, operation, inputs, **fixed))

    return draw


def _swish(drawing: Drawing, operation: Any) -> None:
    given = drawing.input(operation, 0)
    scaled = given
    if operation.get_input_size() > 1:
        scaled = drawing.node("Mul", operation, [given, drawing.input(operation, 1)])[0]
    gate = drawing.node("Sigmoid", operation, [scaled])[0]
    drawing.give(operation, drawing.node("Mul", operation, [given, gate]))


def _clamp(drawing: Drawing, operation: Any) -> None:
    ends = attributes(operation)
    names = [drawing.constant(np.float32(ends[end])) for end in ("min", "max")]
    inputs = [drawing.input(operation, 0), *names]
    drawing.give(operation, drawing.node("Clip", operation, inputs))


def _prelu(drawing: Drawing, operation: Any) -> None:
    slopes = numbers(operation, 1, "slope")
    given = drawing.input(operation, 0)
    if slopes.size == 1:
        alpha = float(slopes.reshape(-1)[0])
        drawing.give(operation, drawing.node("LeakyRelu", operation, [given], alpha=alpha))
        return
    if slopes.ndim == 1:  # one for each channel
        slopes = slopes.reshape(-1, *(1 for _ in shape_of(operation.input(0))[2:]))
    inputs = [given, drawing.constant(slopes)]
    drawing.give(operation, drawing.node("PRelu", operation, inputs))


def _hard_sigmoid(drawing: Drawing, operation: Any) -> None:
    alpha, beta = (float(numbers(operation, at, "factors").reshape(-1)[0]) for at in (1, 2))
    given = drawing.input(operation, 0)
    drawing.give(operation, drawing.node("HardSigmoid", operation, [given], alpha=alpha, beta=beta))


def _h_sigmoid(drawing: Drawing, operation: Any) -> None:
    given = drawing.input(operation, 0)
    sixth = drawing.node("HardSigmoid", operation, [given], alpha=1 / 6, beta=0.5)
    drawing.give(operation, sixth)


def _gelu(drawing: Drawing, operation: Any) -> None:
    mode = str(attributes(operation).get("approximation_mode", "ERF")).lower()
    how = "tanh" if mode == "tanh" else "none"
    given = drawing.input(operation, 0)
    drawing.give(operation, drawing.node("Gelu", operation, [given], approximate=how))


def _elu(drawing: Drawing, operation: Any) -> None:
    alpha = float(attributes(operation)["alpha"])
    given = drawing.input(operation, 0)
    drawing.give(operation, drawing.node("Elu", operation, [given], alpha=alpha))


def _reduce(kind: str) -> Draw:
    def draw(drawing: Drawing, operation: Any) -> None:
        axes = drawing.constant(np.array(integers(operation, 1, "axes"), np.int64))
        keep = int(attributes(operation)["keep_dims"])
        inputs = [drawing.input(operation, 0), axes]
        drawing.give(operation, drawing.node(kind, operation, inputs, keepdims=keep))

    return draw


def _softmax(kind: str) -> Draw:
    def draw(drawing: Drawing, operation: Any) -> None:
        given = drawing.input(operation, 0)
        axis = int(attributes(operation)["axis"])
        drawing.give(operation, drawing.node(kind, operation, [given], axis=axis))

    return draw


def window(operation: Any, kernel: Sequence[int], size: Sequence[int]) -> dict[str, Any]:
    """Return ONNX's attributes of the window of a convolution or a pool, with its pads settled.

    Args:
        operation: The operation.
        kernel: Sizes of the window.
        size: Sizes of the picture.
    """
    found = attributes(operation)
    strides = [int(one) for one in found["strides"]]
    dilations = [int(one) for one in found.get("dilations", [1] * len(strides))]
    pads = [int(one) for one in (*found["pads_begin"], *found["pads_end"])]
    auto = found.get("auto_pad", "explicit")
    if auto == "valid":
        pads = [0] * len(pads)
    elif auto != "explicit":
        whole = [
            max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            for n, s, k, d in zip(size, strides, kernel, dilations, strict=True)
        ]
        less, more = [one // 2 for one in whole], [one - one // 2 for one in whole]
        pads = [*less, *more] if auto == "same_upper" else [*more, *less]
    return {
        "kernel_shape": [int(one) for one in kernel],
        "strides": strides,
        "dilations": dilations,
        "pads": pads,
    }


def _pool(kind: str) -> Draw:
    def draw(drawing: Drawing, operation: Any) -> None:
        found = attributes(operation)
        size = shape_of(operation.input(0))[2:]
        shared = window(operation, found["kernel"], size)
        rounding = str(found.get("rounding_type", "floor"))
        if kind == "AveragePool":
            shared["count_include_pad"] = int(not found["exclude-pad"])
        elif operation.get_output_size() > 1 and operation.output(1).get_target_inputs():
            raise refuse(operation, "its second output, the indices, is used")
        shared["ceil_mode"] = int(rounding != "floor")
        given = drawing.input(operation, 0)
        made = drawing.node(kind, operation, [given], **shared)
        drawing.give(operation, made)

    return draw


def _concat(drawing: Drawing, operation: Any) -> None:
    inputs = [drawing.input(operation, at) for at in range(operation.get_input_size())]
    axis = int(attributes(operation)["axis"])
    drawing.give(operation, drawing.node("Concat", operation, inputs, axis=axis))


def _split(drawing: Drawing, operation: Any) -> None:
    axis = integers(operation, 1, "axis")[0]
    lengths = [shape_of(one)[axis] for one in operation.outputs()]
    inputs = [drawing.input(operation, 0), drawing.constant(np.array(lengths, np.int64))]
    made = drawing.node("Split", operation, inputs, len(lengths), axis=axis)
    drawing.give(operation, made)


def _sliced(
    drawing: Drawing, operation: Any, cuts: Sequence[tuple[int, int, int, int]], gone: Sequence[int]
) -> None:
    """Draw a slice by (axis, start, end, step), and take away axes of size 1."""
    name = drawing.input(operation, 0)
    if cuts:
        axes, starts, ends, steps = zip(*cuts, strict=True)
        names = [drawing.constant(np.array(one, np.int64)) for one in (starts, ends, axes, steps)]
        name = drawing.node("Slice", operation, [name, *names])[0]
    if gone:
        squeezed = [name, drawing.constant(np.array(gone, np.int64))]
        name = drawing.node("Squeeze", operation, squeezed)[0]
    drawing.give(operation, [name])


def _strided_slice(drawing: Drawing, operation: Any) -> None:
    found = attributes(operation)
    begins, ends = integers(operation, 1, "start"), integers(operation, 2, "end")
    strides = [1] * len(begins)
    if operation.get_input_size() > 3:
        strides = integers(operation, 3, "steps")
    if any(any(found.get(f"{mask}_mask", ())) for mask in ("new_axis", "ellipsis")):
        raise refuse(operation, "its slice adds axes")
    shrinks = [*found.get("shrink_axis_mask", ()), *(0 for _ in begins)]
    masks = {end: [*found[f"{end}_mask"], *(0 for _ in begins)] for end in ("begin", "end")}
    cuts, gone = [], []
    for axis, (start, end, step) in enumerate(zip(begins, ends, strides, strict=True)):
        if shrinks[axis]:
            cuts.append((axis, start, start + 1 if start != -1 else _OPEN, 1))
            gone.append(axis)
            continue
        start = (0 if step > 0 else _OPEN) if masks["begin"][axis] else start
        end = (_OPEN if step > 0 else -_OPEN) if masks["end"][axis] else end
        if (start, step) != (0, 1) or end < shape_of(operation.input(0))[axis]:
            cuts.append((axis, start, end, step))
    _sliced(drawing, operation, cuts, gone)


def _slice(drawing: Drawing, operation: Any) -> None:
    """Draw a slice, whose bounds may be sizes that the lowering knows."""
    starts, ends, steps = (_cast(drawing, operation, at, np.int64) for at in (1, 2, 3))
    if operation.get_input_size() > 4:
        axes = _cast(drawing, operation, 4, np.int64)
    else:
        axes = drawing.constant(np.arange(shape_of(operation.input(1))[0]))
    given = drawing.input(operation, 0)
    drawing.give(operation, drawing.node("Slice", operation, [given, starts, ends, axes, steps]))


def _cast(drawing: Drawing, operation: Any, place: int, wanted: Any) -> str:
    """Return the name of an input, drawn with another element type if it has another."""
    name, wanted = drawing.input(operation, place), np.dtype(wanted)
    if operation.get_input_element_type(place).to_dtype() == wanted:
        return name
    to = helper.np_dtype_to_tensor_dtype(wanted)
    return drawing.node("Cast", operation, [name], to=to)[0]


def _range(drawing: Drawing, operation: Any) -> None:
    made = operation.get_output_element_type(0)
    wanted, given = (
        np.dtype(made.to_dtype()),
        [one.get_element_type() for one in operation.inputs()],
    )
    if any(one.is_real() and one != made for one in given):
        raise refuse(
            operation,
            f"it makes {made.get_type_name()} of a start, stop or step of another type of floats",
        )
    inputs = [_cast(drawing, operation, at, wanted) for at in range(3)]
    drawing.give(operation, drawing.node("Range", operation, inputs))


def _interpolate(drawing: Drawing, operation: Any) -> None:
    found = attributes(operation)
    mode = {"nearest": "nearest", "linear_onnx": "linear", "linear": "linear"}.get(found["mode"])
    if mode is None or found.get("antialias") or any((*found["pads_begin"], *found["pads_end"])):
        raise refuse(operation, f"its mode is {found['mode']!r}, or it pads")
    how = found.get("nearest_mode", "round_prefer_floor")
    if how == "simple":
        raise refuse(operation, f"its nearest_mode is {how!r}")
    sizes = shape_of(operation.output(0))
    before = shape_of(operation.input(0))
    where = found["coordinate_transformation_mode"]
    where = {"tf_half_pixel_for_nn": "half_pixel"}.get(where, where)
    given = drawing.input(operation, 0)
    scales = [after / size for after, size in zip(sizes, before, strict=True)]
    inputs = [given, "", drawing.constant(np.array(scales, np.float32))]
    made = drawing.node(
        "Resize",
        operation,
        inputs,
        mode=mode,
        nearest_mode=how,
        coordinate_transformation_mode=where,
    )
    drawing.give(operation, made)


def _depth_to_space(drawing: Drawing, operation: Any) -> None:
    found = attributes(operation)
    mode = "DCR" if found["mode"] == "blocks_first" else "CRD"
    given = drawing.input(operation, 0)
    size = int(found["block_size"])
    made = drawing.node("DepthToSpace", operation, [given], blocksize=size, mode=mode)
    drawing.give(operation, made)


def _space_to_depth(drawing: Drawing, operation: Any) -> None:
    found = attributes(operation)
    if found["mode"] != "blocks_first":
        raise refuse(operation, f"its mode is {found['mode']!r}")
    given = drawing.input(operation, 0)
    size = int(found["block_size"])
    drawing.give(operation, drawing.node("SpaceToDepth", operation, [given], blocksize=size))


def _reshape(drawing: Drawing, operation: Any) -> None:
    inputs = [drawing.input(operation, 0), drawing.input(operation, 1)]
    zero = int(not attributes(operation)["special_zero"])
    drawing.give(operation, drawing.node("Reshape", operation, inputs, allowzero=zero))


def _axes(kind: str) -> Draw:
    def draw(drawing: Drawing, operation: Any) -> None:
        inputs = [drawing.input(operation, 0)]
        if operation.get_input_size() > 1:
            axes = np.array(integers(operation, 1, "axes"), np.int64)
            inputs.append(drawing.constant(axes))
        drawing.give(operation, drawing.node(kind, operation, inputs))

    return draw


def _transpose(drawing: Drawing, operation: Any) -> None:
    rank = len(shape_of(operation.input(0)))
    order = integers(operation, 1, "order") or list(range(rank))[::-1]
    given = drawing.input(operation, 0)
    drawing.give(operation, drawing.node("Transpose", operation, [given], perm=order))


def _pad(drawing: Drawing, operation: Any) -> None:
    mode = attributes(operation)["pad_mode"]
    if mode not in ("constant", "reflect", "edge"):
        raise refuse(operation, f"its mode is {mode!r}")
    pads = [*integers(operation, 1, "pads"), *integers(operation, 2, "pads")]
    inputs = [drawing.input(operation, 0), drawing.constant(np.array(pads, np.int64))]
    if operation.get_input_size() > 3:
        inputs.append(drawing.constant(numbers(operation, 3, "value").reshape(())))
    drawing.give(operation, drawing.node("Pad", operation, inputs, mode=mode))


def _convert(drawing: Drawing, operation: Any) -> None:
    wanted = operation.get_output_element_type(0).to_dtype()
    to = helper.np_dtype_to_tensor_dtype(np.dtype(wanted))
    given = drawing.input(operation, 0)
    drawing.give(operation, drawing.node("Cast", operation, [given], to=to))


def _shape(drawing: Drawing, operation: Any) -> None:
    name = drawing.node("Shape", operation, [drawing.input(operation, 0)])[0]
    wanted = np.dtype(operation.get_output_element_type(0).to_dtype())
    if wanted != np.int64:
        to = helper.np_dtype_to_tensor_dtype(wanted)
        name = drawing.node("Cast", operation, [name], to=to)[0]
    drawing.give(operation, [name])


def _gather(drawing: Drawing, operation: Any) -> None:
    if attributes(operation).get("batch_dims", 0):
        raise refuse(operation, "it has batch axes")
    axis = integers(operation, 2, "axis")[0]
    inputs = [drawing.input(operation, 0), drawing.input(operation, 1)]
    drawing.give(operation, drawing.node("Gather", operation, inputs, axis=axis))


def _gather_elements(drawing: Drawing, operation: Any) -> None:
    axis = int(attributes(operation)["axis"])
    inputs = [drawing.input(operation, at) for at in (0, 1)]
    drawing.give(operation, drawing.node("GatherElements", operation, inputs, axis=axis))


def _gather_nd(drawing: Drawing, operation: Any) -> None:
    if attributes(operation)["batch_dims"]:
        raise refuse(operation, "it has batch axes")
    inputs = [drawing.input(operation, 0), _cast(drawing, operation, 1, np.int64)]
    drawing.give(operation, drawing.node("GatherND", operation, inputs))


def _unequal(drawing: Drawing, operation: Any) -> None:
    inputs = [drawing.input(operation, at) for at in (0, 1)]
    same = drawing.node("Equal", operation, inputs)
    drawing.give(operation, drawing.node("Not", operation, same))


def _broadcast(drawing: Drawing, operation: Any) -> None:
    mode = str(attributes(operation)["mode"]).lower()
    if mode not in ("numpy", "bidirectional"):
        raise refuse(operation, f"its mode is {mode!r}")
    sizes = drawing.constant(np.array(shape_of(operation.output(0)), np.int64))
    given = drawing.input(operation, 0)
    drawing.give(operation, drawing.node("Expand", operation, [given, sizes]))


def _top_k(drawing: Drawing, operation: Any) -> None:
    found = attributes(operation)
    count = integers(operation, 1, "number")[0]
    if found["sort"] == "index" and count > 1:
        raise refuse(operation, "its results are in the order of their indices")
    inputs = [drawing.input(operation, 0), drawing.constant(np.array([count], np.int64))]
    largest = int(found["mode"] == "max")
    values, places = drawing.node(
        "TopK", operation, inputs, 2, axis=int(found["axis"]), largest=largest
    )
    wanted = np.dtype(operation.get_output_element_type(1).to_dtype())
    if wanted != np.int64:
        to = helper.np_dtype_to_tensor_dtype(wanted)
        places = drawing.node("Cast", operation, [places], to=to)[0]
    drawing.give(operation, [values, places])


_OPEN = 2**31 - 1
"""End of a slice from which it means all that there is."""
OPERATORS: Mapping[str, Draw] = {
    "Abs": simply("Abs"),
    "Add": simply("Add"),
    "AvgPool": _pool("AveragePool"),
    "Broadcast": _broadcast,
    "Ceiling": simply("Ceil"),
    "Clamp": _clamp,
    "Concat": _concat,
    "Convert": _convert,
    "DepthToSpace": _depth_to_space,
    "Divide": simply("Div"),
    "Elu": _elu,
    "Equal": simply("Equal"),
    "Erf": simply("Erf"),
    "Exp": simply("Exp"),
    "Floor": simply("Floor"),
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Gelu": _gelu,
    "Greater": simply("Greater"),
    "GreaterEqual": simply("GreaterOrEqual"),
    "HSigmoid": _h_sigmoid,
    "HSwish": simply("HardSwish"),
    "HardSigmoid": _hard_sigmoid,
    "Interpolate": _interpolate,
    "Less": simply("Less"),
    "LessEqual": simply("LessOrEqual"),
    "Log": simply("Log"),
    "LogSoftmax": _softmax("LogSoftmax"),
    "LogicalAnd": simply("And"),
    "LogicalNot": simply("Not"),
    "LogicalOr": simply("Or"),
    "LogicalXor": simply("Xor"),
    "MaxPool": _pool("MaxPool"),
    "Maximum": simply("Max"),
    "Minimum": simply("Min"),
    "Mish": simply("Mish"),
    "Multiply": simply("Mul"),
    "Negative": simply("Neg"),
    "NotEqual": _unequal,
    "PRelu": _prelu,
    "Pad": _pad,
    "Power": simply("Pow"),
    "Range": _range,
    "ReduceMax": _reduce("ReduceMax"),
    "ReduceMean": _reduce("ReduceMean"),
    "ReduceMin": _reduce("ReduceMin"),
    "ReduceProd": _reduce("ReduceProd"),
    "ReduceSum": _reduce("ReduceSum"),
    "Relu": simply("Relu"),
    "Reshape": _reshape,
    "Select": simply("Where"),
    "ShapeOf": _shape,
    "Sigmoid": simply("Sigmoid"),
    "Slice": _slice,
    "SoftPlus": simply("Softplus"),
    "SoftSign": simply("Softsign"),
    "Softmax": _softmax("Softmax"),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Sqrt": simply("Sqrt"),
    "Squeeze": _axes("Squeeze"),
    "StridedSlice": _strided_slice,
    "Subtract": simply("Sub"),
    "Swish": _swish,
    "Tanh": simply("Tanh"),
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unsqueeze": _axes("Unsqueeze"),
    "VariadicSplit": _split,
}
"""Function that draws each operation, by its name, but for products and roundings."""
