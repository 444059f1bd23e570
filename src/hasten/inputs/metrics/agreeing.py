"""Agreement in the place of another metric: it asks of each output whether its class changes."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.core.records import type_name
from hasten.errors import InputError
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.classes import ClassMetric
from hasten.inputs.metrics.combined import AllOf, Combined, EachOutput
from hasten.inputs.metrics.same_answers import SameAnswers


def agreeing(metric: Metric) -> Metric:
    """Return agreement of the classes that a metric reads, of each output where it reads several.

    A metric by itself that reads no classes becomes agreement of the only output of class scores. `same_answers`
    stays, since it counts the answers that change already.

    Raises:
        InputError: one of several metrics, or the one of every output, reads no classes.
    """
    if isinstance(metric, SameAnswers):
        return metric
    if not isinstance(metric, Combined):
        return Agreement(metric.output if isinstance(metric, ClassMetric) else None)
    parts: tuple[Metric, ...] = ()
    if isinstance(metric, AllOf):
        parts = metric.metrics
    elif isinstance(metric, EachOutput):
        parts = (metric.metric,)
    for part in parts or (metric,):
        if not isinstance(part, ClassMetric):
            raise InputError(
                "the guard 'changed' counts the answers whose class changes, and "
                f"{type_name(part)} reads no classes: choose another guard, or only metrics of "
                "classes, such as agreement@OUTPUT"
            )
    if isinstance(metric, EachOutput):
        return EachOutput(Agreement())
    return together([Agreement(part.output) for part in parts])


def together(metrics: Sequence[Metric]) -> Metric:
    """Return one metric of several, each of which is named once."""
    once = tuple(dict.fromkeys(metrics))
    return once[0] if len(once) == 1 else AllOf(once)


def without_labels(metric: Metric) -> Metric:
    """Return the metric as it compares answers that have no labels.

    A metric that needs labels and scores decisions becomes agreement; so does each of several.
    """
    if isinstance(metric, AllOf):
        return together([without_labels(part) for part in metric.metrics])
    if not (metric.needs_labels and metric.decides):
        return metric
    return EachOutput(Agreement()) if isinstance(metric, EachOutput) else Agreement(metric.output)
