"""Quantize a model statically to a .tflite in integers with the AI Edge Quantizer."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import onnx

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.core.words import in_float, listed
from hasten.engines.litert.tflite.conversion import convert
from hasten.engines.litert.tflite.quiet import quiet
from hasten.engines.litert.tflite.writer import SIGNATURE
from hasten.errors import CandidateError, HastenError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.already_quantized import check_in_float
from hasten.passes.base import Selective, Skipped, Stage
from hasten.passes.calibration import CalibrationRequests
from hasten.passes.onnx_files import COMPUTE_OPS, check_nodes, compute_nodes, pixel_nodes, read_onnx
from hasten.passes.silence import first_line, silenced
from hasten.passes.weight_rounding import Rounding, round_weights, roundings_for

_PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL")
_JOINS = frozenset({"Add", "Concat", "Sub", "Sum"})
_NORMALIZATIONS = ":norm"
"""Mark of normalizations, which stay in float: mean squares of int8 differences are too inexact."""


@dataclass(frozen=True)
class LitertQuantization(Selective):
    """Quantize weights and activations to int8, or activations to int16, for LiteRT alone.

    Weights have a scale per channel, around 0; activations a scale per tensor, with a zero point where
    they have 8 bits.

    Attributes:
        rounding: Rounding of the weights of convolutions and Gemm: "nearest" integer, or by "layer"
            such that the layer's output changes least; see `weight_rounding`.
        keep_float: Names of ONNX nodes to leave in float. Operations between them and the products
            or sums before them stay in float too, since LiteRT's int8 rounds every operator's
            output, and so would round these nodes' inputs.
        samples: Largest number of calibration samples.
        ends: Type of the file's inputs and outputs: "float", or "int8" for interpreters and
            delegates that only have integers. With "int8" nothing stays in float, and the engine
            converts inputs and outputs. So it is with "int16", which also gives activations 16 bits:
            256 times as fine where they have both signs, and 128 times where they have one. It is
            for models that lose too much with 8 bits; most processors have no fast kernels for it,
            and a delegate that has int8 alone can't run it.

    Source: affine scheme r = S(q - Z), Jacob et al., arXiv:1712.05877, eq. 1.
    """

    gives: ClassVar[Format] = "tflite"
    stage: ClassVar[Stage | None] = "lossy"
    rank: ClassVar[int] = 30
    families: ClassVar[frozenset[str]] = frozenset({"litert"})

    rounding: Rounding = "nearest"
    keep_float: tuple[str, ...] = ()
    samples: int = 100
    ends: Literal["float", "int8", "int16"] = "float"

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield both roundings if the quantizer is installed; only the nearest where no other is possible.

        For the edge they are in integers alone, and wider activations with the best rounding follow:
        there is no float to fall back on.
        """
        if not all(map(importlib.util.find_spec, ("ai_edge_litert", "ai_edge_quantizer"))):
            return
        alone, roundings = target.family == "litert", roundings_for(model)
        for rounding in roundings:
            yield cls(rounding, ends="int8" if alone else "float")
        if alone:
            yield cls(roundings[-1], ends="int16")

    @property
    def wide(self) -> bool:
        """Whether activations have 16 bits."""
        return self.ends == "int16"

    def draft(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        """Quantize with the ranges of a single sample."""
        quick = replace(self, samples=1, rounding="nearest")
        return quick(model, calibration, workdir)

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        proto = read_onnx(model, weights=False)
        check_nodes(proto, self.keep_float)
        check_in_float(proto)
        if self.ends != "float" and self.keep_float:
            raise CandidateError(
                f"ends={self.ends} can't keep any node in float: got keep_float={self.keep_float[0]!r}"
            )
        names = compute_nodes(proto, self.keep_float)
        if not names:
            raise Skipped(
                "nothing to quantize: there is no convolution or matrix product to quantize"
            )
        source = model
        if self.rounding == "layer":
            source = round_weights(model, calibration, workdir, self.keep_float)
        converted, path = workdir / "float.tflite", workdir / "quantized.tflite"
        convert(source, converted, to_quantize=True)
        try:
            with silenced(), quiet(always=True):
                requests = CalibrationRequests(model, calibration, self.samples)
                content = self._quantized(converted, requests, self._left_alone(proto))
        except HastenError:
            raise
        except Exception as error:
            raise CandidateError(f"the AI Edge Quantizer failed: {first_line(error)}") from error
        self._prove(content, len(names))
        for file in workdir.iterdir():
            file.unlink()
        path.write_bytes(content)
        return replace(model, path=path, format="tflite", files=())

    def _left_alone(self, proto: onnx.ModelProto) -> list[str]:
        """Return the names of nodes to leave in float: kept ones, divisions, and those before them.

        A divisor that is small compared to the largest one would be 0 in int8.
        """
        makers = {name: node for node in proto.graph.node for name in node.output}
        divisions = [
            node.name
            for node in proto.graph.node
            if node.op_type == "Div"
            and (divisor := makers.get(node.input[1])) is not None
            and divisor.op_type != "Constant"
        ]
        kept = dict.fromkeys([*self.keep_float, *divisions, *pixel_nodes(proto)])
        left = [node for node in proto.graph.node if node.name in kept]
        while left:
            for name in left.pop().input:
                node = makers.get(name)
                if node is None or node.op_type in COMPUTE_OPS or _joins(node, makers):
                    continue
                label = node.name or name
                if label not in kept:
                    kept[label] = None
                    left.append(node)
        return list(kept)

    def _quantized(self, path: Path, requests: CalibrationRequests, kept: Sequence[str]) -> bytes:
        from ai_edge_quantizer import calibrator, quantizer, recipe, recipe_manager

        recipes = [*(recipe.static_wi8_ai16() if self.wide else recipe.static_wi8_ai8())]
        skipped: list[tuple[str, str]] = []
        if self.ends == "float":
            skipped += [(".*", "INPUT"), (".*", "OUTPUT"), (_NORMALIZATIONS, "*")]
            skipped += [(_scope(name), "*") for name in kept]
        recipes += [
            {
                "regex": regex,
                "operation": operation,
                "algorithm_key": "no_quantize",
                "op_config": {},
            }
            for regex, operation in skipped
        ]
        manager = recipe_manager.RecipeManager()
        manager.load_quantization_recipe(recipes)
        seen = calibrator.Calibrator(
            str(path),
            num_threads=len(os.sched_getaffinity(0)),
            mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
            qsv_update_func=_widened,
        )
        for request in requests:
            seen.calibrate({SIGNATURE: [request]}, manager)
        own = quantizer.Quantizer(str(path), recipes)
        result = own.quantize(seen.get_model_qsvs(), enable_progress_report=False)
        return bytes(result.quantized_model)

    def _prove(self, content: bytes, wanted: int) -> None:
        """Check that some products are in integers and kept ones aren't.

        Raises:
            CandidateError: one of these doesn't hold.
        """
        from ai_edge_litert import schema_py_generated as schema

        model = schema.ModelT.InitFromPackedBuf(content)
        graph = model.subgraphs[0]
        products = {getattr(schema.BuiltinOperator, name) for name in _PRODUCTS}
        transposed = schema.BuiltinOperator.TRANSPOSE_CONV

        narrow, wide = schema.TensorType.INT8, schema.TensorType.INT16
        kinds = ([wide, narrow], [wide, wide]) if self.wide else ([narrow, narrow],)

        def operands(operator: Any) -> list[int]:
            """Return a product's factors, which follow the shape in a transposed convolution."""
            first = model.operatorCodes[operator.opcodeIndex].builtinCode == transposed
            return list(operator.inputs[first : first + 2])

        done = [
            graph.tensors[operator.outputs[0]].name.decode()
            for operator in graph.operators
            if model.operatorCodes[operator.opcodeIndex].builtinCode in products
            and [graph.tensors[i].type for i in operands(operator)] in kinds
        ]
        if not done:
            raise CandidateError(
                f"the AI Edge Quantizer left all {wanted} convolutions and matrix products in float"
            )
        if self.ends != "float":
            for operator in graph.operators:
                read = [graph.tensors[i] for i in (*operator.inputs, *operator.outputs) if i >= 0]
                if any(tensor.type == schema.TensorType.FLOAT32 for tensor in read):
                    node = graph.tensors[operator.outputs[0]].name.decode()
                    raise CandidateError(f"the AI Edge Quantizer left the node {node!r} in float")
        for name in self.keep_float:
            if any(re.search(_scope(name), f"{tensor};") for tensor in done):
                raise CandidateError(f"the AI Edge Quantizer quantized {name!r} despite keep_float")

    def words(self) -> str:
        settings = listed(
            "AI Edge Quantizer",
            "rounded by layer" if self.rounding == "layer" else "",
            in_float(self.keep_float),
            "16-bit activations" if self.wide else "",
            "integers alone" if self.ends != "float" else "",
        )
        return f"int8 ({settings})"


def _joins(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Return whether a node joins branches, which can't be in float for one of them alone."""
    computed = [n for n in node.input if n in makers and makers[n].op_type != "Constant"]
    return node.op_type in _JOINS and len(computed) > 1


def _scope(name: str) -> str:
    """Return a regular expression for the output tensors of an ONNX node's operators."""
    return f"^{re.escape(name.replace(';', ','))}(:|;)"


def _widened(old: Mapping[str, Array], new: Mapping[str, Array]) -> dict[str, Array]:
    """Return the smallest range that contains both ranges."""
    return {"min": np.minimum(old["min"], new["min"]), "max": np.maximum(old["max"], new["max"])}
