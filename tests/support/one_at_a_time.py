"""An engine that settles a model for one sample, as those of some devices do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.artifacts import settle
from hasten.engines.base import Artifact
from hasten.engines.onnxruntime.engine import OnnxRuntime


@dataclass(frozen=True)
class OneAtATime(OnnxRuntime):
    """ONNX Runtime on a file whose shapes are those of the certified request."""

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield the only one."""
        yield cls()

    def settling(self) -> None:
        """Return None: it takes no batches."""
        return

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Build as ONNX Runtime does, then settle the file's shapes."""
        built = super().build(model, target, workdir)
        settle(built.path, model.request, "the model can't be read")
        outputs = tuple(replace(spec, shape=(1, *spec.shape[1:])) for spec in built.outputs)
        return replace(built, inputs=model.request, outputs=outputs)

    def words(self) -> str:
        """Say what sets it apart."""
        return "one at a time"
