"""The contract of a pass: one transformation with its settings, as a value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Self

from hasten.core.model import Format, Model
from hasten.core.records import Value
from hasten.core.target import Target
from hasten.errors import HastenError
from hasten.inputs.data.dataset import Dataset


class Skipped(HastenError):  # noqa: N818 - an outcome, not an error
    """There was nothing for a pass to do; the message says why."""


class Pass(Value, ABC):
    """A transformation of a model: a frozen dataclass whose fields are its settings.

    Attributes:
        formats: The model formats that it takes.
        gives: The format of what it writes.
        exact: Whether it keeps every answer (up to the order of float operations).
        settles: Whether all it does is to settle open shapes, as some engines do by themselves.
    """

    registry: ClassVar[Mapping[str, str]] = {
        "simplify": "hasten.passes.simplify:Simplify",
        "fix_shapes": "hasten.passes.fix_shapes:FixShapes",
        "little": "hasten.passes.small_model:SmallModel",
        "float_layers": "hasten.passes.float_layers:FloatLayers",
        "fixed_point": "hasten.passes.fixed_point:FixedPoint",
        "hgq_training": "hasten.passes.hgq_training:HgqTraining",
        "nncf_quantization": "hasten.passes.nncf_quantization:NncfQuantization",
        "litert_quantization": "hasten.passes.litert_quantization:LitertQuantization",
        "qnn_quantization": "hasten.passes.qnn_quantization:QnnQuantization",
        "static_quantization": "hasten.passes.static_quantization:StaticQuantization",
        "tensorrt_quantization": "hasten.passes.tensorrt_quantization:TensorrtQuantization",
        "half_precision": "hasten.passes.half_precision:HalfPrecision",
        "jax_program": "hasten.passes.jax_program:JaxProgram",
        "dynamic_quantization": "hasten.passes.dynamic_quantization:DynamicQuantization",
    }
    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})
    gives: ClassVar[Format] = "onnx"
    exact: ClassVar[bool] = False
    settles: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield the settings worth trying first for a model on a target, the likeliest first."""

    @abstractmethod
    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        """Write a new file into `workdir`, a folder of this call's own.

        Args:
            model: With `request` settled.
            calibration: Samples to set ranges by; never those that judge.
            workdir: Empty, exists.

        Returns:
            The new model, proven to differ as the pass intends.

        Raises:
            Skipped: nothing to do, with the reason.
            CandidateError: failed, or took no effect.
        """

    def draft(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        """Write what is as fast as what a call gives, sooner, where that is possible.

        Its answers may be wrong: it is good for nothing but to be timed. Arguments, what is returned
        and errors are a call's.
        """
        return self(model, calibration, workdir)

    @abstractmethod
    def words(self) -> str:
        """Say for people what it makes of a model: "int8 (NNCF, accurate biases)".

        Settings that set variants apart are named; those that are the same in all of them aren't.
        """
