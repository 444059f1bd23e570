"""Metric that compares an embedding's direction with the exact model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import number, one_output


@dataclass(frozen=True)
class Embedding(Metric):
    """Score 1 where the output's cosine with the exact model's is at least `tolerance`, else 0.

    An output with several axes per sample counts as one long vector. Two zero vectors score 1; a
    zero vector and any other vector score 0.

    Attributes:
        tolerance: Least cosine, in (-1, 1].
        output: Name of the output with the embedding; None for a model with a single output.
    """

    tolerance: float = 0.99
    output: str | None = None
    needs_labels: ClassVar[bool] = False
    binary: ClassVar[bool] = True
    noun: ClassVar[str] = "share of embeddings kept"
    title: ClassVar[str] = "the share of embeddings near the original's"
    spellings: ClassVar[tuple[str, ...]] = ("embedding[:COSINE]",)
    answers: ClassVar[Literal["classes", "values"] | None] = "values"

    def __post_init__(self) -> None:
        """Check the tolerance."""
        if not -1 < self.tolerance <= 1:
            raise InputError(
                f"embedding:{self.tolerance:g}: the least cosine must be above -1 and at most 1"
            )

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read "embedding", or "embedding:0.98" with the least cosine."""
        return cls(number(text, setting)) if setting else cls()

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        mine, theirs = (
            one_output(given, self.output, "embedding").astype(np.float64)
            for given in (outputs, exact)
        )
        if mine.shape != theirs.shape:
            raise InputError(
                f"embedding: the output is {list(mine.shape)}, the exact model's {list(theirs.shape)}"
            )
        mine, theirs = _unit(mine), _unit(theirs)
        # For unit vectors the cosine is 1 - |a - b|^2 / 2, which is exactly 1 for equal vectors.
        cosine = 1 - np.square(mine - theirs).sum(axis=1) / 2
        both = ~mine.any(axis=1) & ~theirs.any(axis=1)
        one = mine.any(axis=1) ^ theirs.any(axis=1)
        return np.where(both, 1.0, np.where(one, 0.0, (cosine >= self.tolerance) * 1.0))

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where the cosine is at least `tolerance`, since no label has a part in the score."""
        return np.asarray(self.score(outputs, others, None) == 1)


def _unit(vectors: Array) -> Array:
    """Return rows of length 1, or zero rows; scaling by the largest value first avoids overflow."""
    rows = vectors.reshape(len(vectors), -1)
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    rows = rows / np.where(largest > 0, largest, 1)
    length = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    return np.asarray(rows / np.where(length > 0, length, 1))
