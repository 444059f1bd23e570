"""Time the layers of a network alone, at several widths each, with the engine's own counters.

All widths of a layer are parallel branches of one model with small inputs and outputs, so the
times don't include opening a model, calling it, or handing values over.
"""

from __future__ import annotations

import secrets
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import onnx

from hasten.core.tensors import Array
from hasten.engines.base import Engine
from hasten.engines.layers import LayerTime
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.spool import write_spool
from hasten.inputs.models.onnx import load
from hasten.lightening.pruning.layers import LayerShape
from hasten.measure.workbench import Bench

Precision: TypeAlias = Literal["i8", "f32"]
REQUESTS = 8
AT_ONCE = 64
"""Largest number of layers in one model."""
WEIGHTS = 16 << 20
"""Largest number of weights in one model, unless a single layer has more."""
_HEADER = '<ir_version: 10, opset_import: ["": 17]>'
_MARK = "timed_"
_LARGEST = 63
"""Largest int8 weight; with larger ones, sums of two products saturate on CPUs without VNNI."""


def timed(
    shapes: Sequence[LayerShape], bench: Bench, engine: Engine, precision: Precision
) -> dict[LayerShape, float]:
    """Time layers by their shapes.

    Args:
        shapes: Shapes of the layers to time.
        bench: Bench whose processes run the engine.
        engine: Engine with a profiler.
        precision: "f32", or "i8" for explicit QDQ with uint8 activations and int8 weights;
            attention stays in float, as it does in runtimes.

    Returns:
        Time of each layer in nanoseconds.

    Raises:
        CandidateError: the engine failed, or has no profiler.
    """
    found: dict[LayerShape, float] = {}
    for portion in _portions(list(dict.fromkeys(shapes))):
        folder = bench.folder / f"layers-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        try:
            found |= _timed(portion, folder, bench, engine, precision)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return found


def _portions(shapes: list[LayerShape]) -> list[list[LayerShape]]:
    """Split a list such that no model grows too large."""
    portions: list[list[LayerShape]] = [[]]
    weights = 0
    for shape in shapes:
        size = int(np.prod(_weights_of(shape)))
        if len(portions[-1]) >= AT_ONCE or (portions[-1] and weights + size > WEIGHTS):
            portions.append([])
            weights = 0
        portions[-1].append(shape)
        weights += size
    return [portion for portion in portions if portion]


def _timed(
    shapes: list[LayerShape], folder: Path, bench: Bench, engine: Engine, precision: Precision
) -> dict[LayerShape, float]:
    path = folder / "layers.onnx"
    # The first and the last layer of a model also pay for waking up, so both are there twice.
    _write([shapes[0], *shapes, shapes[-1]], path, precision)
    model = load(path).settled_by({"x": np.zeros(1, np.float32)})
    requests = np.random.default_rng(1).standard_normal((4, 1)).astype(np.float32)
    spool = write_spool(ArrayDataset({"x": requests}), folder / "requests")
    (folder / "built").mkdir()
    own = Bench(folder, bench.target, bench.limit_s, bench.memory_bytes, original=path)
    artifact = own.build(engine, model, folder / "built")
    steps = own.profile(engine, artifact, spool, requests=REQUESTS)
    times = _by_number(steps)
    return {shape: times[number] for number, shape in enumerate(shapes, 1)}


def _by_number(steps: Sequence[LayerTime]) -> dict[int, float]:
    """Return the summed time of each layer's marked nodes, by the layer's number."""
    times: dict[int, float] = defaultdict(float)
    for step in steps:
        numbers = {
            int(source.removeprefix(_MARK).partition("_")[0])
            for source in step.sources
            if source.startswith(_MARK)
        }
        for number in numbers:
            times[number] += step.median_ns / len(numbers)
    return times


@dataclass
class _Text:
    """ONNX graph in text form, under construction."""

    lines: list[str] = field(default_factory=list)
    values: dict[str, Array] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def read(self, shape: tuple[int, ...], zero: str | None) -> str:
        """Return the name of a tensor of this shape, quantized if a zero point is given.

        Layers with equal inputs share the tensor.
        """
        name = f"in_{zero}_{'x'.join(map(str, shape))}"
        base = f"base_{'x'.join(map(str, shape))}"
        if base not in self.values:
            self.values[base] = self.rng.standard_normal(shape, np.float32)
        if name not in self.named:
            self.named.add(name)
            self.lines.append(f"{name}_sum = Add(x, {base})")
            last = [f"{name} = Relu({name}_sum)"]
            self.lines += last if zero is None else _rounded(f"{name}_sum", name, zero)
        return name

    def weights(self, name: str, shape: tuple[int, ...], quantized: bool) -> str:
        """Add a layer's weights, and return their name."""
        if not quantized:
            self.values[name] = self.rng.standard_normal(shape, np.float32) / np.float32(8)
            return name
        self.values[f"{name}_q"] = self.rng.integers(-_LARGEST, _LARGEST + 1, shape, np.int8)
        self.lines.append(f"{name} = DequantizeLinear({name}_q, weight_scale, weight_zero)")
        return name


def _rounded(source: str, name: str, zero: str) -> list[str]:
    return [
        f"{name}_q = QuantizeLinear({source}, scale, {zero})",
        f"{name} = DequantizeLinear({name}_q, scale, {zero})",
    ]


def _weights_of(shape: LayerShape) -> tuple[int, ...]:
    if shape.kind == "attention":
        return ()
    if shape.kind == "linear":
        return (shape.inputs, shape.outputs)
    each = 1 if shape.kind == "depthwise" else shape.inputs // shape.groups
    return (shape.outputs, each, *shape.kernel)


def _write(shapes: Sequence[LayerShape], path: Path, precision: Precision) -> None:
    """Write a model of parallel layers, in which the nodes to time have marked names."""
    text = _Text()
    quantized = precision == "i8"
    text.values |= {
        "scale": np.array(4 / 255, np.float32),
        "positive": np.array(0, np.uint8),
        "signed": np.array(100, np.uint8),
        "weight_scale": np.array(1 / 512, np.float32),
        "weight_zero": np.array(0, np.int8),
    }
    outputs = []
    for number, shape in enumerate(shapes):
        made = f"{_MARK}{number}"
        if shape.kind == "attention":
            last = _attention(text, made, shape)
        else:
            last = _product(text, made, shape, quantized)
        outputs.append(f"y{number}")
        lasts = (
            "ReduceMax <axes = [-2], keepdims = 0>" if len(_read_by(shape)) < 4 else "GlobalMaxPool"
        )
        text.lines.append(f"y{number} = {lasts}({last})")
    body = "\n".join(text.lines)
    answers = ", ".join(f"float {name}" for name in outputs)
    proto = onnx.parser.parse_model(f"{_HEADER}\nlayers (float[1] x) => ({answers}) {{\n{body}\n}}")
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, key) for key, value in text.values.items()
    )
    for node in proto.graph.node:
        node.name = node.output[0]
    onnx.save(onnx.shape_inference.infer_shapes(proto), path)


def _read_by(shape: LayerShape) -> tuple[int, ...]:
    """Return the shape of a layer's input."""
    if shape.kind == "linear":
        return (shape.size[0], shape.inputs)
    if shape.kind == "attention":
        return (shape.batch, shape.outputs, shape.size[0], shape.inputs)
    return (shape.batch, shape.inputs, *shape.size)


def _product(text: _Text, made: str, shape: LayerShape, quantized: bool) -> str:
    zero = None if not quantized else "signed" if shape.signed else "positive"
    read = text.read(_read_by(shape), zero)
    weights = text.weights(f"w_{made}", _weights_of(shape), quantized)
    if shape.kind == "linear":
        text.lines.append(f"{made} = MatMul({read}, {weights})")
    else:
        groups = shape.outputs if shape.kind == "depthwise" else shape.groups
        attributes = (
            f"group = {groups}, strides = {_numbers(shape.stride)}, "
            f"pads = {_numbers((*shape.padding, *shape.padding))}, dilations = {_numbers(shape.dilation)}"
        )
        text.lines.append(f"{made} = Conv <{attributes}> ({read}, {weights})")
    last = f"out_{made}"
    text.lines += _rounded(made, last, zero) if zero else [f"{last} = Relu({made})"]
    if not any(shape.pooling):
        return last
    kernel, stride, padding = ((n, n) for n in shape.pooling)
    attributes = (
        f"kernel_shape = {_numbers(kernel)}, strides = {_numbers(stride)}, "
        f"pads = {_numbers((*padding, *padding))}"
    )
    text.lines.append(f"{made}_pooled = MaxPool <{attributes}> ({last})")
    if zero is None:
        return f"{made}_pooled"
    text.lines += _rounded(f"{made}_pooled", f"end_{made}", zero)
    return f"end_{made}"


def _numbers(values: Sequence[int]) -> str:
    return f"[{', '.join(map(str, values))}]"


def _attention(text: _Text, made: str, shape: LayerShape) -> str:
    """Add products of queries and keys, a softmax, and the product with the values."""
    batch, heads, rows, width = _read_by(shape)
    query = text.read((batch, heads, rows, width), None)
    keys = text.read((batch, heads, width, rows), None)
    text.lines += [
        f"{made}_scores = MatMul({query}, {keys})",
        f"{made}_shares = Softmax <axis = -1> ({made}_scores)",
        f"{made}_mixed = MatMul({made}_shares, {query})",
    ]
    return f"{made}_mixed"
