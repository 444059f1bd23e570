"""Quantize the weights of matrix products in small blocks, for ONNX Runtime's MatMulNBits."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import onnx

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.words import in_float, listed
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.base import Selective, Skipped, Stage
from hasten.passes.onnx_files import (
    check_nodes,
    op_counts,
    read_onnx,
    remove_unread,
    write_onnx,
)
from hasten.passes.silence import first_line, silenced

_WORTH_IT_BYTES = 1 << 20
"""Fewest bytes of weights in products; less stays in a cache, and then reading it binds nothing."""
_INTEGER_SUMS = 4
"""Accuracy level of MatMulNBits at which activations are rounded to int8 too."""


@dataclass(frozen=True)
class BlockQuantization(Selective):
    """Store the weights of matrix products in 8 or 4 bits, with a scale for each block of inputs.

    Activations are rounded to int8 as they come, each row in blocks of its own, so that an answer
    doesn't depend on its batch mates. This needs no calibration data. It is for products of a few
    rows, whose time is spent on reading weights.

    Attributes:
        bits: Bits of a weight.
        block: Number of inputs that share a scale.
        keep_float: Names of ONNX nodes to leave in float.

    Source: block-wise quantization, Dettmers et al., arXiv:2110.02861, section 2.1.
    """

    stage: ClassVar[Stage | None] = "lossy"
    rank: ClassVar[int] = 60

    bits: Literal[4, 8] = 8
    block: Literal[32, 128] = 32
    keep_float: tuple[str, ...] = ()

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        if target.family != "host":  # the operator is ONNX Runtime's own
            return
        proto = read_onnx(model, weights=False)
        if 4 * sum(map(math.prod, _products(proto, ()).values())) >= _WORTH_IT_BYTES:
            yield cls()
            yield cls(bits=4)
            yield cls(block=128)

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        proto = read_onnx(model)
        check_nodes(proto, self.keep_float)
        names = list(_products(proto, self.keep_float))
        if not names:
            raise Skipped("nothing to quantize: there is no matrix product with constant weights")
        split_gemms(proto, {*names})
        try:
            with silenced():
                result = self._quantized(proto)
        except Exception as error:
            raise CandidateError(f"ONNX Runtime's quantizer failed: {first_line(error)}") from error
        if not op_counts(result)["MatMulNBits"]:
            raise CandidateError(
                f"ONNX Runtime's quantizer left all {len(names)} matrix products in float"
            )
        return write_onnx(result, model, workdir / "quantized.onnx")

    def _quantized(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        from onnxruntime.quantization import matmul_nbits_quantizer as ort

        logging.getLogger(ort.__name__).setLevel(logging.ERROR)
        quantizer = ort.MatMulNBitsQuantizer(
            proto,
            nodes_to_exclude=list(self.keep_float),
            algo_config=ort.DefaultWeightOnlyQuantConfig(
                block_size=self.block,
                is_symmetric=True,
                accuracy_level=_INTEGER_SUMS,
                bits=self.bits,
            ),
        )
        quantizer.process()
        result: onnx.ModelProto = quantizer.model.model
        return result

    def words(self) -> str:
        settings = listed(
            "ONNX Runtime", f"weights in blocks of {self.block}", in_float(self.keep_float)
        )
        return f"int{self.bits} ({settings})"


def _products(proto: onnx.ModelProto, kept: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights of products that can be quantized, by the node's name."""
    shapes = {
        tensor.name: tuple(tensor.dims)
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2
    }
    return {
        node.name: shapes[node.input[1]]
        for node in proto.graph.node
        if node.input[1:2]
        and node.input[1] in shapes
        and node.name not in kept
        and (node.op_type == "MatMul" or (node.op_type == "Gemm" and plain(node)))
    }


def plain(gemm: onnx.NodeProto) -> bool:
    """Whether a Gemm is a product with its weights and a sum with its bias, and no more."""
    given = {one.name: onnx.helper.get_attribute_value(one) for one in gemm.attribute}
    return (
        not given.get("transA", 0)
        and given.get("alpha", 1.0) == 1.0
        and given.get("beta", 1.0) == 1.0
    )


def split_gemms(proto: onnx.ModelProto, names: set[str]) -> None:
    """Replace each plain Gemm that is quantized by a MatMul of the same name and an Add of its bias.

    Args:
        proto: Graph to change.
        names: Names of the nodes to quantize, whose weights are initializers.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    replaced: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if node.op_type != "Gemm" or node.name not in names or not plain(node):
            nodes.append(node)
            continue
        weights, biased = node.input[1], len(node.input) > 2 and node.input[2]
        if any(one.name == "transB" and one.i for one in node.attribute):
            turned = f"{weights}/turned"
            if turned not in constants:
                values = onnx.numpy_helper.to_array(constants[weights]).T.copy()
                constants[turned] = onnx.numpy_helper.from_array(values, turned)
                proto.graph.initializer.append(constants[turned])
            replaced.add(weights)
            weights = turned
        product = f"{node.output[0]}/product" if biased else node.output[0]
        nodes.append(
            onnx.helper.make_node("MatMul", [node.input[0], weights], [product], node.name)
        )
        if biased:
            added = [product, node.input[2]]
            nodes.append(onnx.helper.make_node("Add", added, node.output, f"{node.name}/bias"))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    remove_unread(proto, replaced)
