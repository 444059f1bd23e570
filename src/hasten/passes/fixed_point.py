"""Convert a trained float network to a fixed-point program for an FPGA."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import onnx

from hasten.core.model import Format, Model
from hasten.core.records import digest, to_record
from hasten.core.target import Target
from hasten.core.words import amount, listed
from hasten.engines.fpga import program
from hasten.engines.fpga.program import VECTORS
from hasten.engines.fpga.ranges import observed
from hasten.engines.fpga.tracing import TREES, trace
from hasten.engines.fpga.values import PRODUCTS, Overflow, Widths
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.base import Pass, Skipped
from hasten.passes.calibration import CalibrationRequests
from hasten.passes.fix_shapes import FixShapes
from hasten.passes.onnx_files import op_counts, read_onnx
from hasten.passes.silence import first_line, silenced

BENCHED = 64
"""Number of calibration samples in a design's test bench."""


@dataclass(frozen=True)
class LayerWidth:
    """Bit widths of one node.

    Attributes:
        node: Node's name in the simplified graph.
        weights: Bits of each output's largest weight.
        activations: Bits of the node's inputs.
    """

    node: str
    weights: int
    activations: int


@dataclass(frozen=True)
class FixedPoint(Pass):
    """Round weights and the inputs of products to fixed-point numbers; sums stay exact.

    Scales are powers of two: one for each output's weights, for each tensor, and for each input of
    the model. Calibration sets the integer bits.

    Attributes:
        weight_bits: Bits of an output's largest weight, including the sign.
        activation_bits: Bits of a product's inputs, including the sign.
        input_bits: Bits of each input of the model.
        overflow: Treatment of numbers beyond the calibrated range: "saturate", "wrap" (with a spare
            bit), or "grow", which keeps every bit before the point.
        layers: Bit widths of nodes that differ from the general ones.
        samples: Largest number of samples that set the ranges.
    """

    gives: ClassVar[Format] = "dais"

    weight_bits: int = 8
    activation_bits: int = 8
    input_bits: int = 8
    overflow: Overflow = "grow"
    layers: tuple[LayerWidth, ...] = ()
    samples: int = 300

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        if target.family != "fpga":
            return
        for bits in (8, 6, 12, 16):
            yield cls(bits, bits, bits)

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        for name, bits in (
            ("weight_bits", self.weight_bits),
            ("activation_bits", self.activation_bits),
            ("input_bits", self.input_bits),
        ):
            if not 2 <= bits <= 24:
                raise CandidateError(f"{name} must be from 2 to 24: got {bits}")
        requests = CalibrationRequests(model, calibration, self.samples)
        proto = settled(model, calibration, workdir)
        if not any(op_counts(proto)[name] for name in (*PRODUCTS, *TREES)):
            raise Skipped("nothing to round: the model has no product and no tree")
        own = {layer.node: (layer.weights, layer.activations) for layer in self.layers}
        widths = Widths(self.weight_bits, self.activation_bits, self.input_bits, self.overflow, own)
        program.version()
        traced = trace(proto, observed(proto, requests), widths, model.request, model.outputs)
        path, ports = traced.save(workdir)
        rounded = [traced.ports.encode(requests[i]) for i in range(min(BENCHED, len(requests)))]
        np.savez(workdir / VECTORS, requests=np.concatenate(rounded))
        return replace(model, path=path, format="dais", files=(ports, workdir / VECTORS))

    def words(self) -> str:
        own = digest([to_record(layer) for layer in self.layers])[:6]
        settings = listed(
            f"weights {self.weight_bits}, activations {self.activation_bits}, "
            f"inputs {self.input_bits} bits",
            {"grow": "", "saturate": "saturating", "wrap": "wrapping"}[self.overflow],
            f"other widths in {amount(len(self.layers), 'layer')}, choice {own}"
            if self.layers
            else "",
        )
        return f"fixed point ({settings})"


def settled(model: Model, calibration: Dataset, workdir: Path) -> onnx.ModelProto:
    """Return the float graph with all shapes settled, constants folded and normalizations merged.

    Raises:
        CandidateError: the graph can't be simplified.
    """
    folder = workdir / "settled"
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(Skipped):
        model = FixShapes()(model, calibration, folder)
    with silenced():
        import onnxslim

        try:
            proto: onnx.ModelProto = onnxslim.slim(read_onnx(model))
        except Exception as error:
            raise CandidateError(f"onnxslim failed: {first_line(error)}") from error
    for node in proto.graph.node:
        node.name = node.name or next(filter(None, node.output), "")
    return proto
