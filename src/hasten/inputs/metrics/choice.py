"""Choice of the metric: from its form on a command line, or from the data where none is named."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.custom import Custom
from hasten.inputs.metrics.outputs import class_output


def forms() -> str:
    """Return the forms in which metrics are written, in one line.

    Raises:
        InputError: a plug-in can't be imported.
    """
    each = (kind.spellings or (name,) for name, kind in Metric.members().items())
    return ", ".join(form for own in each for form in own)


def parse_metric(text: str) -> Metric:
    """Read a metric from its form on a command line: a name, and its setting after a colon.

    "top1:logits" names an output and "embedding:0.98" sets the least cosine; each metric's own
    `parse` reads its setting. "my.py:score" or "package.module:score" is the user's own function.

    Raises:
        InputError: the text is none of these.
    """
    name, _, setting = text.partition(":")
    if name in Metric.registry:
        return Metric.member(name).parse(setting, text)
    if setting:
        return Custom(text)
    raise InputError(f"there is no metric {text!r}; there are {forms()}")


def default_metric(labels: Array | None, outputs: Sequence[TensorSpec]) -> Metric:
    """Choose a metric where none is named: the first that declares that it suits the data.

    Outputs other than classes need a tolerance, which only the user knows.

    Args:
        labels: Labels of the data, or None.
        outputs: Specs of the model's outputs.

    Raises:
        InputError: no metric suits; the message lists those that can be named.
    """
    for kind in Metric.members().values():
        chosen = kind.default_for(labels, outputs)
        if chosen is not None:
            return chosen
    listed = ", ".join(map(str, outputs))
    if labels is None or class_output(outputs) is None:
        raise InputError(
            f"no metric fits the outputs {listed} by itself: choose one with metric= ({forms()})"
        )
    raise InputError(
        f"no metric fits the labels {labels.dtype} {list(labels.shape)} and the outputs {listed} "
        f"by itself: choose one with metric= ({forms()})"
    )
