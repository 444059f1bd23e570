"""Engine for onnx's evaluator, which follows the standard in numpy: exact, and slow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.core.words import listed
from hasten.engines.artifacts import batch_sizes, place
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.checked import private
from hasten.engines.failures import failed

if TYPE_CHECKING:
    from onnx.reference import ReferenceEvaluator

_NEW_OPSET = 21


@dataclass(frozen=True)
class Reference(Engine):
    """Engine against which other engines are checked for exactness; far too slow to ship.

    Attributes:
        upgraded: Whether operators of an older set are first made those of set 21 by onnx's converter.
            The evaluator is wrong about some older ones, such as Softmax 11 and BatchNormalization 9.
    """

    upgraded: bool = False

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})
    distributions: ClassVar[tuple[str, ...]] = ("onnx",)
    extra: ClassVar[str] = "optimize"

    @property
    def exact(self) -> bool:
        """True: operators are evaluated as the standard says."""
        return True

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield the only variant."""
        yield cls()

    @classmethod
    def version(cls) -> str:
        """Return onnx's version.

        Raises:
            InputError: it isn't installed.
        """
        try:
            import onnx
        except ImportError as error:
            raise cls.missing("onnx", error) from error
        return str(onnx.__version__)

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Keep the model as it is, after checking that every operator has an implementation.

        Raises:
            CandidateError: the model can't be loaded, or an operator has no implementation.
        """
        artifact = place(model, workdir)
        self._load(artifact.path)
        return artifact

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Load the model.

        Raises:
            CandidateError: the model can't be loaded.
        """
        with private(artifact) as copy:
            evaluator = self._load(copy.path)
        yield ReferenceSession(artifact, evaluator)

    def _load(self, path: Path) -> ReferenceEvaluator:
        self.version()
        import onnx
        import onnx.version_converter
        from onnx.reference import ReferenceEvaluator

        try:
            proto = onnx.load(path)
            if self.upgraded:
                proto = onnx.version_converter.convert_version(proto, _NEW_OPSET)
            return ReferenceEvaluator(proto)
        except Exception as error:
            raise failed("the reference engine can't load the model", error, path) from error

    def words(self) -> str:
        return listed("ONNX reference", f"operator set {_NEW_OPSET}" if self.upgraded else "")


class ReferenceSession(Session):
    """Session of one evaluator, which runs in the calling thread."""

    def __init__(self, artifact: Artifact, evaluator: ReferenceEvaluator) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = batch_sizes(artifact)
        self._evaluator = evaluator
        self._names = [spec.name for spec in artifact.outputs]

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Evaluate the graph node by node.

        Raises:
            CandidateError: an operator failed.
        """
        try:
            values = self._evaluator.run(self._names, dict(inputs))
        except Exception as error:
            raise failed("the reference engine failed", error) from error
        # An operator that changes nothing returns its input, and answers mustn't alias the caller's
        # arrays.
        return {name: np.array(value) for name, value in zip(self._names, values, strict=True)}
