"""Quantize matrix products and LSTMs dynamically to int8 with ONNX Runtime's quantizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import onnx

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.words import in_float, listed
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.already_quantized import check_mostly_float, open_kinds
from hasten.passes.base import Selective, Skipped, Stage
from hasten.passes.block_quantization import plain, split_gemms
from hasten.passes.onnx_files import (
    check_nodes,
    graphs,
    inner_words,
    read_onnx,
    remove_unread,
    saturates,
    weights_of,
    write_onnx,
)
from hasten.passes.silence import first_line, silenced
from hasten.passes.upgrading import upgraded

_PRODUCTS, _RECURRENT = ("Gemm", "MatMul"), ("LSTM",)
"""Operators to quantize. Not Conv, since ONNX Runtime's ConvInteger is slower than float Conv, and neither
GRU nor RNN, for which it has no such kernel."""
_RESULTS = ("MatMulInteger", "DynamicQuantizeLSTM")
_SUFFIX = "_quant"
"""Ending that ONNX Runtime's quantizer appends to the names of nodes."""


@dataclass(frozen=True)
class DynamicQuantization(Selective):
    """Store the weights of matrix products and LSTMs as int8, and quantize activations at run time.

    This needs no calibration data. An activation has one scale for the whole batch, so an answer
    depends on the other samples of its batch: such a model is certified and served at batch 1.

    Attributes:
        per_channel: Whether weights have a scale per output channel, not one per tensor.
        reduce_range: Whether weights have 7 bits, for processors with neither VNNI nor AMX.
        keep_float: Names of ONNX nodes to leave in float.
        recurrent: Whether LSTMs are quantized too. Their errors go around with their states.

    Source: affine scheme r = S(q - Z), Jacob et al., arXiv:1712.05877, eq. 1.
    """

    stage: ClassVar[Stage | None] = "lossy"
    rank: ClassVar[int] = 50

    per_channel: bool = True
    reduce_range: bool = False
    keep_float: tuple[str, ...] = ()
    recurrent: bool = True

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield both kinds of scales, and LSTMs in float where there are other products.

        Nothing is yielded if convolutions, which stay in float, have more weights than what is quantized.
        """
        if target.family == "cuda":  # TensorRT lacks the operators of dynamic quantization
            return
        proto = read_onnx(model, weights=False)
        products, recurrent = (weights_of(proto, kinds) for kinds in (_PRODUCTS, _RECURRENT))
        if products + recurrent < weights_of(proto, ("Conv", "ConvTranspose")):
            return
        first = cls(reduce_range=saturates(target))
        yield first
        yield replace(first, per_channel=False)
        if products and recurrent:
            yield replace(first, recurrent=False)

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        proto = read_onnx(model)
        check_nodes(proto, self.keep_float)
        check_mostly_float(proto, self._kinds)
        names = self._names(proto)
        brought = _in_integers(proto)
        # ONNX Runtime's quantizer reads a file, in which nodes need names, and it renames each Gemm.
        proto = read_onnx(upgraded(model, calibration, workdir))
        split_gemms(proto, set(_with_weights(proto, ("Gemm",))))
        _part_weights(proto, set(names))
        named, raw = write_onnx(proto, model, workdir / "named.onnx"), workdir / "raw.onnx"
        try:
            with silenced():
                self._quantize(named, raw, names)
        except Exception as error:
            raise CandidateError(f"ONNX Runtime's quantizer failed: {first_line(error)}") from error
        result = onnx.load(str(raw))
        self._prove(_in_integers(result) - brought, len(names))
        _join_weights(result)
        for file in workdir.iterdir():
            file.unlink()
        return write_onnx(result, model, workdir / "quantized.onnx")

    def _names(self, proto: onnx.ModelProto) -> list[str]:
        """Return the names of the nodes to quantize.

        Raises:
            Skipped: there is none; the message says why.
        """
        found = _with_weights(proto, open_kinds(proto).intersection(self._kinds))
        odd = {node.name for node in proto.graph.node if node.op_type == "Gemm" and not plain(node)}
        names = [name for name in found if name not in self.keep_float and name not in odd]
        if not names:
            inner = "" if found else inner_words(proto, self._kinds, "matrix products and LSTMs")
            none = "there is no matrix product or LSTM with constant weights"
            raise Skipped(f"nothing to quantize: {inner or none}")
        types = {onnx.helper.tensor_dtype_to_np_dtype(found[name]).name for name in names}
        if "float32" not in types:
            raise Skipped(
                f"the model's weights are in {' and '.join(sorted(types))}, and this pass takes float32"
            )
        return [name for name in names if found[name] == onnx.TensorProto.FLOAT]

    def _prove(self, done: set[str], wanted: int) -> None:
        """Check that some nodes were quantized, and that those to keep in float weren't.

        Raises:
            CandidateError: one of these doesn't hold.
        """
        if not done:
            raise CandidateError(
                f"ONNX Runtime's quantizer left all {wanted} products and LSTMs in float"
            )
        for name in self.keep_float:
            if f"{name}{_SUFFIX}" in done:
                raise CandidateError(
                    f"ONNX Runtime's quantizer quantized {name!r} despite keep_float"
                )

    @property
    def _kinds(self) -> tuple[str, ...]:
        return (*_PRODUCTS, *_RECURRENT) if self.recurrent else _PRODUCTS

    def _quantize(self, model: Model, path: Path, names: list[str]) -> None:
        from onnxruntime import quantization as ort

        ort.quantize_dynamic(
            model.path,
            path,
            op_types_to_quantize=list(self._kinds),
            per_channel=self.per_channel,
            reduce_range=self.reduce_range,
            weight_type=ort.QuantType.QInt8,
            nodes_to_quantize=names,
            nodes_to_exclude=list(self.keep_float),
            use_external_data_format=bool(model.files),
        )

    def words(self) -> str:
        settings = listed(
            "per channel" if self.per_channel else "per tensor",
            "7-bit weights" if self.reduce_range else "",
            in_float(self.keep_float),
            "" if self.recurrent else "LSTMs in float",
        )
        return f"dynamic int8 (ONNX Runtime, {settings})"


def _with_weights(proto: onnx.ModelProto, kinds: Collection[str]) -> dict[str, int]:
    """Return the ONNX type of the weights of nodes of some kinds whose weights are constant, by the node's name.

    A vector isn't among them: it would have a scale for each of its numbers, which their sum can't be multiplied by.
    """
    types = {
        tensor.name: tensor.data_type for tensor in proto.graph.initializer if len(tensor.dims) > 1
    }
    return {
        node.name: types[node.input[1]]
        for node in proto.graph.node
        if node.op_type in kinds and types.keys() >= {*_weights(node)}
    }


def _weights(node: onnx.NodeProto) -> list[str]:
    """Return the names of what a product or an LSTM reads as weights."""
    return [*node.input[1 : 3 if node.op_type in _RECURRENT else 2]]


def _in_integers(proto: onnx.ModelProto) -> set[str]:
    """Return the names of the nodes that compute in integers."""
    return {node.name for node in proto.graph.node if node.op_type in _RESULTS}


def _part_weights(proto: onnx.ModelProto, names: set[str]) -> None:
    """Give each LSTM that is quantized weights of its own.

    ONNX Runtime's quantizer turns the shape and the order of an LSTM's weights in place, once for each
    LSTM that reads them, and then whatever else reads them gets wrong ones.
    """
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    reads = Counter(
        name for graph in graphs(proto.graph) for node in graph.node for name in node.input
    )
    parted: set[str] = set()
    for number, node in enumerate(proto.graph.node):
        if node.op_type not in _RECURRENT or node.name not in names:
            continue
        for place in (1, 2):
            name = node.input[place]
            if reads[name] > 1:
                own = onnx.TensorProto()
                own.CopyFrom(stored[name])
                own.name = node.input[place] = f"{name}/{number}/{place}"
                proto.graph.initializer.append(own)
                parted.add(name)
    remove_unread(proto, parted)


def _join_weights(proto: onnx.ModelProto) -> None:
    """Store once what several quantized LSTMs read."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    first: dict[bytes, str] = {}
    for node in proto.graph.node:
        if node.op_type != "DynamicQuantizeLSTM":
            continue
        for place, name in enumerate(node.input):
            if name in stored:
                unnamed = onnx.TensorProto()
                unnamed.CopyFrom(stored[name])
                unnamed.ClearField("name")
                node.input[place] = first.setdefault(unnamed.SerializeToString(), name)
    remove_unread(proto, stored)
