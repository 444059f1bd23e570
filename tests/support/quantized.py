"""Small graphs of bytes: float graphs as text, with a QuantizeLinear and a DequantizeLinear around each value."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from tests.support.plans import answers

from hasten.core.tensors import Array, TensorSpec
from hasten.engines.compiled.lowering import lower
from hasten.engines.compiled.plan import Plan

_SUMS = ("Conv", "Gemm", "MatMul", "ConvTranspose", "Add")
_LAYERS = ("Conv", "Gemm", "MatMul", "ConvTranspose")


def ran(model: onnx.ModelProto, given: Mapping[str, Array]) -> dict[str, Array]:
    """Return ONNX Runtime's answers, each operator computed as it stands."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(given)), strict=True))


def drawn(model: onnx.ModelProto, seed: int) -> dict[str, Array]:
    """Return a random request of a model."""
    rng = np.random.default_rng(seed)
    given = {}
    for one in model.graph.input:
        kind = one.type.tensor_type
        shape = [size.dim_value for size in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        floats = rng.standard_normal(shape)
        given[one.name] = (floats if dtype.kind == "f" else rng.integers(0, 100, shape)).astype(
            dtype
        )
    return given


class _Inserting:
    """A float graph that becomes one of bytes."""

    def __init__(
        self,
        model: onnx.ModelProto,
        signed: bool,
        wide: bool,
        weights: str,
        words: Collection[str] | None = (),
    ) -> None:
        self.model, self.signed, self.wide, self.weights = model, signed, wide, weights
        self.words = words
        if words is None or words:
            model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        self.constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.scales: dict[str, float] = {}

    def keep(self, name: str, array: Any) -> str:
        if name not in self.constants:
            self.constants[name] = np.asarray(array)
            self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def pair(self, name: str, source: str, array: Array) -> str:
        """Round a value to bytes of its range and back; return the name of that."""
        low, high = min(0.0, float(array.min())), max(0.0, float(array.max()))
        wide = self.words is None or name in self.words
        most = 65535 if wide else 255
        scale = np.float32(max(high - low, 1e-6) / most)
        zero = min(most, max(0, round(-low / float(scale))))
        kinds = {False: (np.uint8, np.int8), True: (np.uint16, np.int16)}[wide]
        self.keep(name + "_scale", scale)
        self.keep(name + "_zero", kinds[self.signed](zero - (most + 1) // 2 * self.signed))
        self.scales[name + "_real"] = float(scale)
        quantized = [source, name + "_scale", name + "_zero"]
        domain = "com.microsoft" if wide else ""
        self.nodes.append(
            helper.make_node("QuantizeLinear", quantized, [name + "_byte"], domain=domain)
        )
        return self.real(name)

    def real(self, name: str, output: str = "") -> str:
        made = [name + "_byte", name + "_scale", name + "_zero"]
        output = output or name + "_real"
        domain = self.nodes[-1].domain
        self.nodes.append(helper.make_node("DequantizeLinear", made, [output], domain=domain))
        return output

    def weight(self, name: str, axis: int) -> str:
        """Round a constant to 8 bits; return the name of its numbers, with the scale of each channel."""
        if name + "_scale" in self.constants:
            return name + "_real"
        array = self.constants[name]
        rest = tuple(at for at in range(array.ndim) if at != axis)
        most = np.abs(array).max(rest) if self.wide else np.abs(array).max()
        scale = np.float32(np.maximum(most, 1e-9) / 127)
        along = [-1 if at == axis else 1 for at in range(array.ndim)]
        whole = np.rint(array / (scale.reshape(along) if self.wide else scale))
        shift = 128 if self.weights == "uint8" else 0
        self.keep(name + "_byte", (whole + shift).astype(self.weights))
        self.keep(name + "_scale", scale)
        self.keep(name + "_zero", np.full(scale.shape, shift, self.weights))
        made = [name + "_byte", name + "_scale", name + "_zero"]
        self.nodes.append(helper.make_node("DequantizeLinear", made, [name + "_real"]))
        if self.wide:
            self.nodes[-1].attribute.append(helper.make_attribute("axis", axis))
        return name + "_real"

    def bias(self, name: str, value: str, weight: str) -> str:
        """Round a bias to 32 bits in the unit of the products."""
        scale = np.float32(self.scales[value] * self.constants[weight + "_scale"])
        made = f"{name}_of_{value}"
        self.keep(made + "_byte", np.rint(self.constants[name] / scale).astype(np.int32))
        self.keep(made + "_scale", scale)
        inputs = [made + "_byte", made + "_scale"]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [made + "_real"]))
        if self.wide:
            self.nodes[-1].attribute.append(helper.make_attribute("axis", 0))
        return made + "_real"


def quantized(
    text: str,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    signed: bool = False,
    wide: bool = True,
    weights: str = "int8",
    biases: bool = True,
    floats: Collection[str] = (),
    words: Collection[str] | None = (),
    seed: int = 0,
) -> onnx.ModelProto:
    """Return the graph of bytes of a float graph with random weights, as quantizers write it.

    Args:
        text: The graph as ONNX text.
        shapes: Shapes of the weights.
        signed: Whether activations are int8.
        wide: Whether weights have a scale for each channel.
        weights: Type of the weights; uint8 has its zero at 128.
        biases: Whether biases are rounded too.
        floats: Values that stay as they are.
        words: Values of 16 bits, by Microsoft's operators; None for all.
        seed: Of the weights and of the request whose ranges are taken.
    """
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for name, shape in shapes.items():
        spread = 1 / math.sqrt(max(1, math.prod(shape[1:])))
        array = (rng.standard_normal(shape) * spread).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return inserted(
        model,
        signed=signed,
        wide=wide,
        weights=weights,
        biases=biases,
        floats=floats,
        words=words,
        seed=seed,
    )


def inserted(
    model: onnx.ModelProto,
    *,
    signed: bool = False,
    wide: bool = True,
    weights: str = "int8",
    biases: bool = True,
    floats: Collection[str] = (),
    words: Collection[str] | None = (),
    seed: int = 0,
) -> onnx.ModelProto:
    """Return a float graph with its values rounded to bytes; see `quantized`."""
    graph = model.graph
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    made = [name for node in graph.node for name in node.output if name]
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    given = drawn(model, seed)
    values = {**given, **ran(probe, given)}
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    outputs = {one.name for one in graph.output}
    to = _Inserting(model, signed, wide, weights, words)
    real: dict[str, str] = {}
    for one in graph.input:
        if values[one.name].dtype == np.float32 and one.name not in floats:
            real[one.name] = to.pair(one.name, one.name, values[one.name])
    old = list(graph.node)
    for node in old:
        inputs = list(node.input)
        for place, name in enumerate(inputs):
            inputs[place] = real.get(name, name)
        if node.op_type in _LAYERS and node.input[1] in to.constants:
            axis = 0
            if node.op_type == "MatMul" or (
                node.op_type == "Gemm"
                and not any(a.name == "transB" and a.i for a in node.attribute)
            ):
                axis = 1
            if node.op_type == "ConvTranspose":
                axis = 1
            inputs[1] = to.weight(node.input[1], axis)
            if len(inputs) > 2 and biases and inputs[0] in to.scales:
                inputs[2] = to.bias(node.input[2], inputs[0], node.input[1])
        del node.input[:]
        node.input.extend(inputs)
        to.nodes.append(node)
        for place, name in enumerate(node.output):
            if not name or values[name].dtype != np.float32 or name in floats:
                continue
            cut = node.op_type in _SUMS and readers.get(name, []) in (["Relu"], ["Clip"])
            if cut and name not in outputs:
                continue
            source = name
            if name in outputs:
                source = name + "_sum"
                node.output[place] = source
            real[name] = to.pair(name, source, values[name])
            if name in outputs:
                to.nodes[-1].output[0] = name
                to.scales[name] = to.scales[real[name]]
                real[name] = name
    del graph.node[:]
    graph.node.extend(to.nodes)
    onnx.checker.check_model(model)
    return model


def lowered(model: onnx.ModelProto, folder: Path) -> tuple[Plan, bytes]:
    """Return a model's plan, checked, and its weights."""
    onnx.save(model, folder / "bytes.onnx")
    request = []
    for one in model.graph.input:
        kind = one.type.tensor_type
        dtype = str(np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)))
        sizes = tuple(size.dim_value for size in kind.shape.dim)
        request.append(TensorSpec(one.name, dtype, sizes))
    outputs = tuple(TensorSpec(one.name, "float32", ()) for one in model.graph.output)
    plan, weights = lower(folder / "bytes.onnx", tuple(request), outputs)
    plan.check(len(weights))
    return plan, weights


def _constants(plan: Plan, weights: bytes) -> dict[str, Array]:
    return {
        name: plan.constant(name, weights)
        for name, tensor in plan.tensors.items()
        if tensor.offset is not None
    }


def assert_exact(plan: Plan, weights: bytes, given: Mapping[str, Array]) -> dict[str, Array]:
    """Assert that each operation of bytes gives what numpy does; return what each tensor holds.

    Args:
        plan: Plan of one row.
        weights: Its constants.
        given: Inputs by the names of the plan's tensors.
    """
    made = list(dict.fromkeys(name for one in plan.operations for name in one.writes))
    shapes = tuple((1, plan.tensor(name).size) for name in made)
    opened = replace(plan, outputs=tuple(made), shapes=shapes)
    opened.check(len(weights))
    found = answers(opened, weights, given)
    known = _constants(plan, weights)
    known |= {name: array.ravel() for name, array in given.items()} | found
    for operation in plan.operations:
        if hasattr(operation, "compute"):
            (name,) = operation.writes
            assert operation.compute(known).tobytes() == found[name].tobytes(), operation
    return found


def computed(plan: Plan, weights: bytes, given: Mapping[str, Array]) -> dict[str, Array]:
    """Return what each tensor holds, as numpy computes it.

    Args:
        plan: Plan of one row, of operations of bytes alone.
        weights: Its constants.
        given: Inputs by the names of the plan's tensors.
    """
    known = _constants(plan, weights) | {name: array.ravel() for name, array in given.items()}
    for operation in plan.operations:
        known[operation.writes[0]] = operation.compute(known)  # type: ignore[attr-defined]
    return known


def steps_apart(
    model: onnx.ModelProto, folder: Path, *, compiled: bool = True
) -> tuple[Plan, dict[str, float]]:
    """Compare a model's plan with ONNX Runtime on a random request, and its C with numpy.

    Args:
        model: A model.
        folder: Folder for its file.
        compiled: Whether C is compiled; numpy's answers are compared otherwise.

    Returns:
        The plan, and for each output how far its farthest number is from ONNX Runtime's: in steps of
        its range's 255th.
    """
    plan, weights = lowered(model, folder)
    given = drawn(model, 1)
    wanted = ran(model, given)
    named = dict(zip(plan.inputs, given.values(), strict=True))
    found = (assert_exact if compiled else computed)(plan, weights, named)
    apart = {}
    for tensor, shape, (name, array) in zip(plan.outputs, plan.shapes, wanted.items(), strict=True):
        assert shape == array.shape, (name, shape, array.shape)
        assert plan.tensor(tensor).dtype == str(array.dtype), name
        numbers = array.astype(np.float64)
        step = 1.0 if array.dtype.kind in "iu" else max(float(np.ptp(numbers)), 1e-9) / 255
        apart[name] = float(np.abs(found[tensor] - numbers.ravel()).max() / step)
    return plan, apart
