"""Read and write ONNX files, and inspect their graphs for passes."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.inliner
import onnx.numpy_helper

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.missing_numbers import ROUNDED
from hasten.errors import CandidateError, InputError
from hasten.passes.silence import first_line

IR_VERSION = 10
PROTOBUF_LIMIT_BYTES = 2**31 - 2**24
"""Largest size of weights in a file, which must stay below 2 GiB with 16 MiB for the graph."""

PIXEL_NODES = "hasten/pixels/"
"""Begin of the names of nodes that normalize pixels."""

COMPUTE_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that take nearly all of a network's time, and that int8 speeds up."""
_MOVING = frozenset(
    [
        "Add",
        "ArrayFeatureExtractor",
        "Cast",
        "Concat",
        "Div",
        "Flatten",
        "Gather",
        "Identity",
        "Mul",
        "Neg",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
    ]
)
"""Operators that hand NaN on, number by number."""
_ROUNDING = frozenset({"DynamicQuantizeLSTM", "DynamicQuantizeLinear", "QuantizeLinear"})
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_KINDS_OF_CONSTANTS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
"""Attributes of Constant that state numbers, and their dtypes."""


def read_onnx(model: Model, *, weights: bool = True) -> onnx.ModelProto:
    """Load a model, with its external data if `weights` is set, and with its own functions' nodes in place of calls.

    Nodes without a name get the name of their first output, as everywhere in hasten. Constants of numbers are tensors.

    Raises:
        CandidateError: the file can't be read.
    """
    try:
        proto = onnx.load(str(model.path), load_external_data=weights)
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
    except Exception as error:
        raise CandidateError(f"can't read {model.path.name}: {first_line(error)}") from error
    name_nodes(proto)
    _constants_as_tensors(proto)
    return proto


def _constants_as_tensors(proto: onnx.ModelProto) -> None:
    """State constants of numbers as tensors: onnxslim makes doubles of a node's `value_float` and `value_floats`."""
    for node in (node for graph in graphs(proto.graph) for node in graph.node):
        if node.op_type != "Constant" or node.domain:
            continue
        for attribute in node.attribute:
            if attribute.name in _KINDS_OF_CONSTANTS:
                kind = _KINDS_OF_CONSTANTS[attribute.name]
                array = np.array(onnx.helper.get_attribute_value(attribute), kind)
                stated = onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(array))
                attribute.CopyFrom(stated)


def has_functions(model: Model) -> bool:
    """Whether a model's file has functions of its own, which `read_onnx` puts in the place of their calls."""
    return bool(onnx.load(str(model.path), load_external_data=False).functions)


def name_nodes(proto: onnx.ModelProto) -> None:
    """Give nodes without a name the name of their first output."""
    for node in proto.graph.node:
        node.name = node.name or next(filter(None, node.output), "")


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and the graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from graphs(inner)


def op_counts(proto: onnx.ModelProto) -> Counter[str]:
    """Count the nodes of each operator, in inner graphs too."""
    return Counter(node.op_type for graph in graphs(proto.graph) for node in graph.node)


def remove_unread(proto: onnx.ModelProto, names: Iterable[str]) -> None:
    """Remove those of some initializers that nothing reads; files of IR version 3 list them as inputs too."""
    every = [*graphs(proto.graph)]
    read = {name for graph in every for node in graph.node for name in node.input}
    read |= {one.name for graph in every for one in graph.output}
    unread = set(names) - read
    unread &= {one.name for one in proto.graph.initializer}
    for values in (proto.graph.initializer, proto.graph.input):
        for number in reversed(range(len(values))):
            if values[number].name in unread:
                del values[number]


def check_nodes(proto: onnx.ModelProto, names: Iterable[str]) -> None:
    """Check that nodes to leave in float exist.

    Raises:
        InputError: a node doesn't exist; names the node and those with similar names.
    """
    known = [node.name for node in proto.graph.node if node.name]
    for name in names:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.5))
            hint = f"did you mean {near}?" if near else f"it has {', '.join(known[:3])}, ..."
            raise InputError(f"keep_float: the model has no node {name!r}; {hint}")


def pixel_nodes(proto: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that normalize uint8 pixels, which `folding` put in front.

    Quantizers must leave them alone: channels of unlike deviations share no scale of 8 bits.
    """
    return [node.name for node in proto.graph.node if node.name.startswith(PIXEL_NODES)]


def compute_nodes(proto: onnx.ModelProto, keep_float: Iterable[str]) -> list[str]:
    """Return the names of convolutions and matrix products that may be quantized: none that are already."""
    kept = set(keep_float)
    done = {node.output[0] for node in quantized_nodes(proto.graph)}
    return [
        node.name
        for node in proto.graph.node
        if node.op_type in COMPUTE_OPS
        and not (node.name and node.name in kept)
        and node.output[0] not in done
    ]


def inner_words(proto: onnx.ModelProto, operators: Iterable[str], noun: str) -> str:
    """Return in words which operators hold inner graphs with nodes of these types; empty if none does.

    Args:
        proto: Graph that has no such node outside inner graphs.
        operators: Types of the nodes.
        noun: Name of the nodes for people, in the plural.
    """
    kinds = frozenset(operators)
    holders = {
        node.op_type
        for node in proto.graph.node
        for attribute in node.attribute
        for body in (attribute.g, *attribute.graphs)
        for graph in graphs(body)
        if any(inner.op_type in kinds for inner in graph.node)
    }
    if not holders:
        return ""
    return f"the model's {noun} are inside {' and '.join(sorted(holders))}, where none is quantized"


def nothing_words(proto: onnx.ModelProto) -> str:
    """Return in words why no convolution or matrix product of a graph is to be quantized."""
    inner = ""
    if not compute_nodes(proto, ()):
        inner = inner_words(proto, COMPUTE_OPS, "convolutions and matrix products")
    none = "there is no convolution or matrix product to quantize"
    return f"nothing to quantize: {inner or none}"


def quantized_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the convolutions and matrix products of a graph whose weights, or both inputs, are quantized.

    An input that is rounded for the sake of another product doesn't make a product a quantized one.
    """
    stored = {tensor.name for tensor in graph.initializer}
    stored |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    opened = {
        node.output[0]: node.input[0] in stored
        for node in graph.node
        if node.op_type == "DequantizeLinear"
    }
    return [
        node
        for node in graph.node
        if node.op_type in COMPUTE_OPS
        and (
            any(opened.get(name) for name in node.input[:2])
            or all(name in opened for name in node.input[:2])
        )
    ]


def write_onnx(proto: onnx.ModelProto, source: Model, path: Path) -> Model:
    """Write a graph at IR version 10, or a newer one if its operator set needs it, and check it.

    Args:
        proto: New graph, with its weights in memory.
        source: Model that the graph was made from, of any format; if its weights lie outside the file, the new
            ones do too.
        path: Path of the new file.

    Returns:
        Model like the source, with the new file.

    Raises:
        CandidateError: ONNX's checker rejects the graph.
        InputError: the file can't be written: no space, no permission.
    """
    needed = onnx.helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True)
    proto.ir_version = max(IR_VERSION, needed)
    if _hides_nan(proto, source):
        proto.metadata_props.add(key=ROUNDED, value="activations")
    weight_bytes = sum(
        len(tensor.raw_data) for graph in graphs(proto.graph) for tensor in graph.initializer
    )
    external = bool(source.files) or weight_bytes > PROTOBUF_LIMIT_BYTES
    data = path.with_name(path.name + ".data")
    try:
        onnx.save_model(proto, str(path), save_as_external_data=external, location=data.name)
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}") from error
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        raise CandidateError(f"ONNX's checker rejects {path.name}: {first_line(error)}") from error
    return replace(source, format="onnx", path=path, files=(data,) if data.exists() else ())


def _hides_nan(proto: onnx.ModelProto, source: Model) -> bool:
    """Whether a graph rounds what its source has in floats, and doesn't say so yet or look for NaN itself."""
    said = any(one.key == ROUNDED for one in proto.metadata_props)
    return not said and _roundings(proto) > _roundings_of(source) and not _asks_for_nan(proto)


def _roundings(proto: onnx.ModelProto) -> int:
    """Return the number of nodes that round activations, of which NaN becomes an ordinary number."""
    stored = {tensor.name for graph in graphs(proto.graph) for tensor in graph.initializer}
    return sum(
        node.op_type in _ROUNDING and node.input[0] not in stored
        for graph in graphs(proto.graph)
        for node in graph.node
    )


def _roundings_of(source: Model) -> int:
    """Return the number of such nodes in the model that a graph was made from."""
    if source.format != "onnx" or not source.path.exists():
        return 0
    return _roundings(onnx.load(str(source.path), load_external_data=False))


def _asks_for_nan(proto: onnx.ModelProto) -> bool:
    """Whether a graph looks for NaN in its inputs, as one that replaces it does; `x == x` is true except for NaN.

    What torch's exporter writes behind the Softmax of an attention doesn't count, nor what a graph inside looks for.
    """
    given = {one.name for one in proto.graph.input}
    for node in proto.graph.node:
        if not given.intersection(node.input):
            continue
        if node.op_type == "IsNaN" or (node.op_type == "Equal" and len({*node.input}) == 1):
            return True
        if node.op_type in _MOVING:
            given.update(node.output)
    return False


def is_transformer(proto: onnx.ModelProto) -> bool:
    """Return whether a graph has attention: a Softmax, and a MatMul of two activations."""
    constants = {tensor.name for tensor in proto.graph.initializer} | {
        name for node in proto.graph.node if node.op_type == "Constant" for name in node.output
    }
    ops = op_counts(proto)
    fused = any(ops[name] for name in ("Attention", "MultiHeadAttention"))
    mixes = any(
        node.op_type == "MatMul" and not constants.intersection(node.input)
        for node in proto.graph.node
    )
    return fused or (mixes and ops["Softmax"] > 0)


def saturates(target: Target) -> bool:
    """Return whether products of uint8 and int8 overflow on a CPU unless weights have 7 bits.

    Without VNNI or AMX, an x86-64 CPU sums two such products in 16 bits. The dot products of ARM, and the
    other supported devices, have arithmetic that doesn't overflow like that.
    """
    return target.family == "host" and not any(
        "vnni" in name or name in ("amx_int8", "asimddp") for name in target.isa
    )


def constant_sizes(proto: onnx.ModelProto) -> dict[str, int]:
    """Return the number of elements of each constant of a graph by its name."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in proto.graph.initializer}
    sizes |= {
        node.output[0]: math.prod(attribute.t.dims)
        for node in proto.graph.node
        for attribute in node.attribute
        if node.op_type == "Constant" and attribute.name == "value"
    }
    return sizes


def weights_of(proto: onnx.ModelProto, operators: Iterable[str]) -> int:
    """Return how many constant weights operators of these types read, each once.

    These are the second input, and in recurrent operators the third too, which their states meet.
    """
    kinds = frozenset(operators)
    sizes = constant_sizes(proto)
    read = {
        name
        for node in proto.graph.node
        if node.op_type in kinds
        for name in node.input[1 : 3 if node.op_type in _RECURRENT else 2]
    }
    return sum(sizes[name] for name in read & sizes.keys())
