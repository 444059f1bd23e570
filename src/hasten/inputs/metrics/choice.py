"""Choice of the metric: from its form on a command line, or from the data where none is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hasten.core.records import type_name
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.combined import AllOf, Combined, EachOutput
from hasten.inputs.metrics.custom import Custom
from hasten.inputs.metrics.outputs import swapped
from hasten.inputs.metrics.suggestions import why_no_default

EVERY_OUTPUT = "all"
"""Word after the @ for every output of the model."""


def forms() -> str:
    """Return the forms in which metrics are written, in one line.

    Raises:
        InputError: a plug-in can't be imported.
    """
    each = (kind.spellings or (name,) for name, kind in Metric.members().items())
    return ", ".join(form for own in each for form in own)


def parse_metric(text: str) -> Metric:
    """Read a metric from its form on a command line: a name, and its setting after a colon.

    "top1@logits" names the output that is read, "regression:0.02@537" a setting and an output, and
    "regression:2%@all" every output at once. "embedding:0.98" sets the least cosine; each metric's own
    `parse` reads its setting. "my.py:score" or "package.module:score" is the user's own function.

    Raises:
        InputError: the text is none of these.
    """
    written, at, output = text.partition("@")
    name, _, setting = written.partition(":")
    if name in Metric.registry:
        metric = Metric.member(name).parse(setting, text)
        return reading(metric, output, text) if at else metric
    if text.partition(":")[2]:
        if "@" in text.rpartition(":")[2]:
            raise InputError(
                f"metric {text!r}: a function of your own gets all outputs by name: read outputs[{output!r}] "
                f"in it, and leave out @{output}"
            )
        return Custom(text)
    raise InputError(f"there is no metric {text!r}; there are {forms()}")


def reading(metric: Metric, output: str, text: str) -> Metric:
    """Return a metric that reads an output of this name, or every output for "all".

    Args:
        metric: Metric as it is written before the @.
        output: Text behind the @.
        text: Whole text, for messages.

    Raises:
        InputError: the metric reads no single output, or names another one already.
    """
    name = type_name(metric)
    if not output:
        raise InputError(
            f"metric {text!r} names no output after the @: write one, or leave out the @"
        )
    if "output" not in {field.name for field in dataclasses.fields(metric)}:  # type: ignore[arg-type]
        raise InputError(
            f"metric {text!r}: {name} reads several outputs with fixed names; leave out @{output}"
        )
    if metric.output is not None:
        raise InputError(
            f"metric {text!r} names two outputs, {metric.output} and {output}: name one"
        )
    if output != EVERY_OUTPUT:
        return dataclasses.replace(metric, output=output)  # type: ignore[type-var]
    try:
        return EachOutput(metric)
    except InputError as error:
        raise InputError(f"metric {text!r}: {error}") from error


def named_metric(given: str | Metric | Sequence[str | Metric]) -> Metric:
    """Return the metric that a caller named: one, or several that are scored at once.

    Args:
        given: A metric, its form on a command line, or a list of such.

    Raises:
        InputError: there is no such metric, or some can't be combined.
    """
    if isinstance(given, Metric):
        return given
    if isinstance(given, str):
        return parse_metric(given)
    each = tuple(one if isinstance(one, Metric) else parse_metric(one) for one in given)
    return each[0] if len(each) == 1 else AllOf(each)


def check_outputs(metric: Metric, outputs: Sequence[TensorSpec]) -> None:
    """Check that a model has the outputs that a metric names.

    Raises:
        InputError: it hasn't; the message lists those that it has.
    """
    names = [spec.name for spec in outputs]
    for part in metric.of(names) if isinstance(metric, Combined) else (metric,):
        if part.output is not None and part.output not in names:
            listed = ", ".join(map(str, outputs))
            raise InputError(
                f"{type_name(part)} reads the output {part.output!r}, but the model's outputs "
                f"are {listed}{swapped(type_name(part), part.output, names)}"
            )


def default_metric(labels: Array | None, outputs: Sequence[TensorSpec]) -> Metric:
    """Choose a metric where none is named: the first that declares that it suits the data.

    Outputs other than classes need a tolerance, which only the user knows.

    Args:
        labels: Labels of the data, or None.
        outputs: Specs of the model's outputs.

    Raises:
        InputError: no metric suits; the message says why, and names some that could.
    """
    for kind in Metric.members().values():
        chosen = kind.default_for(labels, outputs)
        if chosen is not None:
            return chosen
    raise InputError(why_no_default(labels, outputs))
