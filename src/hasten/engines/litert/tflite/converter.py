"""Converter from ONNX to .tflite in float32, with images as (batch, height, width, channels)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.litert.tflite.graph import Graph, Node
from hasten.engines.litert.tflite.patterns import clip_limits
from hasten.engines.litert.tflite.writer import Writer

Layout = Literal["plain", "nhwc"]
"""Order of the axes: as in ONNX, or that of an image with its channels last."""

TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
POSITION = {axis: position for position, axis in enumerate(TO_NHWC)}
"""Position of each ONNX axis in an image with its channels last."""
FUSED = {(0.0, math.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}


Rule: TypeAlias = Callable[["Converter", Node], None]
"""Function that writes the operators of a node."""


class Converter:
    """Writer of a graph's operators, which records the layouts that each value exists in.

    Attributes:
        graph: Graph to convert.
        writer: Writer of the file.
        values: Tensors that hold each value, by its name in ONNX and by layout.
        to_quantize: Whether the file will be quantized to int8.
    """

    def __init__(self, graph: Graph, *, to_quantize: bool = False) -> None:
        self.graph, self.writer, self.to_quantize = graph, Writer(), to_quantize
        self.values: dict[str, dict[Layout, int]] = {}
        self._nodes: dict[str, Node] = {}
        self._inputs = []
        for name in graph.inputs:
            node = Node("input", name, (), (name,))
            dtype, shape = graph.dtype(name, node), graph.shape(name, node)
            tensor = self.writer.tensor(name, dtype, shape, open_batch=graph.open_batch)
            self._nodes[name], self.values[name] = node, {"plain": tensor}
            self._inputs.append((name, tensor))

    def finish(self) -> bytes:
        """Return the file's bytes.

        An output that another node reads too is copied first: after quantization, its other readers
        would otherwise get float where they expect int8.
        """
        outputs: list[tuple[str, int]] = []
        for public, value in self.graph.outputs:
            node = self._nodes.get(value) or Node("output", public, (), (value,))
            tensor = self.plain(value, node)
            taken = {index for _, index in (*self._inputs, *outputs)}
            if self.to_quantize and (tensor in taken or self.writer.reads(tensor)):
                shape, dtype = self.shape(value, node), self.graph.dtype(value, node)
                tensor = self.reshape(node, tensor, shape, suffix="output", dtype=dtype)
            outputs.append((public, tensor))
        return self.writer.finish(self._inputs, outputs)

    def shape(self, name: str, node: Node) -> tuple[int, ...]:
        """Return a value's shape in ONNX, which `node` needs."""
        return self.graph.shape(name, node)

    def constant(self, node: Node, position: int) -> Array:
        """Return a constant input.

        Raises:
            CandidateError: the input isn't constant, or isn't given.
        """
        array = self.graph.argument(node, position)
        if array is None:
            raise node.refused(f"its input {position} isn't given")
        return array

    def at_hand(self, name: str) -> dict[Layout, int]:
        """Return the tensors that hold a computed value, by layout."""
        return self.values.get(name, {})

    def plain(self, name: str, node: Node) -> int:
        """Return a tensor that holds a value, for `node`, with its axes as in ONNX."""
        if name in self.graph.constants:
            return self.writer.constant(self.graph.constants[name], f"{node.name}:{name}")
        held = self._held(name, node)
        if "plain" not in held:
            held["plain"] = self._turned(name, held["nhwc"], TO_NCHW, "plain", node)
        return held["plain"]

    def nhwc(self, name: str, node: Node) -> int:
        """Return a tensor that holds an image with its channels last.

        Raises:
            CandidateError: the value doesn't have four axes.
        """
        if len(self.shape(name, node)) != 4:
            raise node.refused("only images, which have four axes, are supported")
        if name in self.graph.constants:
            array = self.graph.constants[name].transpose(TO_NHWC)
            return self.writer.constant(array, f"{node.name}:{name}")
        held = self._held(name, node)
        if "nhwc" not in held:
            held["nhwc"] = self._turned(name, held["plain"], TO_NHWC, "nhwc", node)
        return held["nhwc"]

    def either(self, name: str, node: Node) -> tuple[int, Layout]:
        """Return a tensor that holds a value, with its channels last if there is such a one."""
        layout: Layout = "nhwc" if "nhwc" in self.at_hand(name) else "plain"
        return (self.nhwc if layout == "nhwc" else self.plain)(name, node), layout

    def _held(self, name: str, node: Node) -> dict[Layout, int]:
        if name not in self.values:
            raise node.refused(f"no node computes its input {name!r}")
        return self.values[name]

    def operands(self, node: Node, names: Sequence[str]) -> tuple[list[int], Layout]:
        """Return tensors that broadcast against each other, all in the same layout."""
        rank = max(len(self.shape(name, node)) for name in names)
        layout: Layout = "plain"
        if rank == 4 and any("nhwc" in self.at_hand(name) for name in names):
            layout = "nhwc"
        tensors = []
        for name in names:
            shape = self.shape(name, node)
            if name in self.graph.constants:
                array = self.graph.constants[name]
                if layout == "nhwc" and array.ndim:
                    array = array.reshape((1,) * (rank - array.ndim) + shape).transpose(TO_NHWC)
                tensors.append(self.writer.constant(array, f"{node.name}:{name}"))
            elif layout == "nhwc" and len(shape) == 4:
                tensors.append(self.nhwc(name, node))
            elif layout == "nhwc":
                whole = (1,) * (4 - len(shape)) + shape
                turned = [whole[axis] for axis in TO_NHWC]
                moves = _moves(whole, TO_NHWC)
                flat = self.plain(name, node)
                flat = self.reshape(node, flat, whole if moves else turned, suffix="broadcast")
                if moves:
                    flat = self.transpose(node, flat, TO_NHWC, turned, "broadcast")
                tensors.append(flat)
            else:
                tensors.append(self.plain(name, node))
        return tensors, layout

    def emit(
        self,
        node: Node,
        code: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        options: Any = None,
        *,
        suffix: str = "",
        dtype: Any = np.float32,
    ) -> int:
        """Write an operator with one output, named after its node, and return that tensor."""
        name = f"{node.name}:{suffix}" if suffix else node.name
        tensor = self.writer.tensor(name, np.dtype(dtype), shape)
        self.writer.operator(code, inputs, [tensor], options)
        return tensor

    def give(self, node: Node, tensor: int, layout: Layout = "plain", name: str = "") -> None:
        """Record which tensor holds a node's output."""
        name = name or node.outputs[0]
        self.values[name] = {layout: tensor}
        self._nodes[name] = node

    def elementwise(
        self,
        node: Node,
        code: str,
        inputs: Sequence[int],
        layout: Layout,
        options: Any = None,
        name: str = "",
    ) -> None:
        """Write an operator whose output has its shape in ONNX, and record it as `name`."""
        own = node.outputs[0]
        shape = self.laid_out(self.shape(own, node), layout)
        dtype = self.graph.dtype(own, node)
        self.give(node, self.emit(node, code, inputs, shape, options, dtype=dtype), layout, name)

    def fused(self, node: Node) -> tuple[int, str]:
        """Return the activation to fuse into a node, and the name of the value that results."""
        behind = self.graph.only_consumer(node.outputs[0])
        kinds = self.writer.schema.ActivationFunctionType
        if behind is not None and behind.op in ("Relu", "Clip"):
            kind = FUSED.get(clip_limits(self.graph, behind))
            if kind:
                return getattr(kinds, kind), behind.outputs[0]
        return kinds.NONE, node.outputs[0]

    def reshape(
        self,
        node: Node,
        tensor: int,
        shape: Sequence[int],
        *,
        suffix: str = "",
        dtype: Any = np.float32,
    ) -> int:
        """Return a tensor in another shape; an open first axis stays open."""
        wanted = np.array(shape, np.int32)
        if self.graph.open_batch and len(wanted):
            wanted[0] = -1
        options = self.writer.options("Reshape", newShape=[int(size) for size in wanted])
        sizes = self.writer.constant(wanted, f"{node.name}:shape")
        return self.emit(
            node, "RESHAPE", [tensor, sizes], shape, options, suffix=suffix, dtype=dtype
        )

    def transpose(
        self,
        node: Node,
        tensor: int,
        order: Sequence[int],
        shape: Sequence[int],
        suffix: str = "",
        dtype: Any = np.float32,
    ) -> int:
        """Return a tensor with its axes in another order; `shape` is the shape of the result."""
        axes = self.writer.constant(np.array(order, np.int32), f"{node.name}:order")
        options = self.writer.options("Transpose")
        return self.emit(
            node, "TRANSPOSE", [tensor, axes], shape, options, suffix=suffix, dtype=dtype
        )

    def laid_out(self, shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
        """Return a shape of ONNX in a layout's order."""
        return tuple(shape[axis] for axis in TO_NHWC) if layout == "nhwc" else tuple(shape)

    def slice(
        self,
        node: Node,
        tensor: int,
        shape: Sequence[int],
        begins: Sequence[int],
        ends: Sequence[int],
        strides: Sequence[int],
        cut: set[int],
        suffix: str = "",
    ) -> int:
        """Return a part of a tensor along the axes in `cut`, and all of it along the others."""
        uncut = sum(1 << axis for axis in range(len(shape)) if axis not in cut)
        options = self.writer.options("StridedSlice", beginMask=uncut, endMask=uncut)
        arrays = [
            self.weights(node, np.array(array, np.int32), name)
            for array, name in ((begins, "begins"), (ends, "ends"), (strides, "strides"))
        ]
        dtype = self.graph.dtype(node.inputs[0], node)
        return self.emit(
            node, "STRIDED_SLICE", [tensor, *arrays], shape, options, suffix=suffix, dtype=dtype
        )

    def weights(self, node: Node, array: Array, suffix: str = "weights") -> int:
        """Return a tensor that holds a node's own constants."""
        return self.writer.constant(array, f"{node.name}:{suffix}")

    def number(self, node: Node, value: float, suffix: str) -> int:
        """Return a tensor that holds a node's own constant number."""
        return self.weights(node, np.array(value, np.float32), suffix)

    def alias(self, name: str, node: Node) -> dict[Layout, int]:
        """Return the tensors that hold a value, for a node that passes it on."""
        self._nodes[node.outputs[0]] = self._nodes.get(name, node)
        return self.values[name] if name in self.values else {"plain": self.plain(name, node)}

    def _turned(
        self, name: str, tensor: int, order: tuple[int, ...], suffix: str, node: Node
    ) -> int:
        own, dtype = self._nodes[name], self.graph.dtype(name, node)
        before = self.laid_out(self.shape(name, node), "plain" if order == TO_NHWC else "nhwc")
        after = tuple(before[axis] for axis in order)
        if _moves(before, order):
            return self.transpose(own, tensor, order, after, suffix, dtype)
        return self.reshape(own, tensor, after, suffix=suffix, dtype=dtype)

    def flat(self, name: str, node: Node) -> int:
        """Return a tensor whose values lie in ONNX's order, whatever its shape."""
        if "plain" not in self.at_hand(name) and "nhwc" in self.at_hand(name):
            shape = self.laid_out(self.shape(name, node), "nhwc")
            if not _moves(shape, TO_NCHW):
                return self.values[name]["nhwc"]
        return self.plain(name, node)


def _moves(shape: Sequence[int], order: Sequence[int]) -> bool:
    """Whether another order of the axes moves values; axes of size 1 don't count."""
    kept = [axis for axis in order if shape[axis] != 1]
    return kept != sorted(kept)
