"""Figures over the sealed set, before and after: what is stated beside the promise, and never ships by it.

The figures choose nothing. What ships is chosen by the verdicts on the same data, among a few models, so
that a bound on the model that ships must hold for each of them: each is tested at its share of the level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hasten.certificate.betting import BettingPrior
from hasten.certificate.draws import bounded, drawn
from hasten.core.comparison import Comparison, Figure, Moved, OutputMoved
from hasten.core.records import type_name
from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError, named
from hasten.inputs.data.labels_by_output import of_output
from hasten.inputs.data.missing import unlabelled
from hasten.inputs.metrics.outputs import equal_bits
from hasten.inputs.pipeline.base import Origin, Pipeline
from hasten.inputs.pipeline.threshold import Threshold
from hasten.inputs.set_metrics.base import SetMetric
from hasten.inputs.set_metrics.choice import threshold_of
from hasten.inputs.set_metrics.custom import SetCustom
from hasten.inputs.set_metrics.scores import ScoreMetric, named_output

_SEED = 0
_RESAMPLED, _RESAMPLED_LARGE, _LARGE = 500, 200, 20_000
"""Resampled sets of a bootstrap, for sets of up to so many samples and for larger ones."""
_LEAST = 10
"""Fewest samples, or groups, of a class to resample."""
_AT_ONCE = 4_000_000
"""Largest number of samples whose counts are in memory at a time."""
_MOST_OUTPUTS = 100
"""Largest number of outputs whose differences are kept."""
_KEPT_BYTES = 512 << 20
"""Largest number of bytes of answers that are kept for the figures of a run."""


@dataclass
class Moves:
    """Distances of several models' outputs from the original's, gathered chunk by chunk.

    Answers themselves aren't kept.
    """

    _own: Tensors = field(default_factory=dict)
    _gaps: dict[str, dict[str, list[tuple[Array, Array]]]] = field(default_factory=dict)

    def __call__(self, key: str, outputs: Tensors) -> None:
        """Take a model's outputs on a chunk; those of the original, under "", come first."""
        if key == "":
            self._own = outputs
            return
        gaps = self._gaps.setdefault(key, {})
        for name, own in self._own.items():
            other = outputs.get(name)
            if own.dtype.kind == "f" and other is not None and other.shape == own.shape:
                gaps.setdefault(name, []).append(_gap(own, other))

    def of(self, key: str, rows: int) -> tuple[OutputMoved, ...]:
        """Return the differences of a model's outputs of floats, without those that can't be compared."""
        found = []
        for name, chunks in list(self._gaps.get(key, {}).items())[:_MOST_OUTPUTS]:
            apart, equal = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
            if len(apart) == rows and np.isfinite(apart).all():
                largest = float(apart.max())
                mean = min(float(apart.mean()), largest)  # which rounding can put above
                found.append(OutputMoved(name, int(equal.sum()), largest, mean))
        return tuple(found)


def _gap(own: Array, other: Array) -> tuple[Array, Array]:
    """Return the largest difference of each row, and whether the row is equal bit for bit, `(n,)`."""
    equal = equal_bits({"": own}, {"": other})
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(other.astype(np.float64) - own.astype(np.float64))
    apart = np.where(other == own, 0.0, apart)  # equal infinities too
    largest = apart.max(axis=tuple(range(1, own.ndim)), initial=0.0)
    return np.where(equal, 0.0, largest), equal


@dataclass
class Answers:
    """Answers of several models on the same rows, gathered chunk by chunk as they are scored.

    Attributes:
        keeps: Whether answers are kept for figures; if not, only their differences are.
        moves: Differences of the models' outputs.
        chunks: Model -> chunks of its outputs, in order; "" is the original.
        too_large: Whether the answers took more memory than is spent on figures; then none are kept.
        unlike: Whether answers differ in shape, so that there is no figure over all rows.
    """

    keeps: bool = True
    moves: Moves = field(default_factory=Moves)
    chunks: dict[str, list[Tensors]] = field(default_factory=dict)
    too_large: bool = False
    unlike: bool = False
    _size_bytes: int = 0

    def __call__(self, key: str, outputs: Tensors) -> None:
        """Take a model's answers to a chunk; those of the original, under "", come first."""
        self.moves(key, outputs)
        if self.too_large or not self.keeps:
            return
        self._size_bytes += sum(array.nbytes for array in outputs.values())
        if self._size_bytes > _KEPT_BYTES:
            self.too_large = True
            self.chunks.clear()
            return
        chunks = self.chunks.setdefault(key, [])
        if chunks and any(
            a.shape[1:] != outputs[n].shape[1:] for n, a in chunks[0].items() if n in outputs
        ):
            self.unlike = True
        chunks.append(outputs)

    def of(self, key: str, rows: int) -> Tensors | None:
        """Return a model's answers to all rows; None where it failed on some."""
        chunks = self.chunks.get(key, [])
        if (
            self.unlike
            or not chunks
            or sum(len(next(iter(chunk.values()))) for chunk in chunks) < rows
        ):
            return None
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


@dataclass(frozen=True)
class Setting:
    """Setting in which models are compared.

    Attributes:
        metrics: Metrics over the set.
        pipeline: Steps around the model; None where there are none.
        labels: Labels of the rows, `(n, ...)`; None if there are no labels.
        units: Number of each row's group, `(n,)`; equal numbers were drawn together.
        confidence: Confidence of each interval and each bound.
        models: Number of models among which the sealed data chooses; each has its share of the level.
    """

    metrics: Sequence[SetMetric]
    pipeline: Pipeline | None
    labels: Array | None
    units: Array
    confidence: float
    models: int = 1

    @property
    def wanted(self) -> bool:
        """Whether there is anything to compare by."""
        return bool(self.metrics) or threshold_of(self.pipeline) is not None

    def compare(self, label: str, before: Tensors, after: Tensors) -> Comparison:
        """Compare a model with the original; what can't be computed is said in a line.

        Args:
            label: Description of the model, for people.
            before: Outputs of the original by name, each of shape `(n, ...)`.
            after: Outputs of the model, in the form of `before`.
        """
        figures: list[Figure] = []
        missing: list[str] = []
        for metric in self.metrics:
            try:
                figures.append(self._figure(metric, before, after))
            except InputError as error:
                missing.append(f"{metric.noun}: not computed: {error}")
            except Exception as error:  # a user's own function may fail in any way
                missing.append(
                    f"{metric.noun}: not computed: {type_name(metric)} ended in {named(error)}"
                )
        try:
            moved = self._moved(before, after)
        except InputError as error:
            moved = None
            missing.append(f"decisions: not compared: {error}")
        return replace(
            self.bare(label), figures=tuple(figures), moved=moved, missing=tuple(missing)
        )

    def bare(self, label: str) -> Comparison:
        """Return a comparison without any figure.

        Args:
            label: Description of the model, for people.
        """
        rows, distinct = len(self.units), len(np.unique(self.units))
        groups = distinct if distinct < rows else None
        return Comparison(label, rows, groups, self.confidence)

    def score_of(self, outputs: Tensors) -> str | None:
        """Return the name of the output whose scores are compared row by row; None for none.

        Raises:
            InputError: there are several outputs, and none is named.
        """
        step = threshold_of(self.pipeline)
        read = [metric.output for metric in self.metrics if isinstance(metric, ScoreMetric)]
        if step is None and not read:
            return None
        name = step.output if step is not None and step.output else next(iter(read), None)
        return named_output(outputs, name, "the comparison of scores")

    def _figure(self, given: SetMetric, before: Tensors, after: Tensors) -> Figure:
        if self.labels is None:
            raise InputError("it needs labels; the data has none")
        labels = self.labels
        if not isinstance(given, SetCustom):
            labels = of_output(labels, given.output, type_name(given))
        if (missing := unlabelled(labels, classes=labels.ndim < 3)).any():
            raise InputError(
                f"{int(missing.sum()):,} of {len(missing):,} sealed samples have no label"
            )
        metric = given.settled(before)
        values = (metric.value(before, labels), metric.value(after, labels))
        if isinstance(metric, ScoreMetric) and metric.every_class:
            _check_enough(metric.cases(before, labels).classes, self.units)
        low = high = 0.0
        if not _same(before, after):
            low, high = self._interval(metric, before, after, labels)
        bound, draws = self._bound(metric, before, after, labels)
        return Figure(
            noun=metric.noun,
            before=values[0],
            after=values[1],
            low=min(low, values[1] - values[0]),
            high=max(high, values[1] - values[0]),
            higher_is_better=metric.higher_is_better,
            reading=metric.reading,
            bound=bound,
            draws=draws,
            per_group=bound is not None and len(np.unique(self.units)) < len(self.units),
        )

    def _interval(
        self, metric: SetMetric, before: Tensors, after: Tensors, labels: Array
    ) -> tuple[float, float]:
        """Return an approximate interval of after - before: resampled rows, or groups, in pairs.

        Raises:
            InputError: most resampled sets have no figure.
        """
        _, unit = np.unique(self.units, return_inverse=True)
        count, rows = unit.max() + 1, len(unit)
        sets = _RESAMPLED if rows <= _LARGE else _RESAMPLED_LARGE
        rng = np.random.default_rng(_SEED)
        changes: list[NDArray[np.float64]] = []
        step = max(1, _AT_ONCE // rows)
        for start in range(0, sets, step):
            size = (min(step, sets - start), count)
            drawn_units = rng.integers(0, count, size)
            counts = np.stack([np.bincount(one, minlength=count)[unit] for one in drawn_units])
            after_values = metric.values(after, labels, counts)
            changes.append(after_values - metric.values(before, labels, counts))
        found = np.concatenate(changes)
        found = found[np.isfinite(found)]
        if len(found) < sets / 2:
            raise InputError(
                f"{rows:,} rows are too few for an interval: most resampled sets have none"
            )
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(found, (tail, 1 - tail))
        return float(low), float(high)

    def _bound(
        self, metric: SetMetric, before: Tensors, after: Tensors, labels: Array
    ) -> tuple[float | None, int]:
        """Return an exact upper bound on how much worse the figure is, and the draws behind it."""
        own = metric.draws(before, labels, self.units)
        others = metric.draws(after, labels, self.units)
        if own is None or others is None:
            return None, 0
        falls = drawn(own, others, losses_only=False, binary=False, groups=None, max_drop=0.5)
        alpha = (1 - self.confidence) / self.models
        _, bound = bounded(falls, 0.5, alpha, BettingPrior())
        return bound, len(own)

    def _moved(self, before: Tensors, after: Tensors) -> Moved | None:
        """Compare scores row by row, and the decisions where a step decides by a threshold."""
        step, name = threshold_of(self.pipeline), self.score_of(before)
        if name is None:
            return None
        bits = [
            np.ascontiguousarray(one[name]).reshape(len(self.units), -1) for one in (before, after)
        ]
        equal = np.zeros(len(self.units), bool)
        if bits[0].dtype == bits[1].dtype and bits[0].shape == bits[1].shape:
            equal = (bits[0].view(np.uint8) == bits[1].view(np.uint8)).all(axis=1)
        if step is None:
            pair = [one.astype(np.float64) for one in bits]
            with np.errstate(invalid="ignore"):
                apart = np.where(pair[0] == pair[1], 0, np.abs(pair[1] - pair[0])).max(axis=1)
            return Moved(int(equal.sum()), float(apart.max()), float(apart.mean()))
        told = [decisions(step, one) for one in (before, after)]
        apart = np.abs(told[1][0] - told[0][0])
        changed = sum(one != other for one, other in zip(told[0][1], told[1][1], strict=True))
        return Moved(
            int(equal.sum()), float(apart.max()), float(apart.mean()), step.threshold, changed
        )


def decisions(step: Threshold, outputs: Tensors) -> tuple[Array, list[bool | None]]:
    """Return the scores of rows, `(n,)`, and what the step decides on each; None where it abstains.

    The step itself decides, row by row, so that these are the decisions that the bundle gives.

    Raises:
        InputError: an output isn't what the step needs.
    """
    rows = len(next(iter(outputs.values())))
    told = [
        step({name: array[i] for name, array in outputs.items()}, Origin()) for i in range(rows)
    ]
    return np.array([one["score"] for one in told]), [one.get("positive") for one in told]


def compared(
    setting: Setting, answers: Answers, labels_of: Mapping[str, str]
) -> dict[str, Comparison]:
    """Compare models with the original, by what they answered.

    Args:
        setting: Figures, samples and confidence that models are compared by.
        answers: Answers of the models and of the original.
        labels_of: Model -> its description, for people.

    Returns:
        Model -> comparison; a model that failed has none.
    """
    rows = len(setting.units)
    before = answers.of("", rows)
    found = {}
    for key, label in labels_of.items():
        after = answers.of(key, rows)
        moves = answers.moves.of(key, rows)
        if before is not None and after is not None:
            one = setting.compare(label, before, after)
            told = setting.score_of(before) if one.moved is not None else None
            moves = tuple(each for each in moves if each.output != told)
        elif moves:
            one = setting.bare(label)
        else:
            continue
        found[key] = replace(one, outputs=moves)
    return found


def _check_enough(classes: Array, units: Array) -> None:
    """Check that each class has enough samples, or groups, to resample.

    Raises:
        InputError: a class has too few; the message says which.
    """
    noun = "samples" if len(np.unique(units)) == len(units) else "groups"
    for one in np.unique(classes):
        count = len(np.unique(units[classes == one]))
        if count < _LEAST:
            raise InputError(
                f"{count} {noun} of class {one} are too few for an interval: give at least {_LEAST}"
            )


def _same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)
