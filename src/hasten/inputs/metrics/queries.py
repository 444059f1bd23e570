"""Metrics for rerankers and encoders: a group of samples is a query with its candidates."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from hasten.core.records import type_name
from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import equal_numbers, of_samples, one_output
from hasten.inputs.metrics.ranking import check_places, grades_like, ndcg, places_of, recall

QUERY = -1
"""Label of the sample that is its group's query, where an encoder embeds it beside its candidates."""


@dataclass(frozen=True)
class Query(Metric):
    """Shared part of the metrics that rank the samples of a group, each group being one query.

    Of a reranker a sample is a pair of query and candidate, and the output a score `(n,)`, `(n,
    1)` or `(n, 2)`, of which the difference ranks. Of an encoder a sample is one text: the query,
    whose label is -1, or a candidate; the output is an embedding `(n, d)` of at least 3 numbers,
    and the cosine with the query ranks, so each model ranks by embeddings of its own. Labels are
    grades `(n,)`: 0 for a candidate that isn't relevant, higher for one that is.

    A group is one independent draw, and all its samples get the query's score. Without labels, the
    candidates that the exact model ranks among the first `k` are the relevant ones; an encoder
    needs labels, since nothing else says which sample is the query.

    Attributes:
        k: Number of first places that count.
        output: Name of the output with the scores or embeddings; None for a model with a single
            output.
        counts: Whether the order of the first `k` makes no difference.
    """

    k: int = 10
    output: str | None = None
    needs_labels: ClassVar[bool] = False
    over_set: ClassVar[bool] = True
    draw: ClassVar[str] = "query"
    counts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the number of places."""
        if self.k < 1:
            raise InputError(f"{type_name(self)}: k={self.k}: at least one place must count")

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read the metric's name, or with the number of places: "group_ndcg:10"."""
        return cls(places_of(text, setting)) if setting else cls()

    @abstractmethod
    def _of_query(self, scores: Array, grades: Array) -> float:
        """Return the score of one query's candidates."""

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        """Return each sample's score or embedding, `(n, d)`; without labels the exact model's beside it."""
        mine = self._rows(outputs)
        if labels is not None:
            self._grades(labels, len(mine))
            return mine
        return np.hstack([mine, self._rows(exact)])

    def checked(self, scores: object, count: int) -> Array:
        """Return readings as they are, `(n, d)`: `score` has checked that they are finite."""
        return np.asarray(scores, np.float64).reshape(count, -1)

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where the readings are equal numbers, so that every ranking is."""
        return equal_numbers(self._rows(outputs), self._rows(others))

    def draws(self, labels: Array | None, units: Array) -> Array:
        if len(np.unique(units)) == len(units):
            raise InputError(
                f"{type_name(self)} ranks the samples of a group, but no two samples share a "
                "group: give groups, one for each query, as an array next to the inputs"
            )
        return units

    def over(self, readings: Array, labels: Array | None, units: Array) -> Array:
        rows = readings.reshape(len(readings), -1)
        grades = None if labels is None else self._grades(labels, len(rows))
        _, place = np.unique(units, return_inverse=True)
        order = np.argsort(place, kind="stable")
        scores = np.empty(len(rows))
        if grades is not None and self.counts:
            most = int(np.bincount(place.reshape(-1)[grades >= 0]).max(initial=0))
            check_places(self, self.k, most, labelled=True, group=True)
        for group in np.split(order, np.flatnonzero(np.diff(place[order])) + 1):
            told = None if grades is None else grades[group]
            scores[group] = self._of_group(rows[group], told)
        return scores

    def _of_group(self, rows: Array, grades: Array | None) -> float:
        """Return the score of one group, from its readings and grades."""
        if grades is None:
            half = rows.shape[1] // 2
            if half != 1:
                raise InputError(
                    f"{type_name(self)}: the model returns embeddings, but no labels state which "
                    "sample is a group's query: give labels, with -1 for the query, or use the "
                    "metric embedding"
                )
            check_places(self, self.k, len(rows), labelled=False, group=True)
            return self._of_query(rows[:, 0], grades_like(rows[:, 1], self.k))
        if rows.shape[1] == 1:
            there = grades >= 0
            return self._of_query(rows[there, 0], grades[there])
        asking = np.flatnonzero(grades == QUERY)
        if len(asking) != 1:
            raise InputError(
                f"{type_name(self)}: each group of embeddings needs one sample with the label "
                f"-1, its query; a group of {len(grades)} samples has {len(asking)}"
            )
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
        candidates = grades >= 0
        return self._of_query(unit[candidates] @ unit[asking[0]], grades[candidates])

    def _rows(self, outputs: Tensors) -> Array:
        """Return each sample's score or embedding, float64 `(n, d)`."""
        who = type_name(self)
        given = one_output(outputs, self.output, who)
        if given.ndim not in (1, 2) or given.dtype.kind not in "iuf" or not given.size:
            raise InputError(
                f"{who} reads scores (n,), (n, 1) or (n, 2), or embeddings (n, d); the output is "
                f"{given.dtype} {of_samples(given)}"
            )
        rows = given.reshape(len(given), -1).astype(np.float64)
        wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(wrong):
            raise InputError(f"{who}: the output of sample {wrong[0]} of {len(rows)} isn't finite")
        return rows[:, 1:] - rows[:, :1] if rows.shape[1] == 2 else rows

    def _grades(self, labels: Array, count: int) -> Array:
        """Return the grade of each sample, float64 `(n,)`."""
        if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "biuf":
            raise InputError(
                f"{type_name(self)} reads labels (n,) that are grades; got {labels.dtype} "
                f"{of_samples(labels, count)}"
            )
        return labels.reshape(-1).astype(np.float64)


@dataclass(frozen=True)
class GroupNdcg(Query):
    """Normalized discounted cumulative gain at `k` of a group's candidates."""

    noun: ClassVar[str] = "nDCG"
    title: ClassVar[str] = "nDCG of a query"
    spellings: ClassVar[tuple[str, ...]] = ("group_ndcg[:K]",)

    def _of_query(self, scores: Array, grades: Array) -> float:
        return ndcg(scores, grades, self.k)


@dataclass(frozen=True)
class GroupRecall(Query):
    """Share of a group's relevant candidates that are among its `k` highest scores."""

    noun: ClassVar[str] = "recall"
    title: ClassVar[str] = "recall of a query"
    spellings: ClassVar[tuple[str, ...]] = ("group_recall[:K]",)
    counts: ClassVar[bool] = True

    def _of_query(self, scores: Array, grades: Array) -> float:
        return recall(scores, grades, self.k)
