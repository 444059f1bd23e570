"""Metrics for networks that give each token of a text a class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import numpy as np

from hasten.core.records import type_name
from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import of_samples, one_output
from hasten.inputs.metrics.vocabulary import read_lines
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.entities import Entities
from hasten.inputs.pipeline.tags import OUTSIDE, entities


@dataclass(frozen=True)
class TokenAccuracy(Metric):
    """Share of a sample's tokens with the right class.

    A token whose label is below 0, such as -100, doesn't count. A sample without any other token scores 1 if
    every token has the exact model's class, and else 0. Without labels, the exact model's classes are the
    truth, of padding too.

    The output is scores `(n, tokens, classes)`, of which the highest class is taken, or classes `(n,
    tokens)`, integers. Labels are classes `(n, tokens)`; they may be longer than the output if what is
    too long is below 0.

    Attributes:
        output: Name of the output to read; None for a model with a single output.
    """

    output: str | None = None
    needs_labels: ClassVar[bool] = False
    binary: ClassVar[bool | None] = False
    noun: ClassVar[str] = "token accuracy"
    title: ClassVar[str] = "share of right tokens in a sample"
    spellings: ClassVar[tuple[str, ...]] = ("token_accuracy",)
    answers: ClassVar[Literal["classes", "values"] | None] = "values"

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        found, truth, counted = _pair(self, outputs, exact, labels)
        right = ((found == truth) & counted).sum(axis=1)
        count = counted.sum(axis=1)
        return _where_counted(self, right / np.maximum(count, 1), counted, outputs, exact)

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where every token has the same class."""
        return _unchanged(self, outputs, others)


@dataclass(frozen=True)
class EntityF1(Metric):
    """F1 of the entities in a sample: the harmonic mean of precision and recall.

    An entity is right if its kind and both of its ends are. Tokens whose label is below 0, such as -100
    for a word's further tokens, are left out before entities are read. A sample in which neither the
    answer nor the truth has an entity scores 1; one without a token that counts does so only if every token
    has the exact model's class. It is the mean of each sample's own F1: the F1 that
    benchmarks quote adds up the entities of all samples first, and is another figure.

    Output and labels are as for `TokenAccuracy`. `hasten.inputs.pipeline.tags.entities` has the rules by
    which tags become entities.

    Attributes:
        tags: Tag of each class, in order: O, B-PER, I-PER, ...; empty where a pipeline's step `entities`
            states them.
        output: Name of the output to read; None for a model with a single output.
    """

    tags: tuple[str, ...] = ()
    output: str | None = None
    needs_labels: ClassVar[bool] = False
    binary: ClassVar[bool | None] = False
    noun: ClassVar[str] = "entity F1"
    title: ClassVar[str] = "F1 of a sample's entities"
    spellings: ClassVar[tuple[str, ...]] = ("entity_f1[:TAGS]",)
    answers: ClassVar[Literal["classes", "values"] | None] = "values"

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read "entity_f1", or "entity_f1:tags.txt" with a file of the tag of each class, one on a line."""
        return cls(read_lines(setting, text, "tags") if setting else ())

    def around(self, pipeline: Pipeline | None) -> Metric:
        """Return the metric with the tags of a step `entities`, where it names none."""
        after = () if pipeline is None else pipeline.after
        step = next((one for one in after if isinstance(one, Entities)), None)
        if step is None or self.tags:
            return self
        return replace(self, tags=step.labels, output=self.output or step.output or None)

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        if not self.tags:
            raise InputError(
                "entity_f1 needs the tag of each class: name a file with one on each line, as in "
                "entity_f1:tags.txt, or put a step entities into the pipeline"
            )
        found, truth, counted = _pair(self, outputs, exact, labels)
        rows = zip(found, truth, counted, strict=True)
        scores = np.array([self._f1(mine[own], true[own]) for mine, true, own in rows], np.float64)
        return _where_counted(self, scores, counted, outputs, exact)

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where every token has the same class."""
        return _unchanged(self, outputs, others)

    def _f1(self, found: Array, truth: Array) -> float:
        mine, true = self._entities(found), self._entities(truth)
        if not mine and not true:
            return 1.0
        return 2 * len(mine & true) / (len(mine) + len(true))

    def _entities(self, classes: Array) -> set[tuple[str, int, int]]:
        if classes.size and int(classes.max()) >= len(self.tags):
            raise InputError(
                f"entity_f1 has {len(self.tags)} tags; a token is of class {int(classes.max())}"
            )
        return set(entities([self.tags[k] if k >= 0 else OUTSIDE for k in classes.tolist()]))


def _classes(metric: Metric, outputs: Tensors) -> Array:
    """Return the class of each token, `(n, tokens)`."""
    who = type_name(metric)
    output = one_output(outputs, metric.output, who)
    if output.ndim == 2 and output.dtype.kind in "iu":
        return output
    if output.ndim != 3 or output.dtype.kind != "f" or not output.shape[2]:
        raise InputError(
            f"{who} reads scores (n, tokens, classes) or integers (n, tokens); the output is "
            f"{output.dtype} {of_samples(output)}"
        )
    return np.asarray(output.argmax(axis=2))


def _pair(
    metric: Metric, outputs: Tensors, exact: Tensors, labels: Array | None
) -> tuple[Array, Array, Array]:
    """Return each token's class, its true class, and whether it counts; `(n, tokens)` each."""
    found = _classes(metric, outputs)
    if labels is None:
        truth = _classes(metric, exact)
        return found, truth, np.ones(truth.shape, bool)
    count, tokens = found.shape
    fits = labels.ndim == 2 and labels.dtype.kind in "iu" and len(labels) == count
    if not fits or labels.shape[1] < tokens or (labels[:, tokens:] >= 0).any():
        raise InputError(
            f"{type_name(metric)} reads labels that are classes: integers (n, {tokens}), below 0 "
            f"for tokens that don't count; got {labels.dtype} {of_samples(labels, count)}"
        )
    truth = labels[:, :tokens]
    return found, truth, truth >= 0


def _where_counted(
    metric: Metric, scores: Array, counted: Array, outputs: Tensors, exact: Tensors
) -> Array:
    """Return scores, of samples without a token that counts whether they are unchanged."""
    known = counted.any(axis=1)
    return scores if known.all() else np.where(known, scores, metric.unchanged(outputs, exact))


def _unchanged(metric: Metric, outputs: Tensors, others: Tensors) -> Array:
    mine, theirs = _classes(metric, outputs), _classes(metric, others)
    if mine.shape != theirs.shape:
        return np.zeros(len(mine), bool)
    return np.asarray((mine == theirs).all(axis=1))
