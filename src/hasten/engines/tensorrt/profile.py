"""Checks for nodes of an ONNX graph that TensorRT refuses or misreads, before its parser runs.

The rules are what the ONNX parser and the builder of TensorRT for RTX 1.7 do, found by running
them; the tests run them again, graph by graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.tensorrt.parts import PARTS
from hasten.errors import CandidateError, named

if TYPE_CHECKING:
    import onnx

_OPERATORS = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization BlackmanWindow Cast CastLike Ceil Celu Clip Concat
    Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear
    Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements
    GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
    GridSample GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax
    Identity If InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool
    Mean MeanVarianceNormalization Min Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow
    QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform
    RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    ReverseSequence RotaryEmbedding Round STFT Scan Scatter ScatterElements ScatterND
    Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth
    Split Sqrt Squeeze Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose
    Trilu Unsqueeze Upsample Where Xor
    """
OPERATORS = frozenset(_OPERATORS.split())
"""ONNX operators that TensorRT has. The parser accepts five more, which fail later: nothing runs
NonMaxSuppression, and the plugins for CausalConvWithState, LinearAttention, NonZero and RoiAlign
aren't included."""

_FOREIGN = {"com.microsoft": frozenset({"Gelu", "QuantizeLinear", "DequantizeLinear"})}
"""Operators of other domains that mean what ONNX's do; the parser goes by the name alone."""

_TAKE_UINT8 = frozenset({"Cast", "DequantizeLinear", "Equal", "Identity"})
_TURING = "sm75"
_FLOAT8 = frozenset(name for name, part in PARTS.items() if part.float8)
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Violation:
    """Node that breaks a rule.

    Attributes:
        node: Name of the node, or of its first output if it has none; empty if the graph itself
            breaks the rule.
        operator: Operator of the node.
        why: Explanation in words.
    """

    node: str
    operator: str
    why: str

    def __str__(self) -> str:
        return f"{self.operator} (node {self.node!r}): {self.why}" if self.node else self.why


def violations(model: Path, part: str = "sm80") -> tuple[Violation, ...]:
    """Return what TensorRT refuses in a graph: its values first, then its nodes in order.

    Two kinds of faults aren't found: missing attributes of single operators, or sizes that are
    inputs, which the parser reports; and shapes and types for which a fused Attention has no
    kernel, which only the builder knows.

    Args:
        model: Path of the ONNX file.
        part: GPU to build for, such as "sm80"; empty to skip the checks that depend on the GPU.

    Raises:
        CandidateError: the file can't be read.
    """
    graph = _read(model)
    refused = [v for node in graph.nodes if not graph.calls(node) for v in _refused(node, part)]
    return tuple(dict.fromkeys((*_values(graph), *refused)))


def alterations(model: Path) -> tuple[Violation, ...]:
    """Return the nodes that TensorRT accepts silently but computes otherwise than ONNX says.

    Raises:
        CandidateError: the file can't be read.
    """
    graph = _read(model)
    found = [v for node in graph.nodes for v in _altered(node)]
    for name, kind in graph.given:
        if kind == _type("DOUBLE"):
            found.append(Violation("", "", f"{name!r} is float64, which would become float32"))
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class _Node:
    """Node, with the scope in which its inputs are looked up."""

    proto: onnx.NodeProto
    scope: _Scope

    @property
    def operator(self) -> str:
        return str(self.proto.op_type)

    def says(self, why: str) -> Violation:
        name = self.proto.name or next(filter(None, self.proto.output), "")
        return Violation(str(name), self.operator, why)

    def attribute(self, name: str) -> int | None:
        """Return an integer attribute; None if it isn't set."""
        return next((int(a.i) for a in self.proto.attribute if a.name == name), None)

    def reads(self, position: int) -> str:
        """Return the name of an input; "" if there is none at this position."""
        return str(self.proto.input[position]) if len(self.proto.input) > position else ""


@dataclass
class _Scope:
    """Known facts about the values of a graph and of the graphs around it.

    Attributes:
        folder: Folder that external data lies in.
        constants: Constant tensors, by name.
        makers: Nodes that compute values, by the value's name.
        types: Element types of values, by name.
        sizes: Shapes of values by name, with None for open dimensions.
    """

    folder: Path
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    makers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)

    def within(self) -> _Scope:
        constants, makers = dict(self.constants), dict(self.makers)
        return _Scope(self.folder, constants, makers, dict(self.types), dict(self.sizes))

    def value(self, name: str) -> Array | None:
        """Return a constant's value; None for a value that isn't constant, or is computed."""
        import onnx

        tensor = self.constants.get(name)
        if tensor is None:
            return None
        try:
            return onnx.numpy_helper.to_array(tensor, str(self.folder))
        except Exception as error:
            raise CandidateError(f"can't read {name!r}: {named(error)}") from error

    def settled(self, name: str) -> bool:
        """Whether a value depends on constants alone."""
        left, seen = [name], set()
        while left:
            one = left.pop()
            if one in self.constants or one in seen:
                continue
            seen.add(one)
            maker = self.makers.get(one)
            if maker is None:
                return False
            left += filter(None, maker.input)
        return True


@dataclass
class _FileGraph:
    """All nodes of a file, including those of subgraphs and functions.

    Attributes:
        nodes: Nodes in order.
        given: Names and element types of inputs, outputs and initializers.
        ranks: Names and numbers of dimensions of inputs and outputs.
        inputs: Names of the inputs.
        functions: Domains and names of the file's own operators.
    """

    nodes: list[_Node] = field(default_factory=list)
    given: list[tuple[str, int]] = field(default_factory=list)
    ranks: list[tuple[str, int]] = field(default_factory=list)
    inputs: set[str] = field(default_factory=set)
    functions: frozenset[tuple[str, str]] = frozenset()

    def calls(self, node: _Node) -> bool:
        """Whether a node is a call of one of the file's own operators."""
        return (str(node.proto.domain), node.operator) in self.functions

    @cached_property
    def readers(self) -> Mapping[str, Sequence[tuple[_Node, int]]]:
        """Nodes that read each value, with the position of that input, by the value's name."""
        found: dict[str, list[tuple[_Node, int]]] = {}
        for node in self.nodes:
            for position, name in enumerate(node.proto.input):
                found.setdefault(name, []).append((node, position))
        return found


def _type(name: str) -> int:
    import onnx

    return int(onnx.TensorProto.DataType.Value(name))


def _type_name(kind: int) -> str:
    import onnx

    return str(onnx.helper.tensor_dtype_to_string(kind)).removeprefix("TensorProto.").lower()


def _taken() -> frozenset[int]:
    """Return the element types that TensorRT takes."""
    names = "FLOAT FLOAT16 BFLOAT16 DOUBLE INT8 INT32 INT64 BOOL UINT8 INT4 FLOAT8E4M3FN FLOAT4E2M1"
    return frozenset(map(_type, names.split()))


def _read(path: Path) -> _FileGraph:
    import onnx

    try:
        proto = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False))
    except Exception as error:
        raise CandidateError(f"can't read {path.name}: {named(error)}") from error
    graph = _FileGraph(functions=frozenset((f.domain, f.name) for f in proto.functions))
    _walk(proto.graph, _Scope(path.parent), graph)
    for function in proto.functions:
        scope = _Scope(
            path.parent, makers={name: node for node in function.node for name in node.output}
        )
        graph.nodes += [_Node(node, scope) for node in function.node]
    return graph


def _walk(proto: onnx.GraphProto, around: _Scope, graph: _FileGraph) -> None:
    """Add a graph's nodes, and those of its subgraphs."""
    scope = around.within()
    for tensor in proto.initializer:
        scope.constants[tensor.name] = tensor
        scope.types[tensor.name] = tensor.data_type
        scope.sizes[tensor.name] = tuple(tensor.dims)
        graph.given.append((tensor.name, tensor.data_type))
    for value in (*proto.input, *proto.value_info, *proto.output):
        kind = value.type.tensor_type
        scope.types.setdefault(value.name, kind.elem_type)
        if kind.HasField("shape"):
            sizes = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
            scope.sizes.setdefault(value.name, sizes)
    for value in (*proto.input, *proto.output):
        graph.given.append((value.name, value.type.tensor_type.elem_type))
        graph.ranks.append((value.name, len(scope.sizes.get(value.name, ()))))
    graph.inputs |= {value.name for value in proto.input} - set(scope.constants)
    for node in proto.node:
        for name in node.output:
            scope.makers[name] = node
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                scope.constants[node.output[0]] = attribute.t
                scope.sizes[node.output[0]] = tuple(attribute.t.dims)
                graph.given.append((node.output[0], attribute.t.data_type))
    for node in proto.node:
        graph.nodes.append(_Node(node, scope))
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    _walk(inner, scope, graph)


def _values(graph: _FileGraph) -> Iterator[Violation]:
    """Yield what is refused in inputs, outputs, constants, at the node that reads or gives it."""
    taken, quantized = _taken(), _type("INT8")
    for name, rank in graph.ranks:
        if rank > _MOST_DIMENSIONS:
            yield Violation("", "", f"{name!r} has {rank} dimensions, but at most 8 are allowed")
    for name, kind in graph.given:
        readers = graph.readers.get(name, ())
        if kind and kind not in taken:
            why = f"{name!r} is {_type_name(kind)}, a type that isn't supported"
            yield readers[0][0].says(why) if readers else Violation("", "", why)
        elif kind == _type("UINT8") and name in graph.inputs:
            for node, _ in readers:
                if node.operator not in _TAKE_UINT8:
                    yield node.says(
                        f"it doesn't take uint8, the type of {name!r}: cast it to float first"
                    )
        elif kind == quantized and readers and name in readers[0][0].scope.constants:
            for node, position in readers:
                if not _unpacks(node, position):
                    yield node.says(
                        f"the int8 constant {name!r} is read by a node that doesn't dequantize"
                    )


def _unpacks(node: _Node, position: int) -> bool:
    """Whether a node may read an int8 constant here: to dequantize it, or as a zero point."""
    if node.operator == "QuantizeLinear":
        return position == 2
    if node.operator != "DequantizeLinear":
        return False
    return position == 2 or (position == 0 and node.scope.sizes.get(node.reads(0)) != ())


def _refused(node: _Node, part: str) -> Iterator[Violation]:
    """Yield what is refused in one node."""
    proto = node.proto
    if node.operator not in OPERATORS:
        yield node.says("the operator isn't supported")
        return
    if node.operator == "Cast":
        yield from _cast(node)
    if node.operator in ("QuantizeLinear", "DequantizeLinear"):
        yield from _pair(node)
    kinds = {node.scope.types.get(name, 0) for name in (*proto.input, *proto.output)}
    if part == _TURING:
        yield from _turing(node, kinds)
    if _type("FLOAT8E4M3FN") in kinds and part and part not in _FLOAT8:
        yield node.says(f"{part} has no float8")


def _cast(node: _Node) -> Iterator[Violation]:
    to = node.attribute("to") or 0
    if to == _type("UINT8"):
        yield node.says("uint8 is allowed only for inputs and outputs, not in between")
    elif to not in _taken():
        yield node.says(f"{_type_name(to)} isn't supported")


def _pair(node: _Node) -> Iterator[Violation]:
    """Yield what is refused in a quantizer or dequantizer."""
    scope, data, scale, zero = node.scope, *map(node.reads, range(3))
    scales, zeros = scope.value(scale), scope.value(zero) if zero else None
    kind = scope.types.get(data, 0)
    maker = scope.makers.get(data)
    stored = maker is None or maker.op_type == "Constant"
    if node.operator == "DequantizeLinear" and kind == _type("UINT8") and stored:
        yield node.says("it dequantizes uint8, but only int8 around 0 is allowed")
    if node.operator == "DequantizeLinear" and kind == _type("INT32"):
        yield node.says("it dequantizes int32, as in a quantized bias: leave biases in float")
    if node.operator == "QuantizeLinear" and kind in (_type("INT32"), _type("INT64")):
        yield node.says(f"it quantizes {_type_name(kind)} instead of float")
    to = node.attribute("output_dtype")
    if to and to not in _taken() - {_type("UINT8")}:
        yield node.says(f"quantization to {_type_name(to)} isn't supported")
    if scales is not None and not np.all(np.asarray(scales, np.float64) > 0):
        yield node.says("a scale isn't above 0")
    if zeros is not None and np.any(np.asarray(zeros, np.float64)):
        yield node.says("its zero point isn't 0")
    if zero and not scope.settled(zero):
        yield node.says("its zero point is computed, but only a constant is allowed")
    if scales is not None and scales.size != 1 and not node.attribute("block_size"):
        yield from _channels(node, scales, zeros)


def _channels(node: _Node, scales: Array, zeros: Array | None) -> Iterator[Violation]:
    """Yield what is refused in scales per channel."""
    if zeros is not None and zeros.size != scales.size:
        yield node.says(f"it has {scales.size} scales and {zeros.size} zero points")
    sizes = node.scope.sizes.get(node.reads(0))
    if sizes is None:
        return
    given = node.attribute("axis")
    axis = 1 if given is None else given
    axis += len(sizes) if axis < 0 else 0
    if not 0 <= axis < len(sizes):
        yield node.says(f"its axis is {given}, but the input has {len(sizes)} dimensions")
    elif sizes[axis] is not None and sizes[axis] != scales.size:
        yield node.says(f"it has {scales.size} scales for {sizes[axis]} channels")


def _turing(node: _Node, kinds: set[int]) -> Iterator[Violation]:
    """Yield what Turing GPUs lack."""
    products = ("Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN")
    if _type("FLOAT") in kinds and node.operator in products:
        yield node.says("sm75 has no matrix product in float32: use half precision")
    kernel = node.scope.sizes.get(node.reads(1)) or ()
    if _type("FLOAT") in kinds and node.operator == "Conv" and len(kernel) == 5:
        yield node.says("sm75 has no three-dimensional convolution in float32")
    for kind in ("BFLOAT16", "INT4"):
        if _type(kind) in kinds:
            yield node.says(f"sm75 has no {kind.lower()}")


def _altered(node: _Node) -> Iterator[Violation]:
    """Yield what TensorRT would compute otherwise than ONNX says."""
    domain = node.proto.domain
    known = node.operator in _FOREIGN.get(domain, ())
    if domain not in ("", "ai.onnx") and node.operator in OPERATORS and not known:
        yield node.says(
            f"it would be taken for ONNX's own operator: its domain, {domain!r}, is ignored"
        )
    if node.operator == "Cast" and node.attribute("to") == _type("DOUBLE"):
        yield node.says("it casts to float64, which would become float32")
    if node.operator == "QuantizeLinear" and _wraps(node):
        yield node.says(
            "it quantizes to uint8, which would become int8: values above 127 are clipped"
        )


def _wraps(node: _Node) -> bool:
    """Whether a quantizer gives uint8, by its zero point's type, its attribute or the default."""
    zero = node.reads(2)
    if zero:
        return node.scope.types.get(zero) == _type("UINT8")
    return node.attribute("output_dtype") in (None, 0)
