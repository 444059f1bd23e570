"""Conversion of an ONNX graph to a Keras network of HGQ2's layers, with trainable bit widths.

Source: Sun et al., HGQ: High Granularity Quantization, arXiv:2405.00645.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from hasten.core.tensors import Array
from hasten.engines.fpga.program import Epilogue
from hasten.engines.fpga.ranges import ElementRange
from hasten.engines.fpga.values import attributes
from hasten.errors import CandidateError


@dataclass
class Trainable:
    """Network that can be trained.

    Attributes:
        network: Keras model, channels last.
        shift: Binary places by which each element of the input is smaller in the network, in the
            shape of the model's input without an axis for samples.
        output: Name of the model's output that the network gives, up to a softmax at the end.
        epilogue: Softmax at the end that the network leaves out: "softmax", "log_softmax" or
            "none".
    """

    network: Any
    shift: Array
    output: str
    epilogue: Epilogue

    def given(self, inputs: Array) -> Array:
        """Return the network's inputs for the model's inputs, `(n, *shape)`."""
        scaled = inputs.astype(np.float32) * np.exp2(-self.shift).astype(np.float32)
        return channels_last(scaled)


@dataclass(frozen=True)
class _Value:
    """Tensor of the network that is still to be multiplied by a scale and added to an offset.

    Attributes:
        tensor: Keras tensor, channels last.
        scale: Factor of each channel, `(C,)`, or of each element of a vector; None for 1.
        offset: Summand of each channel, `(C,)`, or of each element of a vector; None for 0.
    """

    tensor: Any
    scale: Array | None = None
    offset: Array | None = None


def trainable(proto: onnx.ModelProto, ranges: Mapping[str, ElementRange], bits: int) -> Trainable:
    """Build the network with the graph's weights.

    Args:
        proto: Simplified float graph with all shapes settled, batch 1, one input and one output.
        ranges: Ranges of every tensor, by name.
        bits: Width of all numbers at the start of training.

    Raises:
        CandidateError: an operator can't be trained for few bits (the message names its node), or
            there are several inputs or outputs.
    """
    return _Builder(proto, ranges, bits).built()


def channels_last(array: Array) -> Array:
    """Return a batch with its channels last."""
    return np.moveaxis(array, 1, -1) if array.ndim > 2 else array


class _Builder:
    def __init__(
        self, proto: onnx.ModelProto, ranges: Mapping[str, ElementRange], bits: int
    ) -> None:
        self._graph, self._ranges, self._bits = proto.graph, ranges, bits
        self._constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        self._values: dict[str, _Value] = {}
        self._weights: list[tuple[Any, Array, Array]] = []

    def built(self) -> Trainable:
        """Build the network."""
        import keras
        from hgq.config import LayerConfigScope, QuantizerConfigScope

        inputs = [v for v in self._graph.input if v.name not in self._constants]
        if len(inputs) != 1 or len(self._graph.output) != 1:
            raise CandidateError(
                "only a network with one input and one output can be trained for few bits"
            )
        (given,) = inputs
        epilogue: Epilogue = "none"
        seen = self._ranges[given.name].by_channel()
        largest = np.maximum(np.maximum(np.abs(seen.low), np.abs(seen.high)), 2.0**-30)
        shift = np.ceil(np.log2(largest))[0]
        tensor = keras.Input(channels_last(shift[None])[0].shape)
        scale = np.exp2(shift) if shift.ndim == 1 else np.exp2(shift.reshape(len(shift), -1)[:, 0])
        self._values[given.name] = _Value(tensor, scale)
        result = self._graph.output[0].name
        with (
            QuantizerConfigScope(
                place="weight", overflow_mode="SAT_SYM", round_mode="RND", b0=self._bits
            ),
            QuantizerConfigScope(
                place="datalane", overflow_mode="WRAP", round_mode="RND", f0=self._bits - 1
            ),
            LayerConfigScope(enable_ebops=True, beta0=0.0),
        ):
            for node in self._graph.node:
                if node.op_type in ("Softmax", "LogSoftmax") and node.output[0] == result:
                    epilogue = "softmax" if node.op_type == "Softmax" else "log_softmax"
                    self._values[result] = self._values[node.input[0]]
                    continue
                self._apply(node)
        network = keras.Model(tensor, self._plain(result, self._graph.node[-1]))
        for layer, weights, bias in self._weights:
            layer.kernel.assign(weights)
            layer.bias.assign(bias)
        return Trainable(network, shift, result, epilogue)

    def _apply(self, node: onnx.NodeProto) -> None:
        make = _LAYERS.get(node.op_type)
        if make is None or not node.input or node.input[0] not in self._values:
            raise CandidateError(
                f"the operator {node.op_type} (node {node.name!r}) can't be trained for few "
                f"bits; these operators can: {', '.join(sorted(_LAYERS))}"
            )
        self._values[node.output[0]] = make(self, node)

    def _plain(self, name: str, node: onnx.NodeProto) -> Any:
        """Return a tensor that has no scale or offset left to apply."""
        value = self._values[name]
        if value.scale is not None or value.offset is not None:
            raise CandidateError(
                f"the scale before the operator {node.op_type} (node {node.name!r}) can't be "
                "merged into a product"
            )
        return value.tensor

    def constant(self, node: onnx.NodeProto, place: int) -> Array | None:
        """Return a constant input as float64; None where it isn't given."""
        if place >= len(node.input) or not node.input[place]:
            return None
        found = self._constants.get(node.input[place])
        if found is None:
            raise CandidateError(
                f"the operator {node.op_type} (node {node.name!r}) can't be trained for few bits: "
                f"{node.input[place]!r} isn't constant"
            )
        return found.astype(np.float64)

    def product(self, node: onnx.NodeProto) -> Any:
        """Return the layer for a Gemm or a MatMul."""
        from hgq.layers import QDense

        settings = attributes(node)
        weights = self.constant(node, 1)
        assert weights is not None
        if settings.get("transA", 0) or weights.ndim != 2:
            raise CandidateError(f"this product (node {node.name!r}) can't be trained for few bits")
        weights = (weights.T if settings.get("transB", 0) else weights) * settings.get("alpha", 1.0)
        bias = self.constant(node, 2) if node.op_type == "Gemm" else None
        bias = np.zeros(weights.shape[1]) if bias is None else bias * settings.get("beta", 1.0)
        value = self._values[node.input[0]]
        if value.offset is not None:
            bias = bias + value.offset @ weights
        if value.scale is not None:
            weights = value.scale[:, None] * weights
        layer = QDense(weights.shape[1])
        tensor = layer(value.tensor)
        self._weights.append((layer, weights, np.broadcast_to(bias, (weights.shape[1],))))
        return _Value(tensor)

    def convolution(self, node: onnx.NodeProto) -> Any:
        """Return the layer for a two-dimensional convolution."""
        from hgq.layers import QConv2D

        settings, weights = attributes(node), self.constant(node, 1)
        assert weights is not None
        if weights.ndim != 4 or settings.get("group", 1) != 1:
            raise CandidateError(f"this Conv (node {node.name!r}) can't be trained for few bits")
        strides = tuple(settings.get("strides", (1, 1)))
        dilations = tuple(settings.get("dilations", (1, 1)))
        pads = list(settings.get("pads", (0, 0, 0, 0)))
        padding = self._padding(node, settings, pads, weights.shape[2:], strides, dilations)
        bias = self.constant(node, 2)
        bias = np.zeros(len(weights)) if bias is None else bias
        value = self._values[node.input[0]]
        if value.offset is not None:
            if padding == "same":
                raise CandidateError(
                    f"the offset before a padded Conv (node {node.name!r}) can't be merged into "
                    "its weights"
                )
            bias = bias + np.einsum("oihw,i->o", weights, value.offset)
        if value.scale is not None:
            weights = weights * value.scale[None, :, None, None]
        layer = QConv2D(
            len(weights),
            weights.shape[2:],
            strides=strides,
            dilation_rate=dilations,
            padding=padding,
        )
        tensor = layer(value.tensor)
        self._weights.append((layer, weights.transpose(2, 3, 1, 0), bias))
        return _Value(tensor)

    def _padding(
        self,
        node: onnx.NodeProto,
        settings: dict[str, Any],
        pads: list[int],
        kernel: tuple[int, ...],
        strides: tuple[int, ...],
        dilations: tuple[int, ...],
    ) -> str:
        auto = settings.get("auto_pad", b"NOTSET")
        if auto == b"SAME_UPPER":
            return "same"
        if auto in (b"NOTSET", b"VALID") and not any(pads):
            return "valid"
        reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        same = [r // 2 for r in reach] + [r - r // 2 for r in reach]
        if auto == b"NOTSET" and strides == (1, 1) and pads == same:
            return "same"
        raise CandidateError(
            f"the padding of this {node.op_type} (node {node.name!r}) can't be trained for few bits"
        )

    def affine(self, node: onnx.NodeProto) -> Any:
        """Return a value with its scale and offset by channel, for the next product to apply."""
        value, settings = self._values[node.input[0]], attributes(node)
        shape = self._ranges[node.input[0]].low.shape
        scale, offset = np.ones(shape[1]), np.zeros(shape[1])
        if node.op_type == "BatchNormalization":
            gamma, beta, mean, variance = (self.constant(node, i) for i in range(1, 5))
            assert gamma is not None
            assert beta is not None
            assert mean is not None
            assert variance is not None
            scale = gamma / np.sqrt(variance + settings.get("epsilon", 1e-5))
            offset = beta - mean * scale
        else:
            constant = self.constant(node, 1)
            assert constant is not None
            spread = np.broadcast_to(constant, shape)[0].reshape(shape[1], -1)
            if not (spread == spread[:, :1]).all():
                raise CandidateError(
                    f"the constant of {node.op_type} (node {node.name!r}) differs within a channel"
                )
            by_channel = spread[:, 0]
            if node.op_type in ("Mul", "Div"):
                scale = by_channel if node.op_type == "Mul" else 1 / by_channel
            else:
                offset = by_channel if node.op_type == "Add" else -by_channel
        before = np.ones_like(scale) if value.scale is None else value.scale
        moved = np.zeros_like(scale) if value.offset is None else value.offset
        return _Value(value.tensor, before * scale, moved * scale + offset)

    def rectified(self, node: onnx.NodeProto) -> Any:
        """Return the layer for a ReLU."""
        import keras

        return _Value(keras.layers.ReLU()(self._plain(node.input[0], node)))

    def pooled(self, node: onnx.NodeProto) -> Any:
        """Return the layer for a pooling over windows."""
        import hgq.layers

        settings = attributes(node)
        kernel = tuple(settings["kernel_shape"])
        strides = tuple(settings.get("strides", (1,) * len(kernel)))
        pads = list(settings.get("pads", (0,) * 2 * len(kernel)))
        padded = any(pads) or settings.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
        if len(kernel) != 2 or padded or settings.get("ceil_mode", 0):
            raise CandidateError(
                f"this {node.op_type} (node {node.name!r}) can't be trained for few bits"
            )
        kind = hgq.layers.QMaxPool2D if node.op_type == "MaxPool" else hgq.layers.QAvgPool2D
        value = self._values[node.input[0]]
        positive = value.scale is not None and bool((value.scale > 0).all())
        if node.op_type == "MaxPool" and value.offset is None and positive:
            # A positive scale commutes with the maximum.
            return _Value(kind(kernel, strides)(value.tensor), value.scale)
        return _Value(kind(kernel, strides)(self._plain(node.input[0], node)))

    def flattened(self, node: onnx.NodeProto) -> Any:
        """Return the layer for a Flatten (or a Reshape that is one), in the model's order."""
        import keras

        before = self._ranges[node.input[0]].low.shape
        after = self._ranges[node.output[0]].low.shape
        if after != (1, int(np.prod(before))):
            raise CandidateError(f"this {node.op_type} (node {node.name!r}) isn't a Flatten")
        value = self._values[node.input[0]]
        tensor = value.tensor
        if len(before) > 2:
            tensor = keras.layers.Flatten()(keras.ops.moveaxis(tensor, -1, 1))
        each = int(np.prod(before[2:])) if len(before) > 2 else 1
        return _Value(
            tensor,
            None if value.scale is None else np.repeat(value.scale, each),
            None if value.offset is None else np.repeat(value.offset, each),
        )

    def kept(self, node: onnx.NodeProto) -> Any:
        """Return the input, for an operator that does nothing."""
        return self._values[node.input[0]]


_LAYERS: Mapping[str, Callable[[_Builder, onnx.NodeProto], Any]] = {
    "Add": _Builder.affine,
    "AveragePool": _Builder.pooled,
    "BatchNormalization": _Builder.affine,
    "Conv": _Builder.convolution,
    "Div": _Builder.affine,
    "Dropout": _Builder.kept,
    "Flatten": _Builder.flattened,
    "Gemm": _Builder.product,
    "Identity": _Builder.kept,
    "MatMul": _Builder.product,
    "MaxPool": _Builder.pooled,
    "Mul": _Builder.affine,
    "Relu": _Builder.rectified,
    "Reshape": _Builder.flattened,
    "Sub": _Builder.affine,
}
