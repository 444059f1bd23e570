"""Store the weights of matrix products in 8 or 4 bits with NNCF, and compute in float."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import onnx

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.telemetry import telemetry_off
from hasten.core.words import in_float, listed
from hasten.errors import CandidateError, HastenError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.base import Selective, Skipped, Stage
from hasten.passes.calibration import CalibrationRequests
from hasten.passes.onnx_files import check_nodes, constant_sizes, read_onnx
from hasten.passes.openvino_graphs import converted, operations_of
from hasten.passes.silence import first_line, silenced

_PRODUCTS = frozenset({"Gemm", "MatMul"})
_LEAST_WEIGHTS = 2**18
"""Fewest weights of matrix products for which a variant is tried: a megabyte of float32 stays in a
processor's cache, and is read as quickly as it is multiplied."""
_GROUP = 64
"""Weights in 4 bits that share a scale."""


@dataclass(frozen=True)
class WeightCompression(Selective):
    """Store the weights of matrix products in 8 or 4 bits; activations and sums stay in float.

    A request with few rows waits for weights more than for arithmetic, and reads a quarter or an
    eighth of the bytes. Activations aren't rounded, so that answers change far less than in full
    int8. The result is in OpenVINO's own format and for OpenVINO alone.

    Attributes:
        bits: Bits of a weight. In 8, an output channel has a scale; in 4, 64 weights have one, which
            is chosen such that the layer's output on the calibration samples changes least.
        keep_float: Names of ONNX nodes to leave in float.
        samples: Largest number of calibration samples; 8 bits need none.

    Source: 4 bits, Lin et al., arXiv:2306.00978 (AWQ), without the scaling of activations.
    """

    gives: ClassVar[Format] = "openvino"
    stage: ClassVar[Stage | None] = "lossy"
    rank: ClassVar[int] = 40
    modules: ClassVar[tuple[str, ...]] = ("nncf", "openvino")
    needless: ClassVar[frozenset[str]] = frozenset({"torch"})

    bits: Literal[8, 4] = 8
    keep_float: tuple[str, ...] = ()
    samples: int = 32

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield 8 bits, then 4, where matrix products have most of the weights, and many."""
        products, others = _weights(read_onnx(model, weights=False))
        if products >= max(_LEAST_WEIGHTS, others):
            yield cls(8)
            yield cls(4)

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        proto = read_onnx(model, weights=False)
        check_nodes(proto, self.keep_float)
        if not _weights(proto)[0]:
            raise Skipped("nothing to compress: there is no matrix product with constant weights")
        path = workdir / "compressed.xml"
        try:
            with silenced(), telemetry_off():
                self._compress(model, proto, calibration, path)
        except HastenError:
            raise
        except Exception as error:
            raise CandidateError(f"NNCF failed: {first_line(error)}") from error
        return replace(model, path=path, format="openvino", files=(path.with_suffix(".bin"),))

    def _compress(
        self, model: Model, proto: onnx.ModelProto, calibration: Dataset, path: Path
    ) -> None:
        import nncf
        import openvino

        graph = converted(model)
        kept = operations_of(graph, proto, self.keep_float)
        others = [
            operation.get_friendly_name()
            for operation in graph.get_ordered_ops()
            if operation.get_type_name() in ("Convolution", "GroupConvolution", "Gather")
        ]
        names = list(dict.fromkeys([*kept, *others]))
        scope = nncf.IgnoredScope(names=names) if names else None
        if self.bits == 8:
            mode = nncf.CompressWeightsMode.INT8_SYM
            compressed = nncf.compress_weights(graph, mode=mode, ignored_scope=scope)
        else:
            requests = CalibrationRequests(model, calibration, self.samples)
            compressed = nncf.compress_weights(
                graph,
                mode=nncf.CompressWeightsMode.INT4_SYM,
                group_size=_GROUP,
                all_layers=True,
                ignored_scope=scope,
                dataset=nncf.Dataset(requests),
                subset_size=len(requests),
                scale_estimation=True,
                advanced_parameters=nncf.AdvancedCompressionParameters(
                    group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
                ),
            )
        _prove(compressed, kept)
        openvino.save_model(compressed, path, compress_to_fp16=False)

    def words(self) -> str:
        settings = listed("NNCF", in_float(self.keep_float))
        return f"weights alone in int{self.bits} ({settings})"


def _weights(proto: onnx.ModelProto) -> tuple[int, int]:
    """Return how many weights matrix products have, and how many all other operators have."""
    sizes = constant_sizes(proto)
    read = {
        node.input[1]
        for node in proto.graph.node
        if node.op_type in _PRODUCTS and node.input[1] in sizes
    }
    looked_up = {node.input[0] for node in proto.graph.node if node.op_type == "Gather"}
    products = sum(sizes[name] for name in read)
    return products, sum(sizes.values()) - products - sum(sizes.get(n, 0) for n in looked_up - read)


def _prove(compressed: Any, kept: list[str]) -> None:
    """Check that products read weights of few bits, and kept ones don't.

    Raises:
        CandidateError: one of these doesn't hold.
    """
    read: set[str] = set()
    for operation in compressed.get_ordered_ops():
        if operation.get_type_name() == "MatMul" and _narrow(operation.input_value(1).get_node()):
            read.add(operation.get_friendly_name())
    if not read:
        raise CandidateError("NNCF left the weights of all matrix products in float")
    if disobeyed := read.intersection(kept):
        raise CandidateError(f"NNCF compressed {min(disobeyed)!r} despite keep_float")


def _narrow(node: Any) -> bool:
    """Return whether a value is made of a constant in 8 or 4 bits, by conversions and scaling."""
    while node.get_type_name() in ("Convert", "Multiply", "Reshape", "Subtract", "Transpose"):
        node = node.input_value(0).get_node()
    return bool(
        node.get_type_name() == "Constant"
        and node.get_output_element_type(0).get_type_name() in ("i8", "u8", "i4", "u4")
    )
