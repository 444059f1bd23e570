"""Give single layers of a quantized model activations of 16 bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.core.words import in_words
from hasten.engines.compiled.ir.reader import as_onnx
from hasten.engines.origins import node_names, origin
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.base import Pass, Skipped
from hasten.passes.onnx_files import COMPUTE_OPS, check_nodes, read_onnx, write_onnx

_OPSET = 21
"""Operators of this version round to 16 bits; before it, Microsoft's do."""
_PLAIN = frozenset({"axis", "saturate"})
"""Attributes that mean nothing for one range of integers; another one may state a type or blocks."""
_STEPS = 257
"""Steps of 16 bits in a step of 8: the same range has 65,535 in place of 255."""


@dataclass(frozen=True)
class WordLayers(Pass):
    """Give layers of a quantized model activations of 16 bits in place of 8; their weights keep 8 bits.

    What such a layer reads is rounded to 65,536 levels of the same range. So is what that is made of without
    a product in between, such as both tensors of a residual's sum. Other layers that read the same numbers,
    and sums and functions between others, get them rounded to 8 bits, as before.

    Attributes:
        nodes: Names of the layers' ONNX nodes in the original model.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx", "openvino"})

    nodes: tuple[str, ...] = ()

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield nothing, since the search chooses the layers."""
        yield from ()

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        if model.origin is None:
            raise CandidateError(
                "can't give layers 16-bit activations: the original model is missing"
            )
        if not self.nodes:
            raise Skipped("nothing gets 16-bit activations: no layer is named")
        original = read_onnx(model.origin, weights=False)
        check_nodes(original, self.nodes)
        proto = read_onnx(model) if model.format == "onnx" else _from_ir(model)
        names, wanted = node_names(original.graph), set(self.nodes)
        layers = [
            node
            for node in proto.graph.node
            if node.op_type in COMPUTE_OPS and origin(node.name, names) in wanted
        ]
        if not _Roundings(proto).widen(layers):
            raise CandidateError(f"none of the {len(self.nodes)} layers reads 8 bits")
        return write_onnx(proto, replace(model, files=()), workdir / "mixed.onnx")

    def words(self) -> str:
        return in_words(self.nodes)


def _from_ir(model: Model) -> onnx.ModelProto:
    """Return the graph of an IR in ONNX's operators, for one request, each node under a name of its own."""
    proto = as_onnx(model.path, model.request, model.outputs)
    for value, spec in zip(proto.graph.output, model.outputs, strict=True):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        value.CopyFrom(helper.make_tensor_value_info(spec.name, kind, list(spec.shape)))
    known: set[str] = set()
    for number, node in enumerate(proto.graph.node):
        if node.name in known:
            node.name = f"{node.name}/{number}"
        known.add(node.name)
    return proto


@dataclass
class _Roundings:
    """Roundings of activations in a graph, which is changed in place.

    Attributes:
        model: Model with the graph.
        _wide: First results of nodes that read 16 bits: chosen layers, and what lies between these and roundings.
    """

    model: onnx.ModelProto
    _makers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    _readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    _constants: dict[str, Array] = field(default_factory=dict)
    _wide: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self._constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        for node in graph.node:
            self._makers.update(dict.fromkeys(filter(None, node.output), node))
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)

    def widen(self, layers: Sequence[onnx.NodeProto]) -> int:
        """Round what layers read to 16 bits; return how many roundings there are.

        Args:
            layers: Convolutions and matrix products of the graph.
        """
        left = [one for layer in layers for name in layer.input[:2] for one in self._before(name)]
        wide: dict[str, onnx.NodeProto] = {}
        while left:
            rounding = left.pop()
            if rounding.output[0] not in wide:
                wide[rounding.output[0]] = rounding
                left += self._before(rounding.input[0])
        self._wide.update(layer.output[0] for layer in layers)
        behind: dict[str, list[onnx.NodeProto]] = {}
        for rounding in wide.values():
            for back in self._readers[rounding.output[0]]:
                behind[back.output[0]] = self._narrowed(rounding, back)
        for rounding in wide.values():
            for node in (rounding, *self._readers[rounding.output[0]]):
                self._to_words(node)
        self._write(wide, behind)
        return len(wide)

    def _before(self, name: str) -> Iterator[onnx.NodeProto]:
        """Yield the roundings to 8 bits that a tensor is made of, without a product in between."""
        left, seen = [name], set()
        while left:
            node = self._makers.get(left.pop())
            if node is None or node.op_type in COMPUTE_OPS or node.output[0] in seen:
                continue
            seen.add(node.output[0])
            if node.op_type != "DequantizeLinear":
                self._wide.add(node.output[0])
                left += node.input
                continue
            rounding = self._makers.get(node.input[0])
            if rounding is not None and self._rounds(rounding):
                yield rounding

    def _rounds(self, node: onnx.NodeProto) -> bool:
        """Whether a node rounds to 8 bits what only changes back read."""
        given = {value.name for value in self.model.graph.output}
        if node.op_type != "QuantizeLinear" or len(node.input) < 3 or node.output[0] in given:
            return False
        backs = self._readers.get(node.output[0], [])
        if not all(one.name in _PLAIN for each in (node, *backs) for one in each.attribute):
            return False
        pairs = [one.input[1:3] for one in (node, *backs)]
        known = all(name in self._constants for pair in pairs for name in pair)
        return (
            known
            and all(one.op_type == "DequantizeLinear" and len(one.input) > 2 for one in backs)
            and all(self._constants[scale].dtype == np.float32 for scale, _ in pairs)
            and self._constants[node.input[2]].dtype in (np.uint8, np.int8)
        )

    def _narrowed(self, rounding: onnx.NodeProto, back: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Round the numbers to 8 bits again for other readers; return the nodes that do."""
        real = back.output[0]
        others = [one for one in self._readers.get(real, []) if one.output[0] not in self._wide]
        if not others:
            return []
        made = []
        for node, suffix in ((rounding, "byte"), (back, "narrow")):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name, copy.output[0] = f"{back.name}:{suffix}", f"{real}:{suffix}"
            made.append(copy)
        made[0].input[0], made[1].input[0] = real, made[0].output[0]
        for one in others:
            for place, name in enumerate(one.input):
                if name == real:
                    one.input[place] = made[1].output[0]
        return made

    def _to_words(self, node: onnx.NodeProto) -> None:
        """Give a rounding, or the way back, the scale and the zero of 16 bits over the same range."""
        scale, zero = (self._constants[name] for name in node.input[1:3])
        lowest = np.iinfo(zero.dtype).min
        below = zero.astype(np.int64) - lowest
        if scale.size > 1:  # one range for all channels: 16 bits are enough
            low, high = (-below * scale).min(), ((255 - below) * scale).max()
            step = np.float32((high - low) / 65535)
            whole = np.uint16(np.clip(np.rint(-low / step), 0, 65535))
        else:
            step = np.float32(scale.reshape(-1)[0] / _STEPS)
            whole = np.uint16(below.reshape(-1)[0] * _STEPS)
        for place, number in ((1, np.asarray(step)), (2, np.asarray(whole))):
            name = f"{node.output[0]}:words:{place}"
            self.model.graph.initializer.append(numpy_helper.from_array(number, name))
            node.input[place] = name
        del node.attribute[:]
        if self._opset() < _OPSET:
            node.domain = "com.microsoft"

    def _opset(self) -> int:
        imports = self.model.opset_import
        return next((one.version for one in imports if one.domain in ("", "ai.onnx")), 1)

    def _write(
        self, wide: dict[str, onnx.NodeProto], behind: dict[str, list[onnx.NodeProto]]
    ) -> None:
        """Insert nodes behind those that make some tensors, and forget the types of 8 bits."""
        graph = self.model.graph
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            kept = onnx.NodeProto()
            kept.CopyFrom(node)
            nodes += [kept, *behind.get(node.output[0], [])]
        del graph.node[:]
        graph.node.extend(nodes)
        infos = [one for one in graph.value_info if one.name not in wide]
        del graph.value_info[:]
        graph.value_info.extend(infos)
        if self._opset() < _OPSET and not any(
            one.domain == "com.microsoft" for one in self.model.opset_import
        ):
            self.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
