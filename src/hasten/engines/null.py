"""Engine without a runtime: answers of the right form, for tests and for the cost of a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.artifacts import batch_sizes, place
from hasten.engines.base import Artifact, Engine, Session


@dataclass(frozen=True)
class Null(Engine):
    """Answer zeros for any model, whose file is never read."""

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx", "openvino", "tflite"})

    @property
    def exact(self) -> bool:
        """False: zeros aren't the model's answers."""
        return False

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield the only variant."""
        yield cls()

    @classmethod
    def version(cls) -> str:
        """Return "1", since there is no runtime that could have versions."""
        return "1"

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Keep the model as it is.

        Raises:
            CandidateError: a file of the model is missing.
        """
        return place(model, workdir)

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Open a session that loads nothing."""
        yield NullSession(artifact)

    def words(self) -> str:
        return "null engine"


class NullSession(Session):
    """Zeros of the output specs' shapes; open dimensions are the inputs' of that name, or 1."""

    def __init__(self, artifact: Artifact) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = batch_sizes(artifact)

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Return new arrays of zeros."""
        sizes = {
            dimension: size
            for spec in self.inputs
            for dimension, size in zip(spec.shape, inputs[spec.name].shape, strict=True)
            if isinstance(dimension, str) and dimension != "?"
        }
        return {
            spec.name: np.zeros(
                [size if isinstance(size, int) else sizes.get(size, 1) for size in spec.shape],
                spec.dtype,
            )
            for spec in self.outputs
        }
