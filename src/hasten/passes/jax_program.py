"""Convert torch's exported program to StableHLO with torchax and JAX, for TPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.core.words import counted
from hasten.engines.tpu import conversion, stablehlo
from hasten.engines.tpu.conversion import CapturedProgram, Precision
from hasten.engines.tpu.products import SeenRange
from hasten.engines.tpu.stablehlo import Kinds
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.base import Selective, Skipped, Stage
from hasten.passes.calibration import CalibrationRequests


@dataclass(frozen=True)
class JaxProgram(Selective):
    """Convert the torch program from which a model was made, for XLA alone.

    Inputs and outputs are the model's own in every precision; the batch size is 1.

    Attributes:
        precision: Precision: "f32" for float32 products in full precision, which a TPU would
            otherwise compute in bfloat16; "bf16" for weights and activations in bfloat16 with
            normalizations and sums in float32; "int8" for "bf16" with matrix products and
            convolutions with constant weights in int8, one scale per output channel and one per
            activation, and sums in int32. Depthwise convolutions stay in bfloat16, since the
            matrix units don't speed them up.
        keep_float: Names of nodes in the torch program to leave in bfloat16.
        samples: Largest number of samples that set ranges.

    Source: affine scheme r = S(q - Z), Jacob et al., arXiv:1712.05877, eq. 1.
    """

    gives: ClassVar[Format] = "stablehlo"
    stage: ClassVar[Stage | None] = "conversion"
    rank: ClassVar[int] = 10

    precision: Precision = "f32"
    keep_float: tuple[str, ...] = ()
    samples: int = 100

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Whether the program computes in float32."""
        return self.precision == "f32"

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield every precision, for TPUs alone."""
        if target.family == "tpu":
            yield cls("f32")
            yield cls("bf16")
            yield cls("int8")

    def draft(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        """Quantize with the ranges of a single sample."""
        return replace(self, samples=1)(model, calibration, workdir)

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        if model.program is None:
            raise InputError(
                f"{model.path.name}: a TPU needs the torch program, not ONNX; "
                "give the torch module or its .pt2 file"
            )
        program = conversion.read_program(model.program)
        inputs = [spec.name for spec in model.request]
        outputs = [spec.name for spec in model.outputs]
        self._check(program, model, inputs, outputs)
        ranges = self._ranges(program, model, calibration)
        function = conversion.function_of(
            program, inputs, outputs, self.precision, ranges, self.keep_float
        )
        path = workdir / "model.stablehlo"
        exported = stablehlo.write(function, model.request, path, exact=self.exact)
        try:
            self._prove(exported, len(ranges.keys() - set(self.keep_float)))
        except Exception:
            path.unlink()
            raise
        shapes = stablehlo.shapes(exported)
        return replace(
            model,
            path=path,
            format="stablehlo",
            inputs=model.request,
            outputs=tuple(TensorSpec(s.name, s.dtype, shapes[s.name]) for s in model.outputs),
            files=(),
            custom_ops=(),
        )

    def _check(
        self, program: CapturedProgram, model: Model, inputs: list[str], outputs: list[str]
    ) -> None:
        """Check that the program and the model have equally many inputs and outputs.

        Raises:
            CandidateError: the numbers differ.
        """
        assert model.program is not None
        for what, own, wanted in (
            ("inputs", len(program.inputs), len(inputs)),
            ("outputs", program.outputs, len(outputs)),
        ):
            if own != wanted:
                raise CandidateError(
                    f"{model.program.name} has {own} {what}, but {model.path.name} has {wanted}"
                )

    def _ranges(
        self, program: CapturedProgram, model: Model, calibration: Dataset
    ) -> dict[str, SeenRange]:
        """Return the ranges of each product's inputs, by node; empty unless they are quantized."""
        if self.precision != "int8":
            return {}
        requests = CalibrationRequests(model, calibration, self.samples)
        given = [
            {s.name: request[s.name].astype(stablehlo.narrowed(s.dtype)) for s in model.request}
            for request in requests
        ]
        ranges = conversion.products(
            program, [s.name for s in model.request], [s.name for s in model.outputs], given
        )
        for name in self.keep_float:
            if name not in ranges:
                some = ", ".join(list(ranges)[:3])
                raise CandidateError(
                    f"keep_float: the torch program has no product {name!r}; it has {some}, ..."
                )
        if not ranges.keys() - set(self.keep_float):
            raise Skipped(
                "nothing to quantize: there is no convolution or matrix product to quantize"
            )
        return ranges

    def _prove(self, exported: Any, quantized: int) -> None:
        """Check that the written program has the intended precision.

        Raises:
            CandidateError: a product has another precision.
            Skipped: there are no floats to compute in bfloat16.
        """
        found = stablehlo.products(exported)
        if self.precision == "int8":
            done = found.count(Kinds("i8", "i8", "i32"))
            if done != quantized:
                raise CandidateError(f"{done} of {quantized} products are in int8 in the StableHLO")
        elif self.precision == "bf16":
            wide = [kinds for kinds in found if "f32" in (kinds.left, kinds.right)]
            if wide:
                raise CandidateError(f"{len(wide)} products stayed in float32 in the StableHLO")
            if "bf16>" not in stablehlo.text(exported):
                raise Skipped("nothing to compute in bfloat16: there are no floats")
        elif not all(kinds.full for kinds in found if kinds.left == "f32"):
            raise CandidateError("a float32 product isn't in full precision in the StableHLO")

    def words(self) -> str:
        kept = counted(len(self.keep_float), "layer")
        return f"{self.precision} ({kept} in bf16)" if kept else self.precision
