"""Choice of the metrics over a set: from a command line, or from the data where none is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from hasten.core.records import type_name
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.metrics.outputs import swapped
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.threshold import Threshold
from hasten.inputs.set_metrics.base import SetMetric
from hasten.inputs.set_metrics.custom import SetCustom
from hasten.inputs.set_metrics.scores import Activation, ScoreMetric, score_output

_BY_DEFAULT = ("auroc", "ks", "brier", "log_loss", "calibration_error")
NOTHING = "none"
"""Word for no figures at all, also where the data suggests some."""


def set_forms() -> str:
    """Return the forms in which metrics over a set are written, in one line.

    Raises:
        InputError: a plug-in can't be imported.
    """
    each = (kind.spellings or (name,) for name, kind in SetMetric.members().items())
    return ", ".join(form for own in each for form in own)


def parse_set_metric(text: str) -> SetMetric:
    """Read a metric over a set from its form on a command line: a name, and a setting after a colon.

    "auroc@logits" names the output that is read. "my.py:gini" or "package.module:gini" is the user's own
    function.

    Raises:
        InputError: the text is neither.
    """
    written, at, output = text.partition("@")
    name, _, setting = written.partition(":")
    if name in SetMetric.registry:
        metric = SetMetric.member(name).parse(setting, text)
        return _reading(metric, output, text) if at else metric
    if text.partition(":")[2]:
        return SetCustom(text)
    raise InputError(f"there is no metric over a set {text!r}; there are {set_forms()}")


def _reading(metric: SetMetric, output: str, text: str) -> SetMetric:
    """Return a metric that reads an output of this name.

    Raises:
        InputError: the metric reads no single output, or names another one already.
    """
    named = "output" in {field.name for field in fields(metric)}  # type: ignore[arg-type]
    if not output or not named:
        why = "no output is named after the @" if not output else "it reads no output by name"
        raise InputError(f"metric over a set {text!r}: {why}")
    if metric.output is not None:
        raise InputError(
            f"metric over a set {text!r} names two outputs, {metric.output} and {output}: name one"
        )
    return replace(metric, output=output)  # type: ignore[type-var]


def threshold_of(pipeline: Pipeline | None) -> Threshold | None:
    """Return the step that decides by a threshold, where the pipeline has one after the model."""
    after = () if pipeline is None else pipeline.after
    return after[0] if len(after) == 1 and isinstance(after[0], Threshold) else None


def default_set_metrics(
    labels: Array | None, outputs: Sequence[TensorSpec], pipeline: Pipeline | None
) -> tuple[SetMetric, ...]:
    """Return the figures that a labelled binary classification is expected to show, else none.

    Args:
        labels: Labels of the data; None where it has none.
        outputs: Outputs of the model, which have a batch axis.
        pipeline: Steps around the model; a threshold says which output holds the score, and how.
    """
    step = threshold_of(pipeline)
    name = step.output if step is not None and step.output else score_output(outputs)
    spec = next((one for one in outputs if one.name == name), None)
    if labels is None or spec is None or not _zero_and_one(labels):
        return ()
    columns = spec.shape[1] if len(spec.shape) == 2 else 1
    activation: Activation = "auto"
    if step is not None and step.activation != "none":
        activation = step.activation
    if columns not in (1, 2) or (columns == 2 and activation == "sigmoid"):
        return ()
    kinds = [SetMetric.member(name) for name in _BY_DEFAULT]
    return tuple(kind(spec.name, activation) for kind in kinds if issubclass(kind, ScoreMetric))


def _zero_and_one(labels: Array) -> bool:
    """Whether labels are 0 or 1, one for each sample, and both occur."""
    if labels.shape not in ((len(labels),), (len(labels), 1)) or labels.dtype.kind not in "biuf":
        return False
    return set(np.unique(labels).tolist()) == {0, 1}


def chosen(
    asked: Sequence[str | SetMetric] | None,
    labels: Array | None,
    outputs: Sequence[TensorSpec],
    pipeline: Pipeline | None,
) -> tuple[SetMetric, ...]:
    """Return the metrics over a set that were asked for, or those that the data suggests.

    Args:
        asked: Metrics, or their forms on a command line; None where the data decides.
        labels: Labels of the data; None where it has none.
        outputs: Outputs of the model, which have a batch axis.
        pipeline: Steps around the model.

    Raises:
        InputError: there is no such metric or output, it is named twice, or the data has no labels.
    """
    if asked is None:
        suggested = (
            kind.suggested(labels, outputs, pipeline) for kind in SetMetric.members().values()
        )
        return default_set_metrics(labels, outputs, pipeline) or tuple(filter(None, suggested))
    if NOTHING in asked:
        if len(asked) > 1:
            raise InputError("report='none' means no figures: leave out 'none' or the others")
        return ()
    found = tuple(one if isinstance(one, SetMetric) else parse_set_metric(one) for one in asked)
    if len(set(found)) < len(found):
        raise InputError(f"a figure is asked for twice: {', '.join(map(type_name, found))}")
    if found and labels is None:
        raise InputError(
            f"the metric {type_name(found[0])} needs labels, but the data has none; give labels"
        )
    names = [spec.name for spec in outputs]
    for one in found:
        if one.output is not None and one.output not in names:
            raise InputError(
                f"{type_name(one)} reads {one.output!r}; the model has {', '.join(names)}"
                + swapped(type_name(one), one.output, names)
            )
    return tuple(one.around(pipeline) for one in found)
