"""Define the contract of a pass: one transformation with its settings, as a value."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self, TypeAlias

from hasten.core.model import Format, Model
from hasten.core.records import Value
from hasten.core.registry import Registry
from hasten.core.target import Target
from hasten.errors import HastenError
from hasten.inputs.data.dataset import Dataset

if TYPE_CHECKING:
    from hasten.engines.base import Engine

Stage: TypeAlias = Literal["conversion", "exact", "lossy"]


class Skipped(HastenError):  # noqa: N818 - an outcome, not an error
    """Outcome of a pass that had nothing to do; the message says why."""


class Pass(Value, ABC):
    """Transformation of a model, as a frozen dataclass whose fields are its settings.

    Attributes:
        formats: Model formats that the pass accepts.
        gives: Model format that the pass writes.
        exact: Whether the pass keeps every answer, up to the order of float operations.
        settles: Whether the pass only settles open shapes, which some engines do by themselves.
        stage: Stage of the search that tries the pass: "conversion" into a form that an engine
            requires, "exact" on the original model, or "lossy"; None if something else proposes it.
        rank: Position among the passes of a stage; lower ranks are tried first, equal ones in the
            registry's order.
        families: Families of devices that accept only passes made for them, and for which this pass
            is made.
        modules: Modules that it imports beside onnx; it isn't tried where one of them isn't installed.
        needless: Packages that a library of this pass imports where they are installed, though the
            pass needs none of them; a process for this pass alone leaves them out.
    """

    registry: ClassVar[Registry] = Registry(
        "pass",
        "hasten.passes",
        {
            "simplify": "hasten.passes.simplify:Simplify",
            "spectra": "hasten.passes.spectra:Spectra",
            "fix_shapes": "hasten.passes.fix_shapes:FixShapes",
            "little": "hasten.passes.small_model:SmallModel",
            "float_layers": "hasten.passes.float_layers:FloatLayers",
            "word_layers": "hasten.passes.word_layers:WordLayers",
            "fixed_point": "hasten.passes.fixed_point:FixedPoint",
            "hgq_training": "hasten.passes.hgq_training:HgqTraining",
            "nncf_quantization": "hasten.passes.nncf_quantization:NncfQuantization",
            "litert_quantization": "hasten.passes.litert_quantization:LitertQuantization",
            "qnn_quantization": "hasten.passes.qnn_quantization:QnnQuantization",
            "weight_compression": "hasten.passes.weight_compression:WeightCompression",
            "static_quantization": "hasten.passes.static_quantization:StaticQuantization",
            "tensorrt_quantization": "hasten.passes.tensorrt_quantization:TensorrtQuantization",
            "half_precision": "hasten.passes.half_precision:HalfPrecision",
            "jax_program": "hasten.passes.jax_program:JaxProgram",
            "dynamic_quantization": "hasten.passes.dynamic_quantization:DynamicQuantization",
            "block_quantization": "hasten.passes.block_quantization:BlockQuantization",
        },
    )
    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})
    gives: ClassVar[Format] = "onnx"
    exact: ClassVar[bool] = False
    settles: ClassVar[bool] = False
    stage: ClassVar[Stage | None] = None
    rank: ClassVar[int] = 100
    families: ClassVar[frozenset[str]] = frozenset()
    modules: ClassVar[tuple[str, ...]] = ()
    needless: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def missing(cls) -> list[str]:
        """Return those of its modules that aren't installed."""
        return [name for name in cls.modules if importlib.util.find_spec(name) is None]

    @classmethod
    @abstractmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield the settings worth trying first for a model on a target, most promising first."""

    @abstractmethod
    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        """Write a transformed model into `workdir`.

        Args:
            model: Model with its `request` settled.
            calibration: Samples that set ranges; never those that judge.
            workdir: Existing, empty folder for this call alone.

        Returns:
            New model, proven to differ from the old one as intended.

        Raises:
            Skipped: there is nothing to do; gives the reason.
            CandidateError: the pass failed, or had no effect.
        """

    def suited(self, engine: Engine) -> Self:
        """Return the pass with the settings that suit an engine; without such settings, itself."""
        return self

    def further(self) -> Self | None:
        """Return the next setting on a scale; None at its end, or if no setting is on one.

        The search tries it if this is the pass's safest form so far and still may not be certified.
        """
        return None

    @property
    def quantized(self) -> bool:
        """Whether the written model is quantized, so that engines for floats alone can't run it."""
        return not self.exact

    @property
    def keep_float(self) -> tuple[str, ...]:
        """Names of ONNX nodes to leave in float, besides those that the pass always leaves."""
        return ()

    @classmethod
    def has_draft(cls) -> bool:
        """Return whether `draft` is quicker than a call."""
        return cls.draft is not Pass.draft

    def draft(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        """Write a model that runs as fast as a call's result, in less time if possible.

        The model's answers may be wrong: it is only for timing. Arguments, result and errors are
        those of a call.
        """
        return self(model, calibration, workdir)

    @abstractmethod
    def words(self) -> str:
        """Return a label of the result for people, such as "int8 (NNCF, accurate biases)".

        The label names the settings in which variants differ, and no others.
        """


class Selective(Pass):
    """Pass that can leave nodes in float, named by the field `keep_float` of its dataclass."""

    def keeping(self, nodes: tuple[str, ...]) -> Self:
        """Return the pass with these nodes left in float.

        Args:
            nodes: Names of the ONNX nodes.
        """
        return replace(self, keep_float=nodes)  # type: ignore[type-var]
