"""ONNX's operators over pictures and sequences: convolutions, pools, resizing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.graph import Node
from hasten.engines.compiled.nodes.choices import picked
from hasten.engines.compiled.nodes.movement import padded
from hasten.engines.compiled.nodes.products import dense
from hasten.engines.compiled.nodes.reductions import done, mapped
from hasten.engines.compiled.operators.convolutions import Conv
from hasten.engines.compiled.operators.programs import Step, number
from hasten.engines.compiled.operators.reductions import Reduce
from hasten.engines.compiled.tensors import Access, contiguous, product
from hasten.engines.compiled.values import Value


@dataclass(frozen=True)
class _Window:
    """Window that moves over the last axes of a value.

    Attributes:
        kernel: Sizes.
        strides: Steps.
        dilations: Distances of the window's elements.
        before: Elements of padding at the starts.
        after: Elements of padding at the ends.
        output: Sizes of the result.
        reach: Distances of the window's last elements from its first.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        return tuple((k - 1) * d for k, d in zip(self.kernel, self.dilations, strict=True))


def window_of(node: Node, sizes: Sequence[int], kernel: Sequence[int]) -> _Window:
    attributes, rank = node.attributes, len(sizes)
    strides = tuple(int(one) for one in attributes.get("strides", [1] * rank))
    dilations = tuple(int(one) for one in attributes.get("dilations", [1] * rank))
    pads = [int(one) for one in attributes.get("pads", [0] * (2 * rank))]
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    how = attributes.get("auto_pad", "NOTSET")
    if how in ("SAME_UPPER", "SAME_LOWER"):
        output = [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
        pads = [0] * (2 * rank)
        for at in range(rank):
            whole = max(0, (output[at] - 1) * strides[at] + reach[at] + 1 - sizes[at])
            small, large = whole // 2, whole - whole // 2
            pads[at], pads[at + rank] = (small, large) if how == "SAME_UPPER" else (large, small)
    elif how == "VALID":
        pads = [0] * (2 * rank)
    elif how != "NOTSET":
        node.refuse(f"its auto_pad is {how!r}")
    if min(pads) < 0 or min(*strides, *dilations, *kernel) < 1:
        node.refuse(f"its pads are {pads}, its strides {list(strides)}, kernel {list(kernel)}")
    up = attributes.get("ceil_mode", 0)
    output = []
    for at in range(rank):
        room = sizes[at] + pads[at] + pads[at + rank] - reach[at] - 1
        steps = -(-room // strides[at]) if up else room // strides[at]
        if up and steps * strides[at] >= sizes[at] + pads[at]:
            steps -= 1
        if room < 0:
            node.refuse(f"its window of {list(kernel)} is larger than {list(sizes)}")
        output.append(steps + 1)
    return _Window(
        tuple(kernel),
        strides,
        dilations,
        tuple(pads[:rank]),
        tuple(pads[rank:]),
        tuple(output),
    )


def picture(node: Node, value: Value) -> tuple[int, ...]:
    """Return the sizes of a picture or a sequence behind its batch and channels."""
    sizes = value.shape[2:]
    if len(sizes) not in (1, 2):
        node.refuse(f"its input has {len(value.shape)} axes")
    if value.batch not in (None, 0):
        node.mixes_rows()
    return sizes


def two(numbers: Sequence[int], fill: int) -> tuple[int, int]:
    """Return two numbers for height and width; a sequence is a picture of one line."""
    first, second = (fill, *numbers)[-2:]
    return int(first), int(second)


def _convolution(
    node: Node, value: Value, weight: Array, bias: Array | None, window: _Window, groups: int
) -> None:
    """Append a convolution by a weight of shape `(outputs, inputs / groups, ...)`."""
    count, channels, *sizes = value.shape
    outputs = weight.shape[0]
    if str(weight.dtype) != value.dtype or value.dtype not in ("float32", "float64"):
        node.refuse(f"{value.dtype} by {weight.dtype}")
    if weight.shape[1] * groups != channels or outputs % groups:
        node.refuse(f"{channels} channels by {list(weight.shape)} in {groups} groups")
    shape = (count, outputs, *window.output)
    whole = product(window.output) == 1 and window.kernel == tuple(sizes)
    if whole and groups == 1 and not any((*window.before, *window.after)):
        flat = replace(value, shape=(count, product(value.shape[1:])), constant=None)
        made = dense(node, flat, weight.reshape(outputs, -1).T, bias)
        node.give(replace(made, shape=shape))
        return
    graph = node.graph
    output = node.computed(value.dtype, shape, value.batch)
    graph.add(
        Conv(
            graph.tensor(value),
            graph.store(np.ascontiguousarray(weight)),
            "" if bias is None else graph.store(np.ascontiguousarray(bias)),
            output.tensor,
            (channels, outputs),
            groups,
            two(sizes, 1),
            two(window.kernel, 1),
            two(window.strides, 1),
            two(window.dilations, 1),
            (*two(window.before, 0), *two(window.after, 0)),
            count,
        )
    )


def _conv(node: Node) -> None:
    value, weight = node.input(0), node.constant(1, "weight")
    bias = node.constant(2, "bias") if node.has(2) else None
    window = window_of(node, picture(node, value), weight.shape[2:])
    _convolution(node, value, weight, bias, window, node.attributes.get("group", 1))


def _conv_transpose(node: Node) -> None:
    """Lower as a convolution of the input with zeros between its elements, by the mirrored kernel."""
    value, weight = node.input(0), node.constant(1, "weight")
    bias = node.constant(2, "bias") if node.has(2) else None
    sizes, rank = picture(node, value), len(value.shape) - 2
    attributes, groups = node.attributes, node.attributes.get("group", 1)
    if attributes.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in attributes:
        node.refuse("its pads follow from the shape of its output")
    strides = [int(one) for one in attributes.get("strides", [1] * rank)]
    dilations = tuple(int(one) for one in attributes.get("dilations", [1] * rank))
    pads = [int(one) for one in attributes.get("pads", [0] * 2 * rank)]
    more = [int(one) for one in attributes.get("output_padding", [0] * rank)]
    kernel = tuple(weight.shape[2:])
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    spread = tuple((n - 1) * s + 1 for n, s in zip(sizes, strides, strict=True))
    before = tuple(reach[at] - pads[at] for at in range(rank))
    after = tuple(reach[at] - pads[at + rank] + more[at] for at in range(rank))
    if min(*before, *after) < 0:
        node.refuse("its pads are larger than its kernel")
    if spread != sizes:
        wide = node.graph.new(value.dtype, (*value.shape[:2], *spread), value.batch)
        zero = Step("value", (), value.dtype, number(0, value.dtype))
        node.graph.map([zero], [], wide)
        into = list(contiguous(wide.shape))
        into[2:] = [a * b for a, b in zip(into[2:], strides, strict=True)]
        node.graph.map(
            [Step("copy", (0,), value.dtype)],
            [(value, contiguous(value.shape), 0)],
            wide,
            into=Access(wide.tensor, tuple(into)),
            shape=value.shape,
        )
        value = wide
    ones = (1,) * rank
    output = tuple(s + b + a - r for s, b, a, r in zip(spread, before, after, reach, strict=True))
    window = _Window(kernel, ones, dilations, before, after, output)
    inputs = weight.shape[0] // groups
    split = weight.reshape(groups, inputs, *weight.shape[1:])
    turned = np.flip(split.swapaxes(1, 2), tuple(range(3, 3 + rank)))
    mirrored = np.ascontiguousarray(turned.reshape(-1, inputs, *kernel))
    _convolution(node, value, mirrored, bias, window, groups)


def _pool(node: Node) -> None:
    """Lower as a padded copy and a reduction over windows; the largest are found axis by axis."""
    value = node.input(0)
    if node.wants(1):
        node.refuse("its second output, the indices, is used")
    sizes = picture(node, value)
    window = window_of(node, sizes, [int(one) for one in node.attributes["kernel_shape"]])
    average = node.proto.op_type == "AveragePool"
    counts = _counts(window, sizes, bool(node.attributes.get("count_include_pad", 0)))
    ends = [
        max(a, (o - 1) * s + r + 1 - n - b)
        for n, b, a, o, s, r in zip(
            sizes,
            window.before,
            window.after,
            window.output,
            window.strides,
            window.reach,
            strict=True,
        )
    ]
    if any(window.before) or any(ends):
        fill = 0.0 if average else _lowest(value.dtype)
        value = padded(node, value, (0, 0, *window.before), (0, 0, *ends), fill)
    if not average:
        made = value
        for axis in range(2, len(value.shape)):
            made = _reduced_windows(node, made, window, [axis], "maximum")
        node.give(made)
        return
    even = bool((counts == product(window.kernel)).all())
    axes = list(range(2, len(value.shape)))
    made = _reduced_windows(node, value, window, axes, "mean" if even else "sum")
    if not even:
        divisor = counts.astype(value.dtype)
        made = done(node, "divide", made, Value("", value.dtype, divisor.shape, None, divisor))
    node.give(made)


def _reduced_windows(
    node: Node, value: Value, window: _Window, axes: Sequence[int], kind: str
) -> Value:
    """Append a reduction over windows, which may overlap, along some axes; return its result."""
    strides = contiguous(value.shape)
    along, shape = list(strides), list(value.shape)
    inner = []
    for axis in axes:
        at = axis - 2
        along[axis], shape[axis] = strides[axis] * window.strides[at], window.output[at]
        inner.append(strides[axis] * window.dilations[at])
    made = node.graph.new(value.dtype, tuple(shape), value.batch)
    access = Access(node.graph.tensor(value), (*along, *inner))
    sizes = tuple(window.kernel[axis - 2] for axis in axes)
    node.graph.add(Reduce(kind, access, made.tensor, tuple(shape), sizes))  # type: ignore[arg-type]
    return made


def _lowest(dtype: str) -> float:
    return -np.inf if dtype.startswith("float") else int(np.iinfo(dtype).min)


def _counts(window: _Window, sizes: Sequence[int], pads_count: bool) -> Array:
    """Return how many elements each window has an average of."""
    counts: Array = np.ones((), np.int64)
    for at, size in enumerate(sizes):
        low = -window.before[at] if pads_count else 0
        high = size + window.after[at] if pads_count else size
        starts = np.arange(window.output[at]) * window.strides[at] - window.before[at]
        places = starts[:, None] + np.arange(window.kernel[at]) * window.dilations[at]
        each = ((places >= low) & (places < high)).sum(1)
        counts = counts[..., None] * each
    return counts


def _lrn(node: Node) -> None:
    value, attributes = node.input(0), node.attributes
    size = int(attributes["size"])
    rest = (0,) * (len(value.shape) - 2)
    squares = done(node, "square", value)
    wide = padded(node, squares, (0, (size - 1) // 2, *rest), (0, size // 2, *rest), 0.0)
    made = node.graph.new(value.dtype, value.shape, value.batch)
    steps = contiguous(wide.shape)
    access = Access(wide.tensor, (*steps, steps[1]))
    node.graph.add(Reduce("sum", access, made.tensor, value.shape, (size,)))
    kind = value.dtype
    numbers = (
        attributes.get("alpha", 1e-4) / size,
        attributes.get("bias", 1.0),
        attributes.get("beta", 0.75),
    )
    values = [Step("value", (), kind, number(one, kind)) for one in numbers]
    steps_ = [*values, Step("multiply", (1, 2), kind), Step("add", (5, 3), kind)]
    steps_ += [Step("power", (6, 4), kind), Step("divide", (0, 7), kind)]
    node.give(mapped(node, steps_, value, made))


def _depth_to_space(node: Node) -> None:
    value, block = node.input(0), int(node.attributes["blocksize"])
    count, channels, high, wide = value.shape
    if channels % (block * block):
        node.refuse(f"{channels} channels in blocks of {block}")
    less = channels // (block * block)
    if node.attributes.get("mode", "DCR") == "DCR":
        split, order = (count, block, block, less, high, wide), (0, 3, 4, 1, 5, 2)
    else:
        split, order = (count, less, block, block, high, wide), (0, 1, 4, 2, 5, 3)
    _blocks(node, split, order, (count, less, high * block, wide * block))


def _space_to_depth(node: Node) -> None:
    value, block = node.input(0), int(node.attributes["blocksize"])
    count, channels, high, wide = value.shape
    if high % block or wide % block:
        node.refuse(f"{high} x {wide} in blocks of {block}")
    split = (count, channels, high // block, block, wide // block, block)
    shape = (count, channels * block * block, high // block, wide // block)
    channels_first = node.attributes.get("mode", "DCR") == "CRD"
    _blocks(node, split, (0, 1, 3, 5, 2, 4) if channels_first else (0, 3, 5, 1, 2, 4), shape)


def _blocks(node: Node, split: Sequence[int], order: Sequence[int], shape: tuple[int, ...]) -> None:
    """Give the input with its axes split, in another order, and joined."""
    value = node.input(0)
    if value.batch not in (None, 0):
        node.mixes_rows()
    strides = contiguous(tuple(split))
    made = node.graph.new(value.dtype, tuple(split[axis] for axis in order), value.batch)
    along = tuple(strides[axis] for axis in order)
    node.graph.map([Step("copy", (0,), value.dtype)], [(value, along, 0)], made)
    node.give(replace(made, shape=shape))


def _resize(node: Node) -> None:
    value, attributes = node.input(0), node.attributes
    mode = attributes.get("mode", "nearest")
    old = node.proto.op_type == "Upsample" or node.opset < 11
    where = "asymmetric" if old else attributes.get("coordinate_transformation_mode", "half_pixel")
    nearest = "floor" if old else attributes.get("nearest_mode", "round_prefer_floor")
    if mode not in ("nearest", "linear") or attributes.get("antialias", 0):
        node.refuse(f"its mode is {mode!r}")
    if attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        node.refuse("it keeps the aspect ratio")
    sizes, scales = _scales(node, value, old)
    if value.batch is not None and sizes[value.batch] != 1:
        node.mixes_rows()
    for axis, (size, scale) in enumerate(zip(sizes, scales, strict=True)):
        before = value.shape[axis]
        if size == before and scale == 1:
            continue
        places = _coordinates(node, where, before, size, scale)
        if mode == "nearest":
            value = picked(node, value, _rounded(node, nearest, places, before), axis)
            continue
        places = np.clip(places, 0, before - 1)
        low = np.floor(places).astype(np.int64)
        ends = [picked(node, value, one, axis) for one in (low, np.minimum(low + 1, before - 1))]
        shape = (-1, *(1,) * (len(sizes) - axis - 1))
        part = (places - low).astype(value.dtype).reshape(shape)
        kind = value.dtype
        steps = [Step("subtract", (1, 0), kind), Step("multiply", (3, 2), kind)]
        steps.append(Step("add", (0, 4), kind))
        value = mapped(node, steps, *ends, Value("", kind, part.shape, None, part))
    node.give(value)


def _scales(node: Node, value: Value, old: bool) -> tuple[list[int], list[float]]:
    """Return the sizes of the result, and how many times those of the input they are."""
    rank = len(value.shape)
    if "scales" in node.attributes:
        given = np.asarray(node.attributes["scales"])
    elif old:
        given = node.constant(1, "scales")
    elif node.has(3):
        given = node.constant(3, "sizes")
    else:
        given = node.constant(2, "scales")
    axes = [node.axis(int(one), rank) for one in node.attributes.get("axes", range(rank))]
    sizes, scales = list(value.shape), [1.0] * rank
    for axis, one in zip(axes, given.reshape(-1), strict=True):
        if given.dtype == np.int64:
            sizes[axis], scales[axis] = int(one), int(one) / value.shape[axis]
        else:
            sizes[axis], scales[axis] = int(np.floor(value.shape[axis] * one)), float(one)
    if min(sizes) < 1:
        node.refuse(f"it resizes to {sizes}")
    return sizes, scales


def _coordinates(node: Node, where: str, before: int, size: int, scale: float) -> Array:
    """Return the place in the input for each place of the result."""
    places: Array = np.arange(size, dtype=np.float64)
    if where == "asymmetric":
        return places / scale
    if where == "align_corners":
        return places * ((before - 1) / (size - 1)) if size > 1 else places * 0
    if where == "half_pixel" or (where == "pytorch_half_pixel" and size > 1):
        return (places + 0.5) / scale - 0.5
    if where != "pytorch_half_pixel":
        node.refuse(f"its coordinates are {where!r}")
    return places * 0


def _rounded(node: Node, how: str, places: Array, before: int) -> Array:
    """Return whole places within the input."""
    rounded: dict[str, Callable[[Array], Array]] = {
        "round_prefer_floor": lambda one: np.ceil(one - 0.5),
        "round_prefer_ceil": lambda one: np.floor(one + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    if how not in rounded:
        node.refuse(f"its nearest_mode is {how!r}")
    return np.clip(rounded[how](places), 0, before - 1).astype(np.int64)


LOWERINGS: dict[str, Callable[[Node], None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LRN": _lrn,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Resize": _resize,
    "Upsample": _resize,
}
"""Lowering of each operator by its name."""
