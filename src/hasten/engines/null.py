"""No runtime at all: answers of the right form, for tests and for what a call costs."""

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
    """Answer zeros, whatever the model; its file is never read."""

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx", "openvino", "tflite"})

    @property
    def exact(self) -> bool:
        """Never: zeros aren't the model's answers."""
        return False

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """There is one."""
        yield cls()

    @classmethod
    def version(cls) -> str:
        """There is nothing that could be of another version."""
        return "1"

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Keep the model as it is.

        Raises:
            CandidateError: a file of the model is missing.
        """
        return place(model, workdir)

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Load nothing."""
        yield NullSession(artifact)

    def words(self) -> str:
        return "null engine"


class NullSession(Session):
    """Zeros of the output specs; open dimensions are those of the inputs, by name, or 1."""

    def __init__(self, artifact: Artifact) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = batch_sizes(artifact)

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Give new zeros."""
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
