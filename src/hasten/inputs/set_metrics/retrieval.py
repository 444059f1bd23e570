"""Retrieval: how often the nearest other samples hold one of the query's own class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.metrics.outputs import one_output
from hasten.inputs.metrics.ranking import places_of
from hasten.inputs.set_metrics.base import SetMetric

_ROWS = 1024


@dataclass(frozen=True)
class Retrieval(SetMetric):
    """Share of samples of which one of the `k` nearest others has the same label.

    Each sample is a query once, and all others are the corpus; nearness is the cosine of the
    embeddings, and of equal ones the earlier sample comes first. A sample that is alone with its
    label is no query. Both models embed the corpus themselves. Source: Jegou et al., Product
    quantization for nearest neighbor search, TPAMI 2011, "recall@R"; Song et al., Deep metric
    learning via lifted structured feature embedding, CVPR 2016, section 6.

    Attributes:
        k: Number of nearest others that count.
        output: Name of the output with embeddings `(n, d)`; None for a model with a single output.
    """

    k: int = 1
    output: str | None = None
    noun: ClassVar[str] = "recall of the nearest"
    spellings: ClassVar[tuple[str, ...]] = ("retrieval[:K]",)

    def __post_init__(self) -> None:
        """Check the number of places."""
        if self.k < 1:
            raise InputError(f"retrieval: k={self.k}: at least one place must count")

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read "retrieval", or "retrieval:10" with the number of nearest others."""
        return cls(places_of(text, setting)) if setting else cls()

    @property
    def reading(self) -> str:
        return f"of {self.k}"

    def value(self, outputs: Tensors, labels: Array) -> float:
        return float(self.values(outputs, labels, np.ones((1, len(labels)), np.int64))[0])

    def values(self, outputs: Tensors, labels: Array, counts: Array) -> Array:
        """Return the figure on resampled queries; the corpus stays the whole set.

        A sample that was drawn twice isn't its own neighbour, so the corpus can't be resampled.
        """
        found, queries = self._found(outputs, labels)
        weights = counts[:, queries].astype(np.float64)
        total = weights.sum(axis=1)
        return np.where(total > 0, weights @ found[queries] / np.maximum(total, 1), np.nan)

    def _found(self, outputs: Tensors, labels: Array) -> tuple[Array, Array]:
        """Return whether each sample finds one of its label, and the places of those that are queries."""
        given = one_output(outputs, self.output, "retrieval")
        if given.ndim != 2 or given.dtype.kind != "f" or given.shape[1] < 2:
            raise InputError(
                f"retrieval reads embeddings (n, d); the output is {given.dtype} {list(given.shape)}"
            )
        count = len(given)
        if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "biuUS":
            raise InputError(
                f"retrieval reads labels ({count},), equal for samples that belong together; got "
                f"{labels.dtype} {list(labels.shape)}"
            )
        _, kind, sizes = np.unique(labels.reshape(-1), return_inverse=True, return_counts=True)
        queries = np.flatnonzero(sizes[kind] > 1)
        if not len(queries):
            raise InputError("retrieval needs labels that two samples share; no two do")
        rows = given.astype(np.float64)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
        return self._nearest(rows, kind), queries

    def _nearest(self, rows: Array, kind: Array) -> Array:
        """Return whether one of the nearest others is of the same kind, float64 `(n,)`."""
        found = np.zeros(len(rows))
        for start in range(0, len(rows), _ROWS):
            own = np.arange(start, min(start + _ROWS, len(rows)))
            near = rows[own] @ rows.T
            near[np.arange(len(own)), own] = -np.inf
            best = np.argsort(-near, axis=1, kind="stable")[:, : self.k]
            best_near = np.take_along_axis(near, best, axis=1)
            found[own] = ((kind[best] == kind[own, np.newaxis]) & np.isfinite(best_near)).any(
                axis=1
            )
        return found
