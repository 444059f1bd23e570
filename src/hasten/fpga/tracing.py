"""From an ONNX graph to a fixed-point program, node by node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from onnx import numpy_helper

from hasten.errors import CandidateError
from hasten.fpga import trees
from hasten.fpga.formats import Format, format_for, rounded_weights
from hasten.fpga.program import Epilogue, Port, Ports, Program
from hasten.fpga.ranges import Range
from hasten.tensors import Array, TensorSpec

Overflow: TypeAlias = Literal["saturate", "wrap", "grow"]
PRODUCTS = frozenset({"Gemm", "MatMul", "Conv"})
TREES = frozenset({"TreeEnsembleClassifier", "TreeEnsembleRegressor"})
_KEEPS_ROUNDING = frozenset(
    {
        "Relu",
        "MaxPool",
        "Flatten",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Identity",
        "Transpose",
        "Dropout",
    }
)
"""Operators that commute with adding half a step: max(x, 0) + h is cut off as max(x + h, 0) is."""
_TABLE_BITS = 10
"""Of a lookup table's address, at most."""


@dataclass(frozen=True)
class Widths:
    """How many bits numbers have.

    Attributes:
        weights: Of an output's largest weight.
        activations: Of what goes into a product.
        inputs: Of the model's inputs.
        overflow: What happens to a number beyond the range that calibration showed: it becomes the
            largest, wraps around (with a bit to spare), or never is, since no bit before the
            point is left out.
        layers: Of single nodes, by name: bits of weights and of what goes in.
    """

    weights: int
    activations: int
    inputs: int
    overflow: Overflow = "saturate"
    layers: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def of(self, node: str) -> tuple[int, int]:
        """Bits of a node's weights and of what goes into it."""
        return self.layers.get(node, (self.weights, self.activations))


def trace(
    proto: onnx.ModelProto,
    ranges: Mapping[str, Range],
    widths: Widths,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> Program:
    """Turn a graph into additions, shifts, comparisons and tables of fixed-point numbers.

    Sums are exact; what goes into a product is rounded to its width.

    Args:
        proto: Float, simplified, all shapes settled, batch 1.
        ranges: Of every tensor.
        widths: Of the numbers.
        inputs: The model's.
        outputs: The model's.

    Raises:
        CandidateError: an operator that has no fixed-point form here, by its node.
    """
    return _Tracer(proto, ranges, widths).program(inputs, outputs)


class _Tracer:
    """The graph, and what became of its tensors so far."""

    def __init__(self, proto: onnx.ModelProto, ranges: Mapping[str, Range], widths: Widths) -> None:
        from da4ml.trace import FixedVariableArray, HWConfig

        self._arrays, self._hardware = FixedVariableArray, HWConfig(1, -1, -1)
        self._graph, self._ranges, self._widths = proto.graph, ranges, widths
        self._constants: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer
        }
        self._values: dict[str, Any] = {}
        self._rounded: set[str] = set()
        """Tensors whose sums have half a step in them already."""
        self._endings: dict[str, dict[str, Any]] = {}
        """What is left to whoever reads an output, as fields of its port."""
        self._narrow: dict[tuple[str, int], Any] = {}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def program(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Program:
        """Trace the whole graph."""
        from da4ml.trace import comb_trace

        ports_in, begin = [], []
        for spec in inputs:
            value, port = self._input(spec)
            self._values[spec.name] = value
            ports_in.append(port)
            begin.append(np.ravel(value._vars))
        epilogues = self._endings
        results = {spec.name for spec in outputs}
        for node in self._graph.node:
            if self._left_to_the_reader(node, results):
                kind: Epilogue = "softmax" if node.op_type == "Softmax" else "log_softmax"
                axis = int(_attributes(node).get("axis", -1))
                epilogues[node.output[0]] = {"epilogue": kind, "axis": axis}
                self._values[node.output[0]] = self._value(node.input[0])
                continue
            self._apply(node)
        ports_out, end = [], []
        for spec in outputs:
            value = self._values.get(spec.name)
            if value is None:
                raise CandidateError(f"the output {spec.name!r} doesn't depend on the inputs")
            ports_out.append(_port(spec.name, value, epilogues.get(spec.name, {})))
            end.append(np.ravel(value._vars))
        logic = comb_trace(np.concatenate(begin), np.concatenate(end), keep_dead_inputs=True)
        products = tuple(n.name for n in self._graph.node if n.op_type in PRODUCTS)
        ports = Ports(tuple(ports_in), tuple(_settled(ports_out, logic)), products)
        return Program(logic, ports)

    def _input(self, spec: TensorSpec) -> tuple[Any, Port]:
        if not (spec.dtype.startswith("float") and spec.shape and spec.shape[0] == 1):
            raise CandidateError(
                f"an FPGA design takes float inputs, one sample at a time: got {spec}"
            )
        seen = self._ranges[spec.name].by_channel()
        form = format_for(seen.low, seen.high, self._widths.inputs, alike=False)
        value = self._arrays.from_kif(form.signed, form.integer, form.fraction, self._hardware, 0)
        return value, Port(spec.name, spec.sizes[1:], *_flat(form))

    def _left_to_the_reader(self, node: onnx.NodeProto, results: set[str]) -> bool:
        """Whether it is a softmax at the very end, which the largest answer doesn't need."""
        return node.op_type in ("Softmax", "LogSoftmax") and node.output[0] in results

    def _apply(self, node: onnx.NodeProto) -> None:
        if not any(name in self._values for name in node.input):
            self._fold(node)
            return
        if node.domain == "ai.onnx.ml" and node.op_type in TREES:
            self._grow(node)
            return
        make = _OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if make is None:
            raise CandidateError(
                f"no fixed-point form of the operator {node.op_type} (node {node.name!r}); there are: "
                f"{', '.join(sorted(_OPERATORS))}, and a softmax at the end"
            )
        try:
            self._values[node.output[0]] = make(self, node)
        except CandidateError:
            raise
        except Exception as error:
            raise CandidateError(
                f"the operator {node.op_type} (node {node.name!r}) has no fixed-point form with these "
                f"settings: {error or type(error).__name__}"
            ) from error

    def _grow(self, node: onnx.NodeProto) -> None:
        """Turn trees into comparisons. A classifier's label is left to whoever reads the sums."""
        ensemble = trees.read(node)
        given = self._value(node.input[0])
        sums = ensemble.sums(
            list(np.ravel(given._vars)), self._widths.of(node.name)[0], self._hardware
        )
        value = self._arrays(np.array([sums], dtype=object), hwconf=self._hardware)
        if node.op_type == "TreeEnsembleRegressor":
            self._values[node.output[0]] = value
            return
        two = len(ensemble.classes) > len(sums)
        transform = {"LOGISTIC": "logistic", "SOFTMAX": "softmax", "NONE": "two"}[
            ensemble.transform
        ]
        if not two and transform != "softmax":
            transform = "none"
            if ensemble.transform == "LOGISTIC":
                raise CandidateError(
                    f"a logistic of each class (node {node.name!r}) isn't left to readers"
                )
        meet = 0.5 if ensemble.positive else 0.0
        label: dict[str, Any] = {"epilogue": "label", "classes": ensemble.classes, "meet": meet}
        scores: dict[str, Any] = {"epilogue": transform}
        for name, ending in zip(node.output, (label, scores), strict=True):
            self._values[name], self._endings[name] = value, ending
            if any(name in reader.input for reader in self._graph.node):
                raise CandidateError(
                    f"what trees say (node {node.name!r}) has to be the model's answer"
                )

    def _fold(self, node: onnx.NodeProto) -> None:
        """Work out a node of constants alone."""
        from onnx.reference import ReferenceEvaluator

        try:
            given = {name: self._constants[name] for name in node.input if name}
            found = ReferenceEvaluator(node).run(None, given)
        except Exception as error:
            raise CandidateError(
                f"the constants of the operator {node.op_type} (node {node.name!r}) can't be worked out"
            ) from error
        self._constants.update(zip(node.output, map(np.asarray, found), strict=False))

    def _value(self, name: str) -> Any:
        """Return a tensor as it is: exact, however many bits that takes."""
        if name in self._values:
            return self._values[name]
        return self._constants[name].astype(np.float64)

    def constant(self, node: onnx.NodeProto, place: int) -> Array | None:
        """Return a constant input; None where there is none."""
        if place >= len(node.input) or not node.input[place]:
            return None
        name = node.input[place]
        if name not in self._constants:
            raise CandidateError(
                f"the operator {node.op_type} (node {node.name!r}) needs a constant {name!r}"
            )
        return self._constants[name]

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is known beforehand."""
        return name not in self._values

    def wide(self, node: onnx.NodeProto, place: int = 0) -> Any:
        """Return a node's input as it is; its rounding goes over to what the node gives."""
        name = node.input[place]
        if name in self._rounded and node.op_type in _KEEPS_ROUNDING:
            self._rounded.add(node.output[0])
        return self._value(name)

    def narrow(self, node: onnx.NodeProto, place: int = 0, bits: int | None = None) -> Any:
        """Return a node's input rounded to its width, once for all nodes that read it at this width."""
        name = node.input[place]
        bits = self._widths.of(node.name)[1] if bits is None else bits
        if (name, bits) not in self._narrow:
            self._narrow[name, bits] = self._cut(name, bits)
        return self._narrow[name, bits]

    def _format(self, name: str, bits: int) -> Format:
        seen = self._ranges[name].by_channel()
        return format_for(seen.low, seen.high, bits, alike=True)

    def _cut(self, name: str, bits: int) -> Any:
        value = self._value(name)
        signed, integer, fraction = value.kif
        if int((signed + integer + fraction).max()) <= bits:
            return value
        form = self._format(name, bits)
        rounding = "TRN" if name in self._rounded else "RND"
        if self._widths.overflow == "grow":
            return value.quantize(signed, integer, form.fraction, "WRAP", rounding)
        spare = 1 if self._widths.overflow == "wrap" else 0
        mode = "WRAP" if spare else "SAT"
        return value.quantize(form.signed, form.integer + spare, form.fraction, mode, rounding)

    def half_a_step(self, node: onnx.NodeProto) -> Array | float:
        """Return what to add to a product's bias so that cutting off its sum rounds it.

        Every node between the product and the next must leave that as it is, and have no other reader.
        """
        name = node.output[0]
        while True:
            readers = self._readers.get(name, [])
            if len(readers) != 1:
                return 0.0
            reader = readers[0]
            if reader.op_type in PRODUCTS and not self.is_constant_name(reader.input[1]):
                return 0.0
            if reader.op_type in PRODUCTS and reader.input[0] == name:
                break
            if reader.op_type not in _KEEPS_ROUNDING or reader.input[0] != name:
                return 0.0
            name = reader.output[0]
        fraction = self._format(name, self._widths.of(reader.name)[1]).fraction
        self._rounded.add(node.output[0])
        return float(2.0 ** -(int(fraction.flat[0]) + 1))

    def is_constant_name(self, name: str) -> bool:
        """Whether a tensor is a stored constant."""
        return name in self._constants

    def weights(self, node: onnx.NodeProto, weights: Array, axis: int) -> Array:
        """Return a node's weights, rounded to its width."""
        return rounded_weights(weights, self._widths.of(node.name)[0], axis)

    def bias(self, node: onnx.NodeProto, bias: Array) -> Array:
        """Return a bias, rounded to a quarter of the step that its sum is rounded to."""
        seen = self._ranges[node.output[0]]
        largest = max(float(np.abs(seen.low).max()), float(np.abs(seen.high).max()), 2.0**-30)
        bits = self._widths.of(node.name)[1] + 2
        step = 2.0 ** (np.ceil(np.log2(largest)) - bits)
        return np.asarray(np.round(np.asarray(bias, np.float64) / step) * step)

    def table(self, node: onnx.NodeProto, function: Callable[[Array], Array]) -> Any:
        """Return a function of one number, looked up: what goes in addresses a table."""
        bits = min(_TABLE_BITS, self._widths.of(node.name)[1])
        value = self.narrow(node, bits=bits)
        form = self._format(node.output[0], self._widths.activations)
        # A table answers for what calibration never showed too.
        low, high = (float(e) for e in function(np.asarray([-1e3, 1e3])))
        reach = (
            max(abs(low), abs(high))
            if max(abs(low), abs(high)) <= 1
            else 2.0 ** int(form.integer.max())
        )
        integer = max(int(np.ceil(np.log2(max(reach, 2.0**-30)))), int(form.integer.max()))
        signed = int(min(low, high, float(self._ranges[node.output[0]].low.min())) < 0)
        fraction = self._widths.activations - signed - integer
        return value.apply(function).quantize(signed, integer, fraction, "SAT", "RND")


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _flat(form: Format) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    signed, integer, fraction = (
        tuple(int(v) for v in np.ravel(part)) for part in (form.signed, form.integer, form.fraction)
    )
    return signed, integer, fraction


def _port(name: str, value: Any, ending: Mapping[str, Any]) -> Port:
    return Port(name, tuple(value.shape[1:]), *_flat(Format(*value.kif)), **ending)


def _settled(ports: Sequence[Port], logic: Any) -> list[Port]:
    """Give output ports the formats that the finished program has."""
    from da4ml.types import minimal_kif

    forms, found, start = [minimal_kif(q) for q in logic.out_qint], [], 0
    for port in ports:
        own = forms[start : start + port.size]
        start += port.size
        signed, integer, fraction = (tuple(int(v) for v in part) for part in zip(*own, strict=True))
        found.append(replace(port, signed=signed, integer=integer, fraction=fraction))
    return found


def _gemm(own: _Tracer, node: onnx.NodeProto) -> Any:
    settings = _attributes(node)
    if settings.get("transA", 0):
        raise CandidateError(f"a Gemm with transA (node {node.name!r}) has no fixed-point form")
    weights = own.constant(node, 1)
    assert weights is not None
    weights = weights.T if settings.get("transB", 0) else weights
    bias = own.constant(node, 2)
    bias = np.zeros(weights.shape[1]) if bias is None else bias * settings.get("beta", 1.0)
    rounded = own.weights(node, weights * settings.get("alpha", 1.0), 1)
    return own.narrow(node) @ rounded + (own.bias(node, bias) + own.half_a_step(node))


def _matmul(own: _Tracer, node: onnx.NodeProto) -> Any:
    if own.is_constant(node.input[1]):
        weights = own.constant(node, 1)
        assert weights is not None
        if weights.ndim != 2:
            raise CandidateError(
                f"a MatMul with weights of {weights.ndim} axes (node {node.name!r})"
            )
        found = own.narrow(node) @ own.weights(node, weights, 1)
        half = own.half_a_step(node) if _biased_later(own, node) is False else 0.0
        return found + half if half else found
    if own.is_constant(node.input[0]):
        raise CandidateError(f"a MatMul with constants on its left (node {node.name!r})")
    one, other = own.narrow(node, 0), own.narrow(node, 1)
    batch = np.broadcast_shapes(one.shape[:-2], other.shape[:-2])
    left = np.broadcast_to(one._vars, (*batch, *one.shape[-2:]))
    right = np.broadcast_to(other._vars, (*batch, *other.shape[-2:]))
    parts = [(own._arrays(left[i]) @ own._arrays(right[i]))._vars for i in np.ndindex(*batch)]
    whole = np.array(parts, dtype=object).reshape(*batch, one.shape[-2], other.shape[-1])
    return own._arrays(whole)


def _biased_later(own: _Tracer, node: onnx.NodeProto) -> bool:
    """Whether a sum with a constant comes next."""
    return any(reader.op_type in ("Add", "Sub") for reader in own._readers.get(node.output[0], []))


def _conv(own: _Tracer, node: onnx.NodeProto) -> Any:
    """Unroll a convolution: each place is a product of its own by the same constants."""
    weights = own.constant(node, 1)
    assert weights is not None
    settings, groups = _attributes(node), int(_attributes(node).get("group", 1))
    given = own.narrow(node)
    spatial = given.ndim - 2
    kernel = weights.shape[2:]
    patches, places = _patches(given._vars, kernel, settings, spatial, 0.0)
    rounded = own.weights(node, weights, 0)
    bias = own.constant(node, 2)
    bias = np.zeros(len(weights)) if bias is None else bias
    added = own.bias(node, bias) + own.half_a_step(node)
    per_group, each = weights.shape[1], len(weights) // groups
    outputs = np.empty((len(weights), int(np.prod(places))), dtype=object)
    for group in range(groups):
        part = patches[:, group * per_group : (group + 1) * per_group]
        matrix = rounded[group * each : (group + 1) * each].reshape(each, -1).T
        for place in range(part.shape[0]):
            vector = own._arrays(part[place].reshape(1, -1), hwconf=own._hardware)
            outputs[group * each : (group + 1) * each, place] = np.ravel((vector @ matrix)._vars)
    shape = (1, len(weights), *places)
    return own._arrays(outputs.reshape(shape)) + added.reshape(1, -1, *([1] * spatial))


def _patches(
    values: Array, kernel: Sequence[int], settings: dict[str, Any], spatial: int, filler: float
) -> tuple[Array, tuple[int, ...]]:
    """Return what each window covers: `(places, channels, *kernel)`, and the places' shape."""
    strides = settings.get("strides", [1] * spatial)
    dilations = settings.get("dilations", [1] * spatial)
    sizes = values.shape[2:]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = _pads(settings, sizes, reach, strides)
    widths = [(0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)]
    padded = np.pad(values[0], widths, constant_values=filler)
    places = tuple(
        (n - r) // s + 1 for n, r, s in zip(padded.shape[1:], reach, strides, strict=True)
    )
    found = [
        padded[
            (
                slice(None),
                *(
                    slice(p * s, p * s + r, d)
                    for p, s, r, d in zip(place, strides, reach, dilations, strict=True)
                ),
            )
        ]
        for place in np.ndindex(*places)
    ]
    return np.array(found, dtype=object), places


def _pads(
    settings: dict[str, Any], sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> list[int]:
    """Return pads before all axes and behind all. Source: ONNX operators, Conv, auto_pad."""
    auto = settings.get("auto_pad", b"NOTSET").decode()
    if auto in ("NOTSET", "VALID"):
        return (
            list(settings.get("pads", [0] * 2 * len(sizes)))
            if auto == "NOTSET"
            else [0] * 2 * len(sizes)
        )
    before, behind = [], []
    for n, r, s in zip(sizes, reach, strides, strict=True):
        both = max(0, (-(-n // s) - 1) * s + r - n)
        less, more = both // 2, both - both // 2
        before.append(less if auto == "SAME_UPPER" else more)
        behind.append(more if auto == "SAME_UPPER" else less)
    return [*before, *behind]


def _max_pool(own: _Tracer, node: onnx.NodeProto) -> Any:
    settings = _attributes(node)
    if settings.get("ceil_mode", 0) or len(node.output) > 1:
        raise CandidateError(f"a MaxPool with ceil_mode or indices (node {node.name!r})")
    given, kernel = own.wide(node), settings["kernel_shape"]
    lowest = float(min(v.low for v in np.ravel(given._vars)))
    patches, places = _patches(given._vars, kernel, settings, len(kernel), lowest)
    flat = patches.reshape(*patches.shape[:2], -1)
    found = np.amax(own._arrays(flat, hwconf=own._hardware), axis=-1)  # (places, channels)
    return found.transpose().reshape(1, given.shape[1], *places)


def _average_pool(own: _Tracer, node: onnx.NodeProto) -> Any:
    settings = _attributes(node)
    if settings.get("ceil_mode", 0):
        raise CandidateError(f"an AveragePool with ceil_mode (node {node.name!r})")
    given, kernel = own.narrow(node), settings["kernel_shape"]
    if any(settings.get("pads", [0])) and not settings.get("count_include_pad", 0):
        raise CandidateError(f"an AveragePool that doesn't count its padding (node {node.name!r})")
    patches, places = _patches(given._vars, kernel, settings, len(kernel), 0.0)
    flat = own._arrays(patches.reshape(*patches.shape[:2], -1), hwconf=own._hardware)
    mean = np.sum(flat, axis=-1) * _share(own, node, int(np.prod(kernel)))
    return mean.transpose().reshape(1, given.shape[1], *places)


def _share(own: _Tracer, node: onnx.NodeProto, count: int) -> float:
    """One over a count, rounded to the weights' width."""
    return float(rounded_weights(np.array([[1 / count]]), own._widths.of(node.name)[0], 0)[0, 0])


def _mean(own: _Tracer, node: onnx.NodeProto) -> Any:
    given = own.narrow(node)
    if node.op_type == "GlobalAveragePool":
        axes, keep = tuple(range(2, given.ndim)), True
    else:
        settings = _attributes(node)
        listed = settings.get("axes") if "axes" in settings else own.constant(node, 1)
        axes = (
            tuple(int(a) % given.ndim for a in np.ravel(listed))
            if listed is not None
            else tuple(range(given.ndim))
        )
        keep = bool(settings.get("keepdims", 1))
    count = int(np.prod([given.shape[a] for a in axes]))
    kept = [a for a in range(given.ndim) if a not in axes]
    moved = given.transpose((*kept, *axes)).reshape(*[given.shape[a] for a in kept], count)
    total = np.sum(moved, axis=-1)
    shape = (
        [1 if a in axes else n for a, n in enumerate(given.shape)]
        if keep
        else [given.shape[a] for a in kept]
    )
    found = total if node.op_type == "ReduceSum" else total * _share(own, node, count)
    return found.reshape(*shape)


def _added(own: _Tracer, node: onnx.NodeProto) -> Any:
    places = [own.is_constant(name) for name in node.input]
    sign = -1.0 if node.op_type == "Sub" else 1.0
    if not any(places):
        one, other = np.broadcast_arrays(own.wide(node, 0)._vars, own.wide(node, 1)._vars)
        return (
            own._arrays(one) + own._arrays(other) * sign
            if sign > 0
            else own._arrays(one) - own._arrays(other)
        )
    place = places.index(True)
    constant = own.constant(node, place)
    assert constant is not None
    value = own.wide(node, 1 - place)
    added = own.bias(node, constant) * (sign if place else 1.0)
    value = value if place or sign > 0 else -value
    shape = np.broadcast_shapes(value.shape, added.shape)
    return own._arrays(np.broadcast_to(value._vars, shape)) + (
        np.broadcast_to(added, shape) + own.half_a_step(node)
    )


def _multiplied(own: _Tracer, node: onnx.NodeProto) -> Any:
    places = [own.is_constant(name) for name in node.input]
    if node.op_type == "Div" and not places[1]:
        raise CandidateError(f"a division by what isn't constant (node {node.name!r})")
    if not any(places):
        one, other = np.broadcast_arrays(own.narrow(node, 0)._vars, own.narrow(node, 1)._vars)
        return own._arrays(one) * own._arrays(other)
    place = places.index(True)
    factor = own.constant(node, place)
    assert factor is not None
    factor = 1.0 / factor if node.op_type == "Div" else factor
    value = own.narrow(node, 1 - place)
    shape = np.broadcast_shapes(value.shape, factor.shape)
    flat = np.broadcast_to(factor, shape).astype(np.float64)
    rounded = rounded_weights(flat.reshape(-1, 1), own._widths.of(node.name)[0], 0).reshape(shape)
    return own._arrays(np.broadcast_to(value._vars, shape)) * rounded


def _normalized(own: _Tracer, node: onnx.NodeProto) -> Any:
    scale, bias, mean, variance = (own.constant(node, i) for i in range(1, 5))
    assert scale is not None
    assert bias is not None
    assert mean is not None
    assert variance is not None
    factor = scale / np.sqrt(variance + _attributes(node).get("epsilon", 1e-5))
    shape = [1, -1, *([1] * (len(own._value(node.input[0]).shape) - 2))]
    bits = own._widths.of(node.name)[0]
    rounded = rounded_weights(factor.reshape(-1, 1), bits, 0).reshape(shape)
    added = own.bias(node, bias - mean * factor).reshape(shape)
    return own.narrow(node) * rounded + (added + own.half_a_step(node))


def _relu(own: _Tracer, node: onnx.NodeProto) -> Any:
    return own.wide(node).relu()


def _clip(own: _Tracer, node: onnx.NodeProto) -> Any:
    settings = _attributes(node)
    bounds = [own.constant(node, 1), own.constant(node, 2)]
    low, high = (
        settings.get(name) if bound is None else float(bound)
        for name, bound in zip(("min", "max"), bounds, strict=True)
    )
    value = own.narrow(node)
    step = 2.0 ** -float(value.kif[2].max())
    if low is not None:
        value = value.relu() if low == 0 else np.maximum(value, np.round(low / step) * step)
    return value if high is None else np.minimum(value, np.round(high / step) * step)


def _leaky(own: _Tracer, node: onnx.NodeProto) -> Any:
    value = own.narrow(node)
    slope = np.array([[_attributes(node).get("alpha", 0.01)]])
    rounded = float(rounded_weights(slope, own._widths.of(node.name)[0], 0)[0, 0])
    return np.maximum(value, value * rounded)


def _reshaped(own: _Tracer, node: onnx.NodeProto) -> Any:
    value = own.wide(node)
    shape = own._ranges[node.output[0]].low.shape
    return value.reshape(*shape)


def _transposed(own: _Tracer, node: onnx.NodeProto) -> Any:
    value = own.wide(node)
    return value.transpose(tuple(_attributes(node).get("perm", range(value.ndim)[::-1])))


def _joined(own: _Tracer, node: onnx.NodeProto) -> Any:
    parts = [
        np.asarray(own._value(name)) if own.is_constant(name) else own._value(name)._vars
        for name in node.input
    ]
    whole = np.concatenate(
        [np.asarray(p, dtype=object) for p in parts], axis=_attributes(node)["axis"]
    )
    return own._arrays(whole, hwconf=own._hardware)


def _sliced(own: _Tracer, node: onnx.NodeProto) -> Any:
    value = own.wide(node)
    starts, ends, axes, steps = (own.constant(node, i) for i in range(1, 5))
    assert starts is not None
    assert ends is not None
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones_like(starts) if steps is None else steps
    cut = [slice(None)] * value.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if step < 0 and end < -value.shape[int(axis)] else int(end)
        cut[int(axis)] = slice(int(start), stop, int(step))
    return value[tuple(cut)]


def _gathered(own: _Tracer, node: onnx.NodeProto) -> Any:
    indices = own.constant(node, 1)
    assert indices is not None
    axis = int(_attributes(node).get("axis", 0))
    return own._arrays(
        np.take(own.wide(node)._vars, indices.astype(np.int64), axis=axis), hwconf=own._hardware
    )


def _padded(own: _Tracer, node: onnx.NodeProto) -> Any:
    settings = _attributes(node)
    pads, filler = own.constant(node, 1), own.constant(node, 2)
    if settings.get("mode", b"constant") != b"constant" or pads is None or len(node.input) > 3:
        raise CandidateError(f"a Pad that isn't constant (node {node.name!r})")
    value = own.wide(node)
    half = len(pads) // 2
    widths = [(int(b), int(e)) for b, e in zip(pads[:half], pads[half:], strict=True)]
    with_what = 0.0 if filler is None else float(filler)
    return own._arrays(np.pad(value._vars, widths, constant_values=with_what), hwconf=own._hardware)


def _same(own: _Tracer, node: onnx.NodeProto) -> Any:
    return own.wide(node)


def _looked_up(function: Callable[[Array], Array]) -> Callable[[_Tracer, onnx.NodeProto], Any]:
    return lambda own, node: own.table(node, function)


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


_OPERATORS: Mapping[str, Callable[[_Tracer, onnx.NodeProto], Any]] = {
    "Add": _added,
    "AveragePool": _average_pool,
    "BatchNormalization": _normalized,
    "Cast": _same,
    "Clip": _clip,
    "Concat": _joined,
    "Conv": _conv,
    "Div": _multiplied,
    "Dropout": _same,
    "Flatten": _reshaped,
    "Gather": _gathered,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "Identity": _same,
    "LeakyRelu": _leaky,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _multiplied,
    "Pad": _padded,
    "ReduceMean": _mean,
    "ReduceSum": _mean,
    "Relu": _relu,
    "Reshape": _reshaped,
    "Sigmoid": _looked_up(_sigmoid),
    "Slice": _sliced,
    "Squeeze": _reshaped,
    "Sub": _added,
    "Tanh": _looked_up(np.tanh),
    "Transpose": _transposed,
    "Unsqueeze": _reshaped,
}
