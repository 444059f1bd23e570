"""From what a person writes to a metric, and the metric where nothing is said."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.custom import Custom
from hasten.inputs.metrics.outputs import class_output


def forms() -> str:
    """Return how each metric is written, in one line.

    Raises:
        InputError: a plug-in can't be imported.
    """
    each = (kind.spellings or (name,) for name, kind in Metric.members().items())
    return ", ".join(form for own in each for form in own)


def parse_metric(text: str) -> Metric:
    """Read a metric as it is written on a command line: a name, and its setting behind a colon.

    "top1:logits" names an output, "embedding:0.98" states the least cosine: each metric's own
    `parse` says what it takes. "my.py:score" or "package.module:score" is a function.

    Raises:
        InputError: it is none of these.
    """
    name, _, setting = text.partition(":")
    if name in Metric.registry:
        return Metric.member(name).parse(setting, text)
    if setting:
        return Custom(text)
    raise InputError(f"there is no metric {text!r}; there are {forms()}")


def default_metric(labels: Array | None, outputs: Sequence[TensorSpec]) -> Metric:
    """Choose a metric where none was asked for: the first that says that it suits the data.

    Anything but classes needs a tolerance that nobody but the user knows.

    Args:
        labels: The data's labels.
        outputs: The model's outputs.

    Raises:
        InputError: nothing can be assumed, and what to ask for.
    """
    for kind in Metric.members().values():
        chosen = kind.default_for(labels, outputs)
        if chosen is not None:
            return chosen
    listed = ", ".join(map(str, outputs))
    if labels is None or class_output(outputs) is None:
        raise InputError(
            f"no metric fits the outputs {listed} by itself: say which with --metric ({forms()})"
        )
    raise InputError(
        f"no metric fits the labels {labels.dtype} {list(labels.shape)} and the outputs {listed} "
        f"by itself: say which with --metric ({forms()})"
    )
