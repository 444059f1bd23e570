"""The contract of a pass: one transformation with its settings, as a value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, Self, TypeAlias

from hasten.core.model import Format, Model
from hasten.core.records import Value
from hasten.core.registry import Registry
from hasten.core.target import Target
from hasten.errors import HastenError
from hasten.inputs.data.dataset import Dataset

Stage: TypeAlias = Literal["conversion", "exact", "lossy"]


class Skipped(HastenError):  # noqa: N818 - an outcome, not an error
    """There was nothing for a pass to do; the message says why."""


class Pass(Value, ABC):
    """A transformation of a model: a frozen dataclass whose fields are its settings.

    Attributes:
        formats: The model formats that it takes.
        gives: The format of what it writes.
        exact: Whether it keeps every answer (up to the order of float operations).
        settles: Whether all it does is to settle open shapes, as some engines do by themselves.
        stage: Where the search begins with it: "conversion" into a form without which an engine runs
            nothing, "exact" on the untouched model, "lossy"; None where something else proposes it.
        rank: Place among the passes of its stage: lower ones are tried first, equal ones in the
            registry's order.
        families: Families of devices that take only passes made for them, and that this one is for.
    """

    registry: ClassVar[Registry] = Registry(
        "pass",
        "hasten.passes",
        {
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
        },
    )
    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})
    gives: ClassVar[Format] = "onnx"
    exact: ClassVar[bool] = False
    settles: ClassVar[bool] = False
    stage: ClassVar[Stage | None] = None
    rank: ClassVar[int] = 100
    families: ClassVar[frozenset[str]] = frozenset()

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

    @property
    def quantized(self) -> bool:
        """Whether what it writes is quantized, and no more for engines that take only floats."""
        return not self.exact

    @property
    def keep_float(self) -> tuple[str, ...]:
        """The names of the ONNX nodes that it leaves in float, beyond those that it leaves by itself."""
        return ()

    @classmethod
    def has_draft(cls) -> bool:
        """Whether `draft` is quicker than a call."""
        return cls.draft is not Pass.draft

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


class Selective(Pass):
    """A pass that can leave nodes in float: a field `keep_float` of its dataclass names them."""

    def keeping(self, nodes: tuple[str, ...]) -> Self:
        """Return it set to leave these nodes in float.

        Args:
            nodes: Names of ONNX nodes.
        """
        return replace(self, keep_float=nodes)  # type: ignore[type-var]
