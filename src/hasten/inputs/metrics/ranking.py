"""Metrics for one ranking a sample: a score for each of its candidates, and how relevant each is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np

from hasten.core.records import type_name
from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import equal_numbers, of_samples, one_output


def places_of(text: str, setting: str) -> int:
    """Read the number of first places that count, in a metric's setting.

    Raises:
        InputError: it is no whole number above 0.
    """
    if not setting.isdecimal() or int(setting) < 1:
        raise InputError(
            f"metric {text!r}: {setting!r} isn't a number of places; give one from 1 on"
        )
    return int(setting)


def ranked(scores: Array, grades: Array, k: int) -> Array:
    """Return the grades of the `k` highest scores, in order; of equal scores the first comes first.

    Args:
        scores: Scores of a query's candidates, `(candidates,)`.
        grades: Relevance of each, `(candidates,)`.
        k: Number of places.
    """
    return np.asarray(grades[np.argsort(-scores, kind="stable")[:k]])


def ndcg(scores: Array, grades: Array, k: int) -> float:
    """Return the normalized discounted cumulative gain of one query, in [0, 1]; 0 without a relevant one.

    The gain is the grade, divided by the binary logarithm of the place plus 1. Source: Jarvelin and
    Kekalainen, Cumulated gain-based evaluation of IR techniques, TOIS 2002, as in scikit-learn.

    Args:
        scores: Scores of the candidates, `(candidates,)`.
        grades: Relevance of each, at least 0, `(candidates,)`.
        k: Number of places that count.
    """
    best = np.sort(grades)[::-1][:k]
    discounts = 1 / np.log2(np.arange(2, len(best) + 2))
    ideal = float(best @ discounts)
    if not ideal:
        return 0.0
    return min(1.0, float(ranked(scores, grades, k) @ discounts) / ideal)


def recall(scores: Array, grades: Array, k: int) -> float:
    """Return the share of the relevant candidates among the `k` highest scores; 0 without a relevant one.

    Args:
        scores: Scores of the candidates, `(candidates,)`.
        grades: Relevance of each, `(candidates,)`; above 0 is relevant.
        k: Number of places that count.
    """
    relevant = int((grades > 0).sum())
    return float((ranked(scores, grades, k) > 0).sum()) / relevant if relevant else 0.0


def grades_like(scores: Array, k: int) -> Array:
    """Return 1 for the `k` highest scores and else 0: what the exact model would find."""
    grades = np.zeros(len(scores))
    grades[np.argsort(-scores, kind="stable")[:k]] = 1
    return grades


def check_places(metric: Metric, k: int, candidates: int, *, labelled: bool, group: bool) -> None:
    """Check that not every order of the candidates scores alike.

    Args:
        metric: Metric that ranks.
        k: Number of first places that count.
        candidates: Number of candidates that are ranked.
        labelled: Whether labels grade them; else the exact model's first `k` are relevant.
        group: Whether the candidates are the samples of a group.

    Raises:
        InputError: all candidates have a place among the first `k`.
    """
    if k < candidates:
        return
    has = f"a group has {candidates} samples" if group else f"there are {candidates} candidates"
    way = "give a smaller K" + ("" if labelled else ", or labels")
    if candidates < 2:
        way = "leave such groups out" + ("" if labelled else ", or give labels")
    raise InputError(
        f"{type_name(metric)}:{k}: {has}, so {'' if labelled else 'without labels '}every order "
        f"scores the same: {way}"
    )


@dataclass(frozen=True)
class Ranking(Metric):
    """Shared part of the metrics of one ranking a sample.

    The output is scores `(n, candidates)`. Labels are grades `(n, candidates)`: 0 for a candidate
    that isn't relevant, higher for one that is, below 0 for padding. Without labels, the
    candidates that the exact model ranks among the first `k` are the relevant ones.

    Attributes:
        k: Number of first places that count.
        output: Name of the output with the scores; None for a model with a single output.
        counts: Whether the order of the first `k` makes no difference.
    """

    k: int = 10
    output: str | None = None
    needs_labels: ClassVar[bool] = False
    binary: ClassVar[bool | None] = False
    answers: ClassVar[Literal["classes", "values"] | None] = "values"
    counts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the number of places."""
        if self.k < 1:
            raise InputError(f"{type_name(self)}: k={self.k}: at least one place must count")

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read the metric's name, or with the number of places: "ndcg:10"."""
        return cls(places_of(text, setting)) if setting else cls()

    @abstractmethod
    def _of_query(self, scores: Array, grades: Array) -> float:
        """Return the score of one sample's candidates, without padding."""

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        mine = self._scores(outputs)
        if labels is None or self.counts:
            check_places(self, self.k, mine.shape[1], labelled=labels is not None, group=False)
        if labels is None:
            truth = [grades_like(own, self.k) for own in self._scores(exact)]
        else:
            truth = [*self._labelled(labels, mine)]
        found = []
        for scores, grades in zip(mine, truth, strict=True):
            there = grades >= 0
            found.append(self._of_query(scores[there], grades[there]))
        return np.array(found, np.float64)

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where all scores are equal."""
        return equal_numbers(self._scores(outputs), self._scores(others))

    def _scores(self, outputs: Tensors) -> Array:
        """Return the candidates' scores, float64 `(n, candidates)`."""
        who = type_name(self)
        scores = one_output(outputs, self.output, who)
        if scores.ndim != 2 or scores.shape[1] < 2 or scores.dtype.kind not in "iuf":
            raise InputError(
                f"{who} reads scores (n, candidates) of at least 2; the output is {scores.dtype} "
                f"{of_samples(scores)}: if each sample is one candidate, use group_{who}"
            )
        return scores.astype(np.float64)

    def _labelled(self, labels: Array, scores: Array) -> Array:
        """Return the candidates' grades, float64 `(n, candidates)`."""
        if labels.shape != scores.shape or labels.dtype.kind not in "biuf":
            raise InputError(
                f"{type_name(self)} reads labels that are grades {of_samples(scores)}, one for each "
                f"candidate; got {labels.dtype} {of_samples(labels, len(scores))}"
            )
        return labels.astype(np.float64)


@dataclass(frozen=True)
class Ndcg(Ranking):
    """Normalized discounted cumulative gain at `k` of a sample's candidates."""

    noun: ClassVar[str] = "nDCG"
    title: ClassVar[str] = "nDCG"
    spellings: ClassVar[tuple[str, ...]] = ("ndcg[:K]",)

    def _of_query(self, scores: Array, grades: Array) -> float:
        return ndcg(scores, grades, self.k)


@dataclass(frozen=True)
class Recall(Ranking):
    """Share of a sample's relevant candidates that are among its `k` highest scores."""

    noun: ClassVar[str] = "recall"
    title: ClassVar[str] = "recall of relevant candidates"
    spellings: ClassVar[tuple[str, ...]] = ("recall[:K]",)
    counts: ClassVar[bool] = True

    def _of_query(self, scores: Array, grades: Array) -> float:
        return recall(scores, grades, self.k)
